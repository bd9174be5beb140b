"""Checkpoints are complete or not there; a run folder belongs to one process and one configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.checkpoint import CheckpointStore, RunFolder, discard
from rlhf.config import Config, ModelConfig, RunConfig, load
from rlhf.errors import CheckpointError


class OfModel(Config):
    run: RunConfig
    model: ModelConfig


class Whole(Config):
    run: RunConfig
    lr: float = 0.1


def _save(store: CheckpointStore, step: int, content: str = "weights", pinned: int | None = None) -> Path:
    folder = store.begin(step)
    (folder / "policy").mkdir()
    (folder / "policy" / "shard.bin").write_text(f"{content} {step}")
    return store.commit(step, {"iteration": step}, pinned).folder


def test_the_newest_complete_checkpoint_is_found_with_its_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    assert store.latest() is None
    _save(store, 5)
    _save(store, 10)
    found = store.latest()
    assert found is not None
    assert (found.step, found.state) == (10, {"iteration": 10})
    assert (found.folder / "policy" / "shard.bin").read_text() == "weights 10"


def test_only_the_newest_are_kept_and_steps_sort_by_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (9, 10, 100, 1000):
        _save(store, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]


def test_a_pinned_checkpoint_stays_beside_the_newest_until_another_is_pinned(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    on_disk = []
    for step, pinned in ((1, 1), (2, 1), (3, 1), (4, 1), (5, 5), (6, 5), (7, 5)):
        _save(store, step, pinned=pinned)
        on_disk.append([int(path.name.removeprefix("step-")) for path in sorted(tmp_path.iterdir())])
    assert on_disk == [[1], [1, 2], [1, 2, 3], [1, 3, 4], [3, 4, 5], [4, 5, 6], [5, 6, 7]]
    held = store.at(5)
    assert held is not None
    assert (held.step, held.state) == (5, {"iteration": 5})
    assert (held.folder / "policy" / "shard.bin").read_text() == "weights 5"


def test_a_checkpoint_asked_for_by_its_step_is_intact_or_none(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=9)
    folder = _save(store, 5)
    assert store.at(4) is None
    (folder / "policy" / "shard.bin").write_text("weights 6")
    assert store.at(5) is None
    assert [reason.partition(":")[0] for reason in store.skipped] == ["step-00000004", "step-00000005"]


def test_a_crash_while_saving_leaves_the_previous_one_in_use(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    _save(store, 5)
    (store.begin(10) / "half").write_text("")  # the process dies here
    found = CheckpointStore(tmp_path, keep=2).latest()
    assert found is not None
    assert found.step == 5
    assert _save(CheckpointStore(tmp_path, keep=2), 10).name == "step-00000010"


def test_sigkill_at_every_point_of_a_save_never_loses_the_previous_checkpoint(tmp_path: Path) -> None:
    """The real process is killed at each system call that the save makes."""
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from rlhf import checkpoint\n"
        "store = checkpoint.CheckpointStore(Path(sys.argv[1]), keep=1)\n"
        "budget = int(sys.argv[2])\n"
        "def dying(original):\n"
        "    def call(*args, **kwargs):\n"
        "        global budget\n"
        "        budget -= 1\n"
        "        if budget < 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return original(*args, **kwargs)\n"
        "    return call\n"
        "for owner, name in ((os, 'fsync'), (os, 'open'), (Path, 'rename'), (Path, 'write_text'), (Path, 'mkdir'),\n"
        "                    (checkpoint.shutil, 'rmtree')):\n"
        "    setattr(owner, name, dying(getattr(owner, name)))\n"
        "folder = store.begin(10)\n"
        "(folder / 'shard.bin').write_text('new')\n"
        "store.commit(10, {})\n"
    )
    outcomes = set()
    for budget in range(40):
        folder = tmp_path / str(budget)
        _save(CheckpointStore(folder, keep=1), 5)
        done = subprocess.run([sys.executable, "-c", script, str(folder), str(budget)], check=False, timeout=60)
        found = CheckpointStore(folder, keep=1).latest()
        assert found is not None
        assert found.step in (5, 10)
        outcomes.add((done.returncode == 0, found.step))
        if done.returncode == 0:
            break
    assert {(False, 5), (False, 10), (True, 10)} <= outcomes  # killed before, killed after the rename, not killed


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_reason(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    _save(store, 5)
    newest = _save(store, 10)
    shard = newest / "policy" / "shard.bin"
    match damage:
        case "flip":
            shard.write_text("weighty 10"[:10])
        case "truncate":
            shard.write_text("wei")
        case "remove":
            shard.unlink()
        case _:
            (newest / "manifest.json").write_text("{")
    found = store.latest()
    assert found is not None
    assert found.step == 5
    assert store.skipped[0].startswith("step-00000010: ")


def used(run: RunConfig, whole: Config, free: tuple[str, ...] = ()) -> Path:
    """The folder of a run that made something."""
    folder = RunFolder(run, whole, free)
    (folder.path / "metrics.jsonl").write_text("{}\n")
    folder.close()
    return folder.path


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    config = Whole(run=RunConfig(name="a", root=str(tmp_path)))
    first = RunFolder(config.run, config)
    with pytest.raises(CheckpointError, match="in use by another process"):
        RunFolder(config.run, config)
    first.close()
    RunFolder(config.run, config).close()


def test_a_run_refuses_another_configuration_with_the_difference(tmp_path: Path) -> None:
    run = RunConfig(name="a", root=str(tmp_path))
    used(run, Whole(run=run))
    with pytest.raises(CheckpointError, match=r"-lr: 0.1\n  \+lr: 0.2"):
        RunFolder(run, Whole(run=run, lr=0.2))
    more_often = run.model_copy(update={"checkpoint_every": 1, "log_every": 1})
    RunFolder(more_often, Whole(run=more_often)).close()
    discard(run)
    RunFolder(run, Whole(run=run, lr=0.2)).close()


def test_a_run_that_made_nothing_yet_may_be_given_another_configuration(tmp_path: Path) -> None:
    """What refuses its inputs leaves the rows that it refused, and images that it unpacked to look at them."""
    run = RunConfig(name="a", root=str(tmp_path))
    folder = RunFolder(run, Whole(run=run))
    (folder.path / "rejected.jsonl").write_text("{}\n")
    (folder.path / "images").mkdir()
    folder.close()
    RunFolder(run, Whole(run=run, lr=0.2)).close()
    assert load(Whole, folder.path / "config.yaml").lr == 0.2
    for made in ("checkpoints", "evaluation", "generation"):
        (folder.path / made).mkdir()
        RunFolder(run, Whole(run=run, lr=0.2)).close()
        with pytest.raises(CheckpointError, match=r"\+lr: 0.3"):
            RunFolder(run, Whole(run=run, lr=0.3))
        (folder.path / made).rmdir()


def test_a_run_that_is_older_than_a_key_goes_on_with_its_default_only(tmp_path: Path) -> None:
    run = RunConfig(name="a", root=str(tmp_path))
    folder = used(run, Whole(run=run))
    (folder / "config.yaml").write_text(f"run: {{name: a, root: {tmp_path}}}\n")  # before there was an `lr`
    RunFolder(run, Whole(run=run)).close()
    with pytest.raises(CheckpointError, match="lr: 0.2"):
        RunFolder(run, Whole(run=run, lr=0.2))
    (folder / "config.yaml").write_text(f"run: {{name: a, root: {tmp_path}}}\nlr: 0.1\nmomentum: 0.9\n")
    with pytest.raises(CheckpointError, match="momentum"):
        RunFolder(run, Whole(run=run))


def test_a_section_that_no_result_depends_on_may_change(tmp_path: Path) -> None:
    run, model = RunConfig(name="a", root=str(tmp_path)), ModelConfig(path="./llava-7b")
    used(run, OfModel(run=run, model=model), free=("model",))
    other = OfModel(run=run, model=ModelConfig(path="./llava-13b"))
    RunFolder(run, other, free=("model",)).close()
    with pytest.raises(CheckpointError, match=r"path: ./llava-13b"):
        RunFolder(run, other)


@pytest.mark.parametrize(("key", "value"), [("path", "./llava-13b"), ("adapter", "./adapter"), ("dtype", "float32")])
def test_checkpoints_of_another_model_are_never_resumed(tmp_path: Path, key: str, value: str) -> None:
    run, model = RunConfig(name="a", root=str(tmp_path)), ModelConfig(path="./llava-7b")
    used(run, OfModel(run=run, model=model))
    with pytest.raises(CheckpointError, match=rf"\+  {key}: {value}[\s\S]*run.name") as caught:
        RunFolder(run, OfModel(run=run, model=model.model_copy(update={key: value})))
    assert str(tmp_path / "a") in str(caught.value)


def test_a_uri_root_is_mirrored_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig(name="deep/run", root=f"file://{tmp_path}/bucket")
    monkeypatch.setenv("SAFEVL_HOME", str(tmp_path / "first"))
    folder = RunFolder(run, Whole(run=run))
    _save(folder.checkpoints, 5)
    folder.mark_complete()
    folder.close()
    assert (tmp_path / "bucket/deep/run/checkpoints/step-00000005/policy/shard.bin").read_text() == "weights 5"
    monkeypatch.setenv("SAFEVL_HOME", str(tmp_path / "second"))  # another machine
    again = RunFolder(run, Whole(run=run))
    found = again.checkpoints.latest()
    assert again.complete
    assert found is not None
    assert found.step == 5
    again.close()
    discard(run)
    assert not (tmp_path / "bucket/deep/run").exists()
