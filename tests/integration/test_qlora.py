"""QLoRA on a real DeepSpeed engine: what is quantised, what is not, and what an export is worth (row 30)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import DeepSpeedConfig, LoraConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.errors import ConfigError
from rlhf.models.build import build_learner
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from tests.fakes import CORPUS

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

LORA = TrainableConfig(lora=LoraConfig(rank=4, alpha=8))
WORKER = """
import json, os, sys
from pathlib import Path
import torch
from rlhf.algorithms.sft import sft_objective
from rlhf.batch import Prompt
from rlhf.config import DeepSpeedConfig, LoraConfig, ModelConfig, OptimizerConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.learner import join_process_group
from rlhf.models.build import build_learner
from rlhf.models.export import export
from rlhf.models.heads import PolicyModel
out, config = Path(sys.argv[1]), ModelConfig.model_validate_json(sys.argv[2])
join_process_group("gloo")
processor = Processor.load(config)
learner = build_learner(PolicyModel, config, TrainableConfig(lora=LoraConfig(rank=4, alpha=8)),
                        OptimizerConfig(lr=1e-2, schedule="constant"), DeepSpeedConfig(zero_stage=2), 5, processor)
batch = processor.collate([processor.encode(Prompt("a", "What is it?"), "yes yes yes no")])
losses = [learner.step([batch], lambda e, b: sft_objective(e(b)[0], b, float(b.response_mask.sum())))["loss"]
          for _ in range(4)]
export(learner, out)
(out / "losses.json").write_text(json.dumps(losses))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("qlora") / "model"
    sizes = TinyConfig(
        vocabulary=500, hidden=128, layers=2, vision_layers=2, heads=4, image_size=24, patch_size=8, context=512
    )  # 4-bit kernels take blocks of 64
    build(sizes, CORPUS * 4, folder, 0)
    return ModelConfig(path=str(folder), dtype="float32", max_length=256, template="llava_hf")


@pytest.mark.parametrize(("quantise", "stored"), [("nf4", torch.uint8), ("int8", torch.int8)])
def test_row30_only_the_decoders_matrices_are_quantised(model: ModelConfig, quantise: str, stored: torch.dtype) -> None:
    backbone = load(model.model_copy(update={"quantise": quantise}), LORA)
    kinds = {name: parameter.dtype for name, parameter in backbone.vlm.named_parameters()}
    matrices = [name for name in kinds if name.endswith("base_layer.weight")]
    assert len(matrices) == 2 * 7
    assert {kinds[name] for name in matrices} == {stored}
    assert {kind for name, kind in kinds.items() if name not in matrices} == {torch.float32}  # norms, head, adapters
    trained = {name for name, parameter in backbone.vlm.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name or "multi_modal_projector" in name for name in trained)


def test_row30_qlora_learns_and_exports_whole_weights(model: ModelConfig, tmp_path: Path) -> None:
    environment = os.environ | {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577",
    }  # fmt: skip
    quantised = model.model_copy(update={"quantise": "nf4"})
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(tmp_path), quantised.model_dump_json()],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads((tmp_path / "losses.json").read_text())
    assert losses[-1] < losses[0]
    before = load_file(Path(model.path) / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert {key: tensor.dtype for key, tensor in after.items()} == {key: tensor.dtype for key, tensor in before.items()}
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert sum(key.endswith("_proj.weight") for key in changed) == 14
    assert not any("norm" in key or "embed_tokens" in key for key in changed)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())


def test_row30_what_cannot_work_is_refused(model: ModelConfig) -> None:
    quantised = model.model_copy(update={"quantise": "nf4"})
    with pytest.raises(ConfigError, match="set trainable.lora"):
        load(quantised, TrainableConfig())
    with pytest.raises(ConfigError, match="ZeRO-3 cannot partition"):
        build_learner(PolicyModel, quantised, LORA, OptimizerConfig(lr=1e-3), DeepSpeedConfig(zero_stage=3), 5)
