"""Old LLaVA checkpoints <-> transformers directories, a first model from a decoder and a tower, or model plus adapter:
`python jobs/convert_llava.py direction=to_hub source=liuhaotian/llava-v1.5-7b target=./models/llava-1.5-7b`.

No weights are loaded into a model: tensors are renamed and copied shard by shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from jobs.command_line import main
from rlhf.config import Config, ModelConfig, resolve
from rlhf.errors import ConfigError

CLIP = "openai/clip-vit-large-patch14-336"


class ConvertConfig(Config):
    """One conversion."""

    direction: Literal["to_hub", "to_native", "assemble", "merge"]
    """to_hub: from the original LLaVA code's layout to the one that transformers and vLLM load; to_native: back;
    assemble: a Llama decoder (`lmsys/vicuna-7b-v1.5`), a tower and a random projector, for stage 1;
    merge: a transformers directory and a PEFT adapter of it, for engines."""
    source: str
    """"./folder", absolute, or a hub id (`liuhaotian/llava-v1.5-7b`, `AIML-TUDA/LlavaGuard-v1.2-7B-OV`): LLaVA-1.5 or
    LLaVA-OneVision with a Qwen2 decoder; merge: any model that jobs load."""
    adapter: str | None = None
    """merge: PEFT LoRA directory, such as adapter/ in the model folder of a run with trainable.lora."""
    target: str
    """Folder that must not exist yet."""
    vision_tower: str | None = None
    """CLIP (LLaVA-1.5) or SigLIP (OneVision) directory or hub id. to_hub: the checkpoint's own if unset. to_native:
    what the checkpoint will name."""
    seed: int = 0
    """assemble: of the projector's random start."""

    @model_validator(mode="after")
    def _adapter_is_merged(self) -> ConvertConfig:
        if (self.direction == "merge") != (self.adapter is not None):
            raise ConfigError(["adapter: direction=merge needs it, and no other direction takes one"])
        return self


def run(config: ConvertConfig) -> Path:
    """Convert; returns the new folder."""
    from rlhf.data.processor import check_architecture
    from rlhf.models import native, native_onevision
    from rlhf.models.adapters import merge_directory
    from rlhf.models.assemble import assemble
    from rlhf.models.conversion import find, read_json

    target, tower = Path(resolve(config.target)), config.vision_tower
    if config.direction == "merge":
        model = ModelConfig(path=config.source, adapter=config.adapter)
        check_architecture(model, "source")
        merge_directory(model, target)
    elif config.direction == "assemble":
        assemble(config.source, tower or CLIP, target, config.seed)
    elif native_onevision.is_onevision(read_json(find(config.source, "source") / "config.json")):
        if config.direction == "to_hub":
            native_onevision.to_hub_layout(config.source, target, tower)
        else:
            native_onevision.to_native_layout(config.source, target, tower or native_onevision.SIGLIP)
    elif config.direction == "to_hub":
        native.to_hub_layout(config.source, target, tower)
    else:
        native.to_native_layout(config.source, target, tower or CLIP)
    print(f"converted {config.source} into {target}", flush=True)
    return target


if __name__ == "__main__":
    main(ConvertConfig, run, __doc__ or "")
