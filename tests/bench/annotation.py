"""Annotation: the job beside a plain vLLM loop, two engines beside one, and memory over many images.

The guard is a random tiny model whose answers are held to the JSON of its policy and cut at 16 tokens. Job and loop are
processes of their own on one core each. Both are timed from the end of their first batch to the end of the last one,
so that imports, the engine's start and Ray's are left out on both sides; of the job, a batch ends in its ledger.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet

from rlhf.guard.policy import build_policy
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import answer_text
from rlhf.models.tiny import TinyConfig, build
from rlhf.rollout.vllm_engine import cpu_environment
from tests.bench import measure
from tests.fakes import CORPUS, draw_images

ROOT = Path(__file__).parents[2]
TURNS = 3
TOKENS = 16
_LOOK = 0.01  # seconds between looks at the ledger
_LOOK_AT_MEMORY = 0.5
_PORTS = {"SAFEVL_RAY_PORT": "6439", "SAFEVL_DASHBOARD_PORT": "8339"}
_GUARD = "tiny guard"


@dataclass
class Annotated:
    """One run: seconds at which batches ended, texts by image, peaks of resident MiB of the driver and of a worker."""

    rows: int
    ended: list[float] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    driver: float = 0.0
    worker: float = 0.0  # the largest one

    def seconds_per_image(self, batch_rows: int) -> float:
        """Without the first batch and all that came before it."""
        later = self.rows - batch_rows
        return (self.ended[-1] - self.ended[0]) / later


def run(folder: Path, small: bool) -> list[measure.Row]:
    """All lines; `small` has few images, once."""
    batch, batches, turns = (8, 3, 1) if small else (128, 9, TURNS)
    few, many = (32, 64) if small else (1000, 10_000)
    policy = build_policy(taxonomy("tiny"))
    said = answer_text(policy, "Unsafe", policy.categories[:1], "A mask.")
    build(TinyConfig(), [*CORPUS, f"USER: {policy.text} ASSISTANT: {said}"] * 20, folder / "model")
    with _head(folder) as environment:
        bench = _Bench(folder, environment, batch)
        rows = _speed(bench, batch * batches, turns)
        return [*rows, *_two_engines(bench, rows[0].ours, few, many)]


def _speed(bench: _Bench, images: int, turns: int) -> list[measure.Row]:
    """Job and loop in turn; their answers are equal."""
    pairs = [(bench.job(f"job-{turn}", images, 1), bench.loop(images)) for turn in range(turns)]
    for job, loop in pairs:
        if job.texts != loop.texts:
            differing = sum(loop.texts.get(name) != text for name, text in job.texts.items())
            raise AssertionError(f"{differing} of {images} answers of the job are not those of the plain loop")
    ours, theirs = (statistics.median(pair[side].seconds_per_image(bench.batch) for pair in pairs) for side in (0, 1))
    note = f"one core each, {images} images, batches of {bench.batch}, {TOKENS} tokens, median of {turns}"
    return [measure.faster("annotation beside a vLLM loop", _GUARD, "images/s", 1, (ours, theirs), ">= 0.95", note)]


def _two_engines(bench: _Bench, one: float, few: int, many: int) -> list[measure.Row]:
    """Rows in and out, speed beside one engine's `one` images per second, memory of many images beside few."""
    short, long = bench.job("few", few, 2), bench.job("many", many, 2)
    speed, kept = 1 / long.seconds_per_image(bench.batch), len(long.texts) / many
    note = "two engines, a core each"
    rows = [
        measure.Row("annotation, rows out beside in", _GUARD, "rows", len(long.texts), many, kept, ">= 1.0", note),
        measure.Row("annotation, two engines beside one", _GUARD, "images/s", speed, one, speed / one, "", note),
    ]
    peaks = {"driver": (long.driver, short.driver), "worker": (long.worker, short.worker)}
    about = f"{note}; peak of {many} images beside that of {few}"
    return [
        *rows,
        *(
            measure.Row(f"annotation, memory of the {who}", _GUARD, "MiB", *both, both[0] / both[1], "<= 1.1", about)
            for who, both in peaks.items()
        ),
    ]


@dataclass(frozen=True)
class _Bench:
    """Runs of both sides on one model."""

    folder: Path
    environment: dict[str, str]
    batch: int

    def job(self, name: str, images: int, engines: int) -> Annotated:
        """The real job in a process of its own, watched from here. Every image is annotated once, or it raises."""
        config = self._config(name, images, engines)
        command = [sys.executable, str(ROOT / "jobs" / "annotate_images.py"), "--config", str(config)]
        place, log = self.folder / "runs" / name, self.folder / f"{name}.log"
        with log.open("wb") as file:
            driver = subprocess.Popen(command, env=self.environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        found = _watched(driver, place / "generation" / "guard" / "part-0001.jsonl", self.folder / "ray", images)
        if driver.returncode:
            raise AssertionError(f"the job failed:\n{log.read_text()[-3000:]}")
        rows = pyarrow.parquet.read_table(place / "annotations.parquet").to_pylist()
        wanted = {path.name for path in self._images(images).iterdir()}
        if len(rows) != images or {row["id"] for row in rows} != wanted:
            raise AssertionError(f"{len(rows)} rows, {len({row['id'] for row in rows} & wanted)} of {images} images")
        found.texts = {row["id"]: row["raw"] for row in rows}
        return found

    def loop(self, images: int) -> Annotated:
        """The plain loop in a process as fresh as the job's worker, with the worker's environment."""
        config = self._config("loop", images, 1)
        worker = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, "-m", "tests.bench.annotation", str(config), str(self._images(images))]
        environment = {**self.environment, **worker, **cpu_environment()}
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        answer = json.loads(done.stdout.splitlines()[-1])
        return Annotated(images, answer["ended"], answer["texts"])

    def _images(self, count: int) -> Path:
        folder = self.folder / f"images-{count}"
        if not folder.exists():
            draw_images(folder, count)
        return folder

    def _config(self, name: str, images: int, engines: int) -> Path:
        tree: dict[str, Any] = {
            "run": {"name": name, "root": str(self.folder / "runs")},
            "model": {
                "path": str(self.folder / "model"),
                "dtype": "float32",
                "max_length": 512,
                "template": "llava_hf",
                "pad_to_square": False,  # as the other side sees them
            },
            "sources": {"drawn": {"folder": str(self._images(images))}},
            "policy": {"taxonomy": "tiny"},
            "sampling": {"max_new_tokens": TOKENS},
            "rollout": {"dtype": "float32", "max_length": 512, "max_sequences": 128, "kv_cache_mb": 256},
            "workers": {"ranks": engines, "cpus": 1, "threads": 1},
            "unpack_workers": 1,
            "batch_rows": self.batch,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(tree))  # JSON is YAML
        return path


