"""What a person meets on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import evaluate, judge_answers, mix_vlguard, prepare_vlguard
from jobs.clean_training_data import CleanConfig
from jobs.clean_training_data import run as clean_training_data
from jobs.command_line import main
from tests.vlguard_files import SORRY, put, safe_row, unsafe_row

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


def files_of(folder: Path) -> dict[str, Path]:
    """A small file of each kind that VLGuard's commands read."""
    rows = [unsafe_row("a"), safe_row("b")]
    answers = {"bad_ads/a.png": SORRY}
    asked = {"question_id": 1, "prompt": "Who is it?", "text": "Somebody."}
    (folder / "prism.jsonl").write_text(json.dumps(asked) + "\n")
    prepare_vlguard.run(put(folder / "meta.json", rows), folder / "llava.json")
    return {
        "meta": folder / "meta.json",
        "answers": put(folder / "answers.json", answers),
        "llava": folder / "llava.json",
        "prism": folder / "prism.jsonl",
    }


def commands(files: dict[str, Path], output: Path) -> dict[str, Callable[[], None]]:
    """Every command that reads and writes files of a person's choice, with this output."""
    meta, answers = ["--meta", str(files["meta"])], ["--answers", str(files["answers"])]
    judge, mix = ["--output", str(output), "--benchmark"], [f"safety={files['llava']}", "helpful_rows=0"]
    clean = [f"source={files['llava']}", f"scored={output.parent}/scored"]
    return {
        "prepare": lambda: prepare_vlguard.main([*meta, "--output", str(output)]),
        "judge": lambda: judge_answers.main([*judge, "vlguard", "--subset", "unsafes", *meta, *answers]),
        "prism": lambda: judge_answers.main([*judge, "prism", "--answers", str(files["prism"])]),
        "mix": lambda: main(mix_vlguard.MixConfig, mix_vlguard.run, "", [*mix, f"output={output}"]),
        "clean": lambda: main(CleanConfig, clean_training_data, "", [*clean, f"output={output}"]),
    }


@pytest.mark.parametrize(("name", "read"), [
    ("prepare", "meta"), ("judge", "answers"), ("judge", "meta"), ("prism", "prism"),
    ("mix", "llava"), ("clean", "llava"),
])  # fmt: skip
def test_an_output_that_cannot_be_written_or_is_read_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, read: str
) -> None:
    files = files_of(tmp_path)
    before = {one: path.read_bytes() for one, path in files.items()}
    (tmp_path / "link.json").symlink_to(files[read])
    for output, reason in (
        (tmp_path, "is a folder; name a file"),
        (files["answers" if read == "meta" else "meta"] / "x.json", "Error: [Errno"),  # below a file
        (files[read], "is read by this job; name another file"),
        (tmp_path / "link.json", "is read by this job; name another file"),
    ):
        with pytest.raises(SystemExit) as ended:
            commands(files, output)[name]()
        said = capsys.readouterr().err.strip()
        assert (ended.value.code, len(said.splitlines())) == (1, 1), said
        assert reason in said
    assert {one: path.read_bytes() for one, path in files.items()} == before


def test_an_output_that_nobody_reads_any_more_is_no_traceback(tmp_path: Path) -> None:
    files = ["--meta", str(files_of(tmp_path)["meta"]), "--output", str(tmp_path / "new.json")]
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [sys.executable, "jobs/prepare_vlguard.py", *files],
        cwd=ROOT, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    os.close(theirs)
    assert (done.returncode, done.stderr.strip()) == (1, "BrokenPipeError: [Errno 32] Broken pipe")
    assert (tmp_path / "new.json").exists()


@pytest.mark.parametrize("arguments", [
    ["--benchmark", "vlguard", "run.name=x"],
    ["run.name=x", "--benchmark", "vlguard"],
    ["--benchmark=vlguard", "run.name=x"],
])  # fmt: skip
def test_a_benchmark_is_named_anywhere_on_the_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.command(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "vlguard: required key is missing" in said
    assert "no benchmark is given" not in said


def test_an_unknown_benchmark_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.command(["--config", "jobs/configs/tiny/evaluate.yaml", "--benchmark", "vlgard"])
    assert ended.value.code == 2
    assert re.search("invalid choice: 'vlgard'.*prism.*vlguard.*guard", capsys.readouterr().err)
