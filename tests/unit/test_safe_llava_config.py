"""Safe-LLaVA's presets have the numbers of the seed page (section 2.1), its paired baseline and small variant too."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.sft_safe_llava import ImitationConfig
from rlhf.config import load
from rlhf.learner import learning_rate

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SAFE_ROWS = {"pretrain": 558_128, "sft": 665_298, "sft_lora": 665_298}
SAFE = {name: CONFIGS / "7b" / f"{name}.yaml" for name in SAFE_ROWS}


@pytest.mark.parametrize(
    ("name", "template", "square", "lr", "rows", "stage", "grouped"),
    [
        ("pretrain", "plain", False, 1e-3, 32, 2, False),
        ("sft", "v1", True, 2e-5, 16, 3, True),
        ("sft_lora", "v1", True, 2e-4, 16, 3, True),
    ],
)
def test_safe24_safe27_the_safe_llava_presets_have_the_numbers_of_the_seed(
    name: str, template: str, square: bool, lr: float, rows: int, stage: int, grouped: bool
) -> None:
    """Seed page 2.1."""
    config = load(ImitationConfig, SAFE[name])
    assert config.run.name == f"7b/{name}"
    model, optimizer, batch = config.model, config.optimizer, config.batch
    assert (model.template, model.pad_to_square, model.max_length) == (template, square, 2048)
    assert (model.dtype, model.attention) == ("bfloat16", "flash_attention_2")
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_ratio) == (lr, "cosine", 0.03)
    assert (optimizer.warmup_steps, optimizer.weight_decay) == (0, 0.0)
    assert (optimizer.betas, optimizer.eps) == ((0.9, 0.999), 1e-8)  # transformers' defaults
    assert (batch.micro_rows, config.workers.ranks, config.workers.gpus) == (rows, 8, 1)
    assert batch.per_rank(8) == rows  # accumulation 1 on 8 GPUs
    assert batch.global_rows == {"pretrain": 256, "sft": 128, "sft_lora": 128}[name]
    assert batch.per_rank(4) == 2 * rows  # on 4 GPUs as many rows in a step
    assert (config.epochs, config.deepspeed.zero_stage, config.run.seed, config.run.log_every) == (1, stage, 42, 1)
    assert (batch.group_by_modality, config.trainable.gradient_checkpointing) == (grouped, True)
    assert (config.data.too_long, config.data.max_masked_share, config.data.require_scrubbed) == (
        "truncate",
        0.001,
        True,
    )


def test_safe20_safe21_safe22_what_the_presets_train() -> None:
    stages = {name: load(ImitationConfig, path) for name, path in SAFE.items()}
    trainable = {name: config.trainable for name, config in stages.items()}
    learns = {name: (one.vision_tower, one.projector, one.language_model) for name, one in trainable.items()}
    assert learns == {"pretrain": (False, True, False), "sft": (False, True, True), "sft_lora": (False, True, True)}
    assert trainable["pretrain"].lora is trainable["sft"].lora is None
    lora = trainable["sft_lora"].lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (128, 256, 0.05, 7)
    assert [one.optimizer.projector_lr for one in stages.values()] == [None, None, 2e-5]


@pytest.mark.parametrize(
    ("name", "steps", "warm"), [("pretrain", 2180, 66), ("sft", 5197, 156), ("sft_lora", 5197, 156)]
)
def test_safe23_cosine_with_a_warm_up_of_three_percent(name: str, steps: int, warm: int) -> None:
    """At full size. The seed has one step more: it trains on the rest that fills no batch."""
    config = load(ImitationConfig, SAFE[name])
    assert config.total_steps(SAFE_ROWS[name]) == steps
    rates = [learning_rate(step, steps, config.optimizer) / config.optimizer.lr for step in range(steps)]
    assert rates[:warm] == pytest.approx([(step + 1) / warm for step in range(warm)])
    assert rates[warm] == 1.0
    middle = warm + (steps - warm) // 2
    assert rates[middle] == pytest.approx(0.5, abs=1e-3)
    assert 0 < rates[-1] < 1e-5
    assert rates[warm:] == sorted(rates[warm:], reverse=True)


@pytest.mark.parametrize("name", ["pretrain", "sft"])
def test_safe29_the_paired_baseline_differs_in_its_data_only(name: str) -> None:
    """The overrides that the file itself gives: other words, and where they come from; nothing of the recipe."""
    comment = SAFE[name].read_text().split("The paired baseline is this file with")[1].splitlines()[1]
    overrides = comment.removeprefix("#").split()
    safe, original = (load(ImitationConfig, SAFE[name], more).model_dump() for more in ((), overrides))
    differing = {
        f"{section}.{key}"
        for section, keys in safe.items()
        if isinstance(keys, dict)
        for key in keys
        if keys[key] != original[section][key]
    }
    assert differing - {"model.path"} == {"run.name", "data.train", "data.require_scrubbed"}
    assert safe["data"]["image_root"] == original["data"]["image_root"]
    assert ("model.path" in differing) == (name == "sft")  # the baseline's own stage 1


def test_safe30_the_small_variant_is_stage_two_of_another_family() -> None:
    small, large = load(ImitationConfig, CONFIGS / "05b" / "sft.yaml"), load(ImitationConfig, SAFE["sft"])
    assert small.model.path == "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
    assert (small.model.template, small.model.pad_to_square) == ("qwen", False)
    assert small.optimizer == large.optimizer
    assert small.batch.global_rows == large.batch.global_rows
    assert small.data == large.data