def _watched(driver: subprocess.Popen[bytes], ledger: Path, head: Path, rows: int) -> Annotated:
    """Until the driver ends: when lines came into its ledger, and the memory of its process and of the workers."""
    found, read, next_look = Annotated(rows), 0, 0.0
    while driver.poll() is None:
        if ledger.exists():
            with ledger.open("rb") as file:
                file.seek(read)
                new = file.read()
            read += len(new)
            found.ended += [time.monotonic()] * new.count(b"\n")
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + _LOOK_AT_MEMORY
            found.driver = max(found.driver, _peak(driver.pid))
            found.worker = max([found.worker, *map(_peak, _workers(head))])
        time.sleep(_LOOK)
    return found


def _workers(head: Path) -> set[int]:
    """Actors of Ray Data's pools below a head's processes."""
    found: set[int] = set()
    for pid in (head / "pids").read_text().split():
        try:
            below = psutil.Process(int(pid)).children(recursive=True)
            found |= {one.pid for one in below if any("MapWorker" in part for part in one.cmdline())}
        except psutil.Error:  # ended while it was looked at
            continue
    return found


def _peak(pid: int) -> float:
    """The peak of a process's resident memory in MiB; 0 for one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


@contextmanager
def _head(folder: Path) -> Iterator[dict[str, str]]:
    """A Ray head of two CPUs for all runs; gives the environment with which a job finds it."""
    state = {**_PORTS, "SAFEVL_RAY_STATE": str(folder / "ray"), "SAFEVL_CPUS": "2", "RAY_AUTH_MODE": "token"}
    environment = {**os.environ, **state, "PYTHONPATH": str(ROOT), "SAFEVL_HOME": str(ROOT)}
    script = str(ROOT / "cluster" / "local.sh")
    try:
        subprocess.run([script, "start"], env=environment, check=True, stdout=subprocess.DEVNULL)
        yield {**environment, "RAY_ADDRESS": f"127.0.0.1:{_PORTS['SAFEVL_RAY_PORT']}"}
    finally:
        subprocess.run([script, "stop"], env=environment, check=False)


def plain_loop(config_file: Path, images: Path) -> dict[str, Any]:
    """What a person would write: open the pictures of a batch, ask vLLM, keep the texts. When batches ended, and texts.

    The engine's settings are those of `VllmEngine`; log-probabilities, which it always asks for, are not asked for.
    """
    import torch
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from jobs.annotate_images import AnnotateConfig
    from rlhf.config import load
    from rlhf.guard.verdict import verdict_schema
    from rlhf.rollout.vllm_engine import answer_grammar, device_options

    config = load(AnnotateConfig, config_file)
    policy, rollout = config.policy.build(), config.rollout
    torch.set_num_threads(config.workers.threads)
    llm = LLM(
        config.model.path,
        dtype=rollout.dtype,
        seed=config.run.seed,
        max_model_len=rollout.max_length,
        max_num_seqs=rollout.max_sequences,
        limit_mm_per_prompt={"image": 1, "video": 0},
        generation_config="vllm",
        **device_options(rollout),
    )
    form = StructuredOutputsParams(grammar=answer_grammar(verdict_schema(policy)))
    params = SamplingParams(max_tokens=config.sampling.max_new_tokens, temperature=0.0, structured_outputs=form)
    prompt, paths = f"USER: <image>\n{policy.text} ASSISTANT:", sorted(images.iterdir())
    ended: list[float] = []
    texts: dict[str, str] = {}
    for batch in _cut(paths, config.batch_rows):
        opened = [Image.open(path).convert("RGB") for path in batch]
        requests = [{"prompt": prompt, "multi_modal_data": {"image": one}} for one in opened]
        outputs = llm.generate(requests, params, use_tqdm=False)
        texts |= {path.name: output.outputs[0].text.strip() for path, output in zip(batch, outputs, strict=True)}
        ended.append(time.monotonic())
    return {"ended": ended, "texts": texts}


def _cut(paths: Sequence[Path], rows: int) -> Iterator[Sequence[Path]]:
    return (paths[first : first + rows] for first in range(0, len(paths), rows))


if __name__ == "__main__":
    print(json.dumps(plain_loop(Path(sys.argv[1]), Path(sys.argv[2]))))
