"""The presets of both sizes have the numbers of VLGuard's seed page, sections 3.1 and 3.2, and fit their machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.memory import Question, Room, schema_of
from jobs.memory import size as size_of
from jobs.mix_vlguard import MixConfig
from jobs.sft_safe_llava import ImitationConfig
from jobs.vlguard import VLGuardConfig
from rlhf.config import load
from rlhf.memory import GIB
from rlhf.models.architecture import read_architecture

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
FOLDER = CONFIGS / "7b"
SIZES = ("7b", "13b")
# lr, epochs, LoRA, starts from a released model
RECIPES = {
    "vlguard_posthoc": (1e-5, 3, False, True),
    "vlguard_posthoc_lora": (2e-4, 3, True, True),
    "vlguard_mixed": (2e-5, 1, False, False),
    "vlguard_mixed_lora": (2e-4, 1, True, False),
}


def overrides(path: Path, what: str) -> list[str]:
    """What a preset's comment says after `what`."""
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"# {what}"))
    return line.partition(f"{what}: ")[2].split()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_vlguard05_vlguard06_vlguard07_the_presets_have_the_numbers_of_the_tables(name: str, size: str) -> None:
    lr, epochs, adapters, released = RECIPES[name]
    config = load(ImitationConfig, CONFIGS / size / f"{name}.yaml")
    optimizer, trainable, lora = config.optimizer, config.trainable, config.trainable.lora
    assert config.run.name == f"{size}/{name}"
    assert (optimizer.lr, config.epochs) == (lr, epochs)
    assert (optimizer.schedule, optimizer.warmup_ratio, optimizer.weight_decay) == ("cosine", 0.03, 0.0)
    assert (config.batch.global_rows, config.deepspeed.zero_stage, config.model.max_length) == (128, 3, 2048)
    assert (config.model.dtype, config.model.template, config.model.pad_to_square) == ("bfloat16", "v1", True)
    assert config.batch.group_by_modality
    assert (trainable.vision_tower, trainable.projector, trainable.language_model) == (False, True, True)
    assert (lora is not None) == adapters
    if lora is not None:
        assert (lora.rank, lora.alpha, optimizer.projector_lr, len(lora.targets)) == (128, 256, 2e-5, 7)
    starts = f"llava-hf/llava-1.5-{size}-hf" if released else f"./runs/{size}/pretrain_original/model"
    assert config.model.path == starts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_vlguard05_the_global_batch_is_128_for_any_number_of_workers(name: str, size: str) -> None:
    for ranks in (1, 2, 4, 8):
        batch = load(ImitationConfig, CONFIGS / size / f"{name}.yaml", [f"workers.ranks={ranks}"]).batch
        assert batch.per_rank(ranks) * ranks == 128
        assert batch.per_rank(ranks) % batch.micro_rows == 0


@pytest.mark.parametrize("name", RECIPES)
def test_vlguard05_vlguard06_the_larger_presets_differ_in_model_names_and_micro_batch_only(name: str) -> None:
    small, large = (load(ImitationConfig, CONFIGS / size / f"{name}.yaml").model_dump() for size in SIZES)
    for keys in (("run", "name"), ("model", "path"), ("batch", "micro_rows")):
        for one in (small, large):
            del one[keys[0]][keys[1]]
    assert small == large


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_vlguard05_vlguard06_the_presets_fit_eight_gpus_of_80_gb(name: str, size: str) -> None:
    """80 GB are 74.5 GiB. Mixed fine-tuning starts from a model of the same shapes that is not there yet."""
    path, model = CONFIGS / size / f"{name}.yaml", (f"model.path=llava-hf/llava-1.5-{size}-hf",)
    asked = Question(schema_of(path, model), path, model, Room(int(74.5 * GIB), 24 * GIB), read_architecture)
    sized = size_of(asked)
    assert sized.gpus == 8
    assert [sized.problems(device, asked.room) for device in sized.devices] == [[]] * 8
    if size == "13b":  # as its head says
        total = max(role.footprint.total for role in sized.roles.values()) / GIB
        assert f"takes {total:.0f} GiB each" in path.read_text()


