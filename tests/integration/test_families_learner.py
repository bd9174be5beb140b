"""Other architectures on real DeepSpeed ranks: tied embeddings and newline embeddings, whole and partitioned."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.conftest import Trained

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["llava_interleave", "llava_onevision"])
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
    assert {name for name in before if not name.startswith("vision_tower.")} == moved
    for name in before:
        torch.testing.assert_close(sharded[name], whole[name], atol=2e-5, rtol=0)
    torch.testing.assert_close(two.answers(two.folder / "exported"), two.trained, atol=2e-4, rtol=0)


def test_lora_leaves_the_newline_embedding_alone(learners: dict[str, Trained]) -> None:
    """PEFT's format could not carry it."""
    run = learners["llava_onevision lora two"]
    assert all(result["moved"] > 0.01 and result["as_loaded"] < 1e-6 for result in run.results)
    before = load_file(f"{run.model.path}/model.safetensors")
    after = load_file(run.folder / "exported" / "model.safetensors")
    assert torch.equal(before["image_newline"], after["image_newline"])
    onto_base = run.answers(adapter=run.folder / "exported" / "adapter")
    torch.testing.assert_close(onto_base, run.trained, atol=2e-4, rtol=0)
