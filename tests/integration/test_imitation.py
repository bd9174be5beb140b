"""Pretraining and instruction tuning on real DeepSpeed ranks: what trains, and what neither ranks nor a kill change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.fakes import draw_images, tiny_model
from tests.integration.ranks import run_ranks

pytestmark = pytest.mark.slow
SFT: dict[str, Any] = {"deepspeed": {"zero_stage": 2}}
LORA = {
    "trainable": {"lora": {"rank": 4, "alpha": 8, "dropout": 0.05}},
    "optimizer": {"lr": 2e-4, "projector_lr": 2e-5},
}
ON_ONE = {
    "pretrain": SFT | {"trainable": {"language_model": False}, "optimizer": {"lr": 1e-3}},
    "sft": SFT,
    "lora": SFT | LORA,
    "killed": SFT | LORA,  # with dropout
}
ON_TWO = {
    "sft two": SFT,
    "sft sharded": {"deepspeed": {"zero_stage": 3, "whole_below": 100}},
    "lora sharded": LORA | {"deepspeed": {"zero_stage": 3, "whole_below": 100}},
    "killed two": SFT,
}


@dataclass(frozen=True)
class Runs:
    """What the runs left, by name; `before` are the weights that all of them began from."""

    folder: Path
    before: dict[str, torch.Tensor]

    def curve(self, name: str) -> list[dict[str, float]]:
        """Every step's numbers, but for its wall time and the memory of its process."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in line if key not in ("time", "seconds/step", "memory_gib")} for line in lines]

    def after(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")

    def result(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / f"{name}_0.json").read_text())


def write_rows(folder: Path, images: list[str]) -> None:
    """Conversations of one to three rounds, every third without an image; one is longer than the context."""
    rows: list[dict[str, Any]] = []
    for number in range(26):
        words = "word " * (200 if number == 7 else 1 + 5 * number % 23)
        turns = []
        for place in range(1 + number % 3):
            question = f"Question {place}?" + ("\n<image>" if number % 3 and not place else "")
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": f"{words}{number}."}]
        image = {"image": Path(images[number % len(images)]).name} if number % 3 else {}
        rows.append({"id": number, "conversations": turns, **image})
    captions = [row | {"conversations": row["conversations"][:2]} for row in rows if "image" in row]
    (folder / "sft.json").write_text(json.dumps(rows))
    (folder / "pretrain.json").write_text(json.dumps(captions))


def configuration(folder: Path, name: str, ranks: int, variant: dict[str, Any]) -> dict[str, Any]:
    plain = name == "pretrain"
    return {
        "run": {"name": name, "root": str(folder), "log_every": 1, "checkpoint_every": 3},
        "model": {
            "path": str(folder / "start"),
            "dtype": "float32",
            "max_length": 128,
            "template": "plain" if plain else "llava_hf",
            "pad_to_square": not plain,
        },
        "optimizer": {"lr": 1e-3, "warmup_ratio": 0.03},
        "batch": {"global_rows": 4, "micro_rows": 1, "group_by_modality": True, "length_window": 2},
        "workers": {"ranks": ranks},
        "epochs": 1.5,  # 9 steps over 26 rows, so that a checkpoint is in mid-epoch
        "data": {
            "train": str(folder / ("pretrain.json" if plain else "sft.json")),
            "image_root": str(folder / "images"),
            "too_long": "truncate",
        },
        **variant,
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("imitation")
    tiny_model(folder / "start")
    write_rows(folder, draw_images(folder / "images"))
    for ranks, variants in ((1, ON_ONE), (2, ON_TWO)):
        trees = {name: configuration(folder, name, ranks, variant) for name, variant in variants.items()}
        last = list(trees)[-1]
        with pytest.raises(AssertionError):  # the ranks were killed
            run_ranks(
                "tests.integration.imitation_worker", {"out": str(folder), "variants": trees, "kill": last}, ranks
            )
        assert not (folder / last / "model").exists()
        settings = {"out": str(folder), "variants": {last: trees[last]}, "kill": None}
        run_ranks("tests.integration.imitation_worker", settings, ranks)
    return Runs(folder, load_file(folder / "start" / "model.safetensors"))


def moved(runs: Runs, name: str) -> set[str]:
    """Parts of the model of which any weight changed."""
    after = runs.after(name)
    assert after.keys() == runs.before.keys()
    return {key.split(".")[0] for key in after if not torch.equal(after[key], runs.before[key])}


def test_safe18_safe20_stage_one_moves_the_projector_alone(runs: Runs) -> None:
    assert moved(runs, "pretrain") == {"multi_modal_projector"}
    losses = [line["loss"] for line in runs.curve("pretrain")]
    assert len(losses) == runs.result("pretrain")["steps"] == 6
    assert losses[-1] != losses[0]


def test_safe18_safe21_stage_two_moves_language_model_and_projector(runs: Runs) -> None:
    for name in ("sft", "sft two", "sft sharded", "lora"):
        assert moved(runs, name) == {"language_model", "multi_modal_projector"}, name
    still = {key for key, tensor in runs.after("lora").items() if torch.equal(tensor, runs.before[key])}
    assert {key for key in still if not key.startswith("vision_tower.")} == {
        key
        for key in runs.before
        if key.startswith("language_model.") and not key.endswith("_proj.weight")  # embeddings, norms and LM head
    }


@pytest.mark.parametrize("name", ["sft two", "sft sharded"])
def test_safe26_two_workers_have_the_loss_curve_of_one(runs: Runs, name: str) -> None:
    one, two = runs.curve("sft"), runs.curve(name)
    assert [line["step"] for line in one] == list(range(1, 10))
    for expected, found in zip(one, two, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["lr"] == expected["lr"]
        assert found["batch/fill"] == expected["batch/fill"] == 1.0  # micro-batches of one row have no padding


@pytest.mark.parametrize(("undisturbed", "killed"), [("lora", "killed"), ("sft two", "killed two")])
def test_safe28_a_run_killed_in_mid_epoch_goes_on_to_the_same_numbers(
    runs: Runs, undisturbed: str, killed: str
) -> None:
    """SIGKILL of all ranks in the sixth step; the same command begins at step 3, and every number is the same."""
    assert runs.curve(killed) == runs.curve(undisturbed)
    expected = runs.after(undisturbed)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in runs.after(killed).items())


@pytest.mark.parametrize("name", ["lora", "lora sharded"])
def test_safe22_the_projector_keeps_its_own_rate_through_the_schedule(runs: Runs, name: str) -> None:
    """Under ZeRO-2 and 3: adapters, then the projector's matrices and its biases."""
    rates = runs.result(name)["rates"]
    last = runs.curve(name)[-1]["lr"]
    assert 0 < last < 2e-4
    assert rates == pytest.approx([last, last / 10, last / 10])
