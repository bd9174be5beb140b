"""Roles that never learn, whole on every rank or shared out over two real ones: the same numbers from less memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.models.architecture import read_architecture
from tests.fakes import draw_images, tiny_model, tiny_reward_model
from tests.integration.ranks import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The policy's folder and what each of two ranks reports, by where the weights are."""
    folder = tmp_path_factory.mktemp("frozen")
    tiny_model(folder / "policy")
    for seed, name in enumerate(("reward", "cost"), start=1):
        tiny_reward_model(folder / name, seed)
    settings = {"out": str(folder), "models": str(folder), "images": draw_images(folder / "images")}
    run_ranks("tests.integration.frozen_worker", settings, 2)
    return folder / "policy", [json.loads((folder / f"frozen_{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("weights", ["partitioned", "offloaded"])
def test_row21_shared_weights_say_what_whole_ones_say(said: tuple[Path, list[dict[str, Any]]], weights: str) -> None:
    """Reference of PPO and of DPO, and a mixture of two reward models; 7 rows, so that one is asked twice."""
    for rank in said[1]:
        one, other = rank["whole"], rank[weights]
        assert one["rows"] == other["rows"]
        assert len(one["scores"]) == 4
        for name in ("reference", "pairs", "scores"):
            for left, right in zip(one[name], other[name], strict=True):
                assert right == pytest.approx(left, abs=1e-5), name
    assert len({tuple(rank[weights]["reference"]) for rank in said[1]}) == 2  # the ranks had different rows


def test_row21_a_rank_holds_its_share_between_two_passes(said: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, ranks = said
    elements = read_architecture(str(folder)).count("projector", "language", "lm_head")
    for rank in ranks:
        assert rank["whole"]["held"] == [elements] * 2
        assert rank["partitioned"]["held"] == rank["offloaded"]["held"]
        assert all(0.5 * elements <= held < 0.51 * elements for held in rank["partitioned"]["held"])
