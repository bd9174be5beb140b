"""What a person meets on the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
JOBS = (
    "prepare_spa_vl",
    "scrub_safe_llava",
    "pair_safe_llava",
    "prove_vlguard",
    "prove_guard_reward",
    "make_tiny_world",
    "pretrain_safe_llava",
    "sft_safe_llava",
    "train_reward_model",
    "ppo_spa_vl",
    "mix_vlguard",
    "clean_training_data",
    "annotate_images",
    "moderate_images",
    "infer",
    "serve",
    "evaluate",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("job", JOBS)
def test_help_names_keys_with_their_meaning(job: str) -> None:
    done = run(f"jobs/{job}.py", "--help")
    assert done.returncode == 0
    assert "configuration keys:" in done.stdout
    assert "default" in done.stdout


def test_a_bad_configuration_exits_with_2_and_every_problem() -> None:
    done = run("jobs/ppo_spa_vl.py", "--config", "jobs/configs/tiny/ppo.yaml", "loop.iteration=3", "algorithm.gamma=7")
    assert done.returncode == 2
    assert "did you mean loop.iterations?" in done.stderr
    assert "algorithm.gamma" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_model_says_which_stage_writes_it(tmp_path: Path) -> None:
    done = run(
        "jobs/ppo_spa_vl.py", "--config", "jobs/configs/tiny/ppo.yaml",
        f"run.root={tmp_path}", "model.path=./runs/nowhere/model",
    )  # fmt: skip
    assert done.returncode == 2
    assert "run the stage that writes it first" in done.stderr
