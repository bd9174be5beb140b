"""Write the embedded data set and the untrained tiny model: `python jobs/make_tiny_world.py --config ...`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from jobs.command_line import main
from rlhf.config import Config, resolve
from rlhf.data.guard_world import guard_world_is_complete, write_guard_world
from rlhf.data.privacy_files import privacy_world_is_complete, write_privacy_world
from rlhf.data.synthetic import world_is_complete, write_world
from rlhf.data.template import IMAGE_TAG, TEMPLATES, render
from rlhf.models.tiny import BOS, EOS, TinyConfig, build
from rlhf.scrub.rows import REFUSAL

_WORLDS: dict[str, tuple[Callable[[Path, int], bool], Callable[[Path, int], None]]] = {
    "spa_vl": (world_is_complete, write_world),
    "safe_llava": (privacy_world_is_complete, write_privacy_world),
    "guard": (guard_world_is_complete, write_guard_world),
}
_REFUSALS = 200  # as often as a frequent answer


class TinyWorldConfig(Config):
    """The world and the model that lives in it."""

    kind: Literal["spa_vl", "safe_llava", "guard"] = "spa_vl"
    """spa_vl: harm scenes, preference pairs. safe_llava: leaky files, PRISM's questions. guard: scenes and policies."""
    folder: str = "./runs/tiny/world"
    """Where both are written."""
    seed: int = 0
    """Same seed, same bytes."""
    template: str = "llava_hf"
    """Prompt format that the tokenizer is trained on."""
    model: TinyConfig = TinyConfig()


def run(config: TinyWorldConfig) -> Path:
    """Write what is missing; returns the folder."""
    folder = Path(resolve(config.folder))
    complete, write = _WORLDS[config.kind]
    model = folder / "untrained_model"
    if not complete(folder, config.seed):
        print(f"drawing the tiny world into {folder} ...", flush=True)
        (model / "config.json").unlink(missing_ok=True)  # its tokenizer learned the words of another world
        write(folder, config.seed)
    if not (model / "config.json").exists():
        build(config.model, _corpus(folder, config), model, config.seed)
    print(f"the tiny world and its untrained model are in {folder}", flush=True)
    return folder


def _corpus(folder: Path, config: TinyWorldConfig) -> Iterator[str]:
    others = ("train.json", "train_answers.json") if config.kind == "guard" else ("sft.json",)
    for name in ("pretrain.json", *others):
        for row in json.loads((folder / name).read_text()):
            values = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
            turns = list(zip(values[::2], values[1::2], strict=True))
            rendered = render(TEMPLATES[config.template], turns, image_tag=IMAGE_TAG, eos=EOS, reserved=(BOS, EOS))
            yield rendered.text
    if config.kind == "safe_llava":  # a tokenizer for both twins: what the scrubbed one says is in no leaky file
        yield from [REFUSAL] * _REFUSALS


if __name__ == "__main__":
    main(TinyWorldConfig, run, __doc__ or "")