def test_vlguard07_the_tiny_adapters_train_on_the_mixture_of_the_proof() -> None:
    full, adapters = (load(ImitationConfig, CONFIGS / "tiny" / f"vlguard_posthoc{end}.yaml") for end in ("", "_lora"))
    assert adapters.trainable.lora is not None
    assert (adapters.data, adapters.model, adapters.epochs) == (full.data, full.model, full.epochs)


def test_vlguard05_vlguard06_steps_at_full_size() -> None:
    """Section 3.1: 7,000 rows in batches of 128, three times, are about 164 steps; mixed is one pass over 667k."""
    posthoc = load(ImitationConfig, FOLDER / "vlguard_posthoc.yaml")
    assert posthoc.total_steps(2000 + 5000) == 164
    mixed = load(ImitationConfig, FOLDER / "vlguard_mixed.yaml")
    assert mixed.total_steps(665_298 + 2000) == 5213


def test_vlguard06_the_mixture_that_the_presets_train_on() -> None:
    path = FOLDER / "vlguard_mix.yaml"
    posthoc = load(MixConfig, path)
    assert (posthoc.helpful_rows, posthoc.safety_rows, posthoc.hold_out) == (5000, None, ())
    line = next(line for line in path.read_text().splitlines() if "helpful_rows=null" in line)
    mixed = load(MixConfig, path, line.removeprefix("#").split())
    assert mixed.helpful_rows is None
    trained = {name: load(ImitationConfig, FOLDER / f"{name}.yaml").data.train for name in RECIPES}
    assert {trained["vlguard_posthoc"], trained["vlguard_posthoc_lora"]} == {posthoc.output}
    assert {trained["vlguard_mixed"], trained["vlguard_mixed_lora"]} == {mixed.output}


def test_vlguard16_the_readmes_sweep_trains_on_the_mixture_that_it_made() -> None:
    lines = [line.replace("$n", "500") for line in (CONFIGS.parents[1] / "README.md").read_text().splitlines()]
    (mixing,) = (line.split()[4:] for line in lines if "safety_rows=500" in line)
    (training,) = (line.split()[4:] for line in lines if "run.name=7b/vlguard_size_500" in line)
    mixture = load(MixConfig, FOLDER / "vlguard_mix.yaml", mixing)
    trained = load(ImitationConfig, FOLDER / "vlguard_posthoc.yaml", training)
    assert (mixture.safety_rows, trained.data.train) == (500, mixture.output)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vlguard_mixed", "vlguard_mixed_lora"])
def test_vlguard08_training_on_filtered_data_differs_in_its_data_only(name: str, size: str) -> None:
    path = CONFIGS / size / f"{name}.yaml"
    mixed = load(ImitationConfig, path).model_dump()
    clean = load(ImitationConfig, path, overrides(path, "Re-training on filtered data instead")).model_dump()
    differing = {
        f"{section}.{key}"
        for section, keys in mixed.items()
        if isinstance(keys, dict)
        for key in keys
        if keys[key] != clean[section][key]
    }
    assert differing == {"run.name", "data.train"}


def test_vlguard09_the_evaluation_is_greedy_with_256_tokens() -> None:
    config = load(VLGuardConfig, FOLDER / "vlguard_evaluate.yaml")
    assert (config.sampling.temperature, config.sampling.max_new_tokens) == (0, 256)
    assert config.vlguard.subsets == ("unsafes", "safe_unsafes", "safe_safes")
    assert config.refusals.model_dump() == {"fold_apostrophes": False, "word_boundaries": False}
    assert config.win_rate is not None
    assert (config.win_rate.swap, config.win_rate.max_tokens) == (False, 2)
