"""The presets of guards have the numbers of LlavaGuard's seed page, section 3, and are stages of one recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.sft_safe_llava import ImitationConfig
from rlhf.config import load

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(
    ("name", "base", "lr", "warm", "rows", "ranks", "length"),
    [
        ("guard_05b", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 1e-5, 0.03, (1, 125), 5, 32_768),
        ("guard_7b", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 1e-5, 0.03, (1, 125), 5, 32_768),
        ("guard_7b_lora", "llava-hf/llava-1.5-7b-hf", 2e-5, 0.05, (12, 168), 7, 4096),
    ],
)
def test_guard12_the_guard_presets_have_the_numbers_of_the_seed(
    name: str, base: str, lr: float, warm: float, rows: tuple[int, int], ranks: int, length: int
) -> None:
    """LlavaGuard page, section 3: micro x accumulation x GPUs is 1 x 25 x 5, and 12 x 2 x 7 with LoRA."""
    config = load(ImitationConfig, CONFIGS / "7b" / f"{name}.yaml")
    optimizer, batch, trainable = config.optimizer, config.batch, config.trainable
    assert (config.run.name, config.run.seed) == (f"7b/{name}", 42)
    assert (config.model.path, config.model.max_length, config.model.dtype) == (base, length, "bfloat16")
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_ratio, optimizer.weight_decay) == (lr, "cosine", warm, 0)
    assert (batch.micro_rows, batch.global_rows, config.workers.ranks) == (*rows, ranks)
    assert batch.per_rank(ranks) == rows[1] // ranks
    assert (config.epochs, config.deepspeed.zero_stage) == (3, 3)
    assert (trainable.vision_tower, trainable.projector, trainable.gradient_checkpointing) == (
        False,
        name == "guard_7b_lora",
        True,
    )
    assert (config.data.train, config.data.too_long) == ("./data/guard/v24/train_balanced.json", "reject")
    assert (trainable.lora and (trainable.lora.rank, trainable.lora.alpha)) == (
        (128, 256) if name == "guard_7b_lora" else None
    )
    if name != "guard_7b_lora":
        assert config.total_steps(5486) == 3 * 5486 // 125


@pytest.mark.parametrize("path", ["tiny/guard_sft", "7b/guard_05b", "7b/guard_7b"])
def test_guard12_the_staged_recipe_in_the_comment_is_two_configurations_that_load(path: str) -> None:
    """Ratings alone first; the second stage starts from the model of the first."""
    file = CONFIGS / f"{path}.yaml"
    line = next(line for line in file.read_text().splitlines() if "train_rating_only" in line)
    overrides = [part.rstrip(",") for part in line.split() if part.startswith(("run.name=", "data.train="))]
    first = load(ImitationConfig, file, overrides)
    then = next(part for part in file.read_text().split() if part.startswith("model.path="))
    second = load(ImitationConfig, file, [then.rstrip(".")])
    assert first.run.name != second.run.name
    assert first.data.train.endswith("/train_rating_only.json")
    assert second.model.path == f"./runs/{first.run.name}/model"


def test_guard12_the_stages_that_begin_with_ratings_have_the_numbers_of_the_seed() -> None:
    """LlavaGuard page, section 3, "QwenGuard 2-2B staged": lr 5e-5, 1e-5, 1e-5; warm-up 0.03, 0, 0; 2+1+2 epochs."""
    file = CONFIGS / "7b" / "guard_ratings.yaml"
    first, second = (line.split(": ", 1)[1].split() for line in file.read_text().splitlines() if "with: " in line)
    stages = [
        load(ImitationConfig, file),
        load(ImitationConfig, file, first),
        load(ImitationConfig, CONFIGS / "7b" / "guard_7b.yaml", second),
    ]
    assert [one.optimizer.lr for one in stages] == [5e-5, 1e-5, 1e-5]
    assert [one.optimizer.warmup_ratio for one in stages] == [0.03, 0, 0]
    assert [one.epochs for one in stages] == [2, 1, 2]
    assert [one.batch.global_rows for one in stages] == [10, 10, 5]
    assert {one.model.max_length for one in stages} == {32_768}
    data = ["train_rating_only_default_policy", "train_rating_only", "train_balanced"]
    assert [Path(one.data.train).stem for one in stages] == data
    for before, after in zip(stages, stages[1:], strict=False):
        assert after.model.path == f"./runs/{before.run.name}/model"
        assert after.batch.per_rank(after.workers.ranks)
