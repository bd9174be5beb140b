"""Other architectures on real DeepSpeed ranks: tied embeddings and newline embeddings, whole and partitioned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.models.adapters import merge_directory
from rlhf.models.keys import from_hub, part_of
from tests.integration.conftest import Trained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["llava_interleave", "llava_onevision", "qwen2_5_vl"])
def test_zero3_trains_and_exports_other_architectures(learners: dict[str, Trained], kind: str) -> None:
    """Rank 1 of 2 sees no image at all."""
    one, two = learners[f"{kind} one"], learners[f"{kind} two"]
    for step, expected in zip(two.results[0]["steps"], one.results[0]["steps"], strict=True):
        assert step["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    before = load_file(f"{one.model.path}/model.safetensors")
    whole, sharded = (load_file(run.folder / "exported" / "model.safetensors") for run in (one, two))
    assert before.keys() == whole.keys() == sharded.keys()
    assert not any("lm_head" in name for name in before)  # tied
    moved = {name for name in before if not torch.equal(before[name], sharded[name])}
    assert {name for name in before if part_of(from_hub(name, two.names)) != "tower"} == moved
    for name in before:
        torch.testing.assert_close(sharded[name], whole[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(two.answers(two.folder / "exported"), two.trained, atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen2_5_vl"])
def test_lora_moves_what_pefts_format_carries(learners: dict[str, Trained], tmp_path: Path, kind: str) -> None:
    """Adapters and projector; it has no place for a newline embedding."""
    run = learners[f"{kind} lora two"]
    assert all(result["moved"] > 0.01 and result["as_loaded"] < 1e-6 for result in run.results)
    before = load_file(f"{run.model.path}/model.safetensors")
    after = load_file(run.folder / "exported" / "model.safetensors")
    still = {from_hub(name, run.names) for name in before if torch.equal(before[name], after[name])}
    assert ("model.image_newline" in still) == (kind == "llava_onevision")
    assert {part_of(name) for name in still} == {"tower", "language"}
    assert not any(name.endswith("q_proj.weight") and part_of(name) == "language" for name in still)
    adapter = run.folder / "exported" / "adapter"
    torch.testing.assert_close(run.answers(adapter=adapter), run.trained, atol=2e-4, rtol=0)
    assert_peft_loads(run, adapter, after)
    settings = run.model.model_copy(update={"adapter": str(adapter)})
    merge_directory(settings, tmp_path / "merged")
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(ours[name], after[name]) for name in after if from_hub(name, run.names) in still)
    torch.testing.assert_close(run.answers(tmp_path / "merged"), run.trained, atol=2e-4, rtol=0)


def assert_peft_loads(run: Trained, adapter: Path, exported: dict[str, torch.Tensor]) -> None:
    """PEFT's own merge onto the base gives the exported weights, projector included."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base = AutoModelForImageTextToText.from_pretrained(run.model.path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().state_dict()
    for name, tensor in exported.items():
        if part_of(inner := from_hub(name, run.names)) in ("language", "projector"):
            torch.testing.assert_close(merged[inner], tensor, atol=1e-6, rtol=0, msg=name)
