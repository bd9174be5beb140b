"""Adapters on disk: which belong to a model, by headers and a digest, and what merging one into a directory gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from jobs.convert_llava import ConvertConfig, run
from rlhf.config import LoraConfig, ModelConfig, TrainableConfig, load
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.models import llava
from rlhf.models.compatible import check_same_inputs
from rlhf.models.lora import CONFIG_FILE, WEIGHTS_FILE, merged, save_adapter
from rlhf.models.shards import ShardWriter
from rlhf.models.tiny import TinyConfig, build
from rlhf.rollout import build_engine
from rlhf.rollout.base import RolloutConfig, Sampling
from tests.fakes import CORPUS, make_prompts, tiny_model

LORA = LoraConfig(rank=4, alpha=8, targets=("q_proj", "down_proj"))
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj"


def trained(model: ModelConfig, folder: Path, projector: bool = True) -> Path:
    """An adapter of `model` (and its projector) as if it had learned, written to `folder`."""
    backbone = llava.load(model, TrainableConfig(lora=LORA, projector=projector))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_adapter(backbone.named_state(), LORA, model.path, projector, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny: ModelConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tiny, tmp_path_factory.mktemp("adapter") / "adapter")


def with_adapter(model: ModelConfig, adapter: Path, **more: Any) -> ModelConfig:
    return model.model_copy(update={"adapter": str(adapter), **more})


def refusal(model: ModelConfig) -> str:
    """What `Processor.load` says, which reads no weights into a model and comes first in every job."""
    with pytest.raises(ConfigError) as caught:
        Processor.load(model)
    (problem,) = caught.value.problems
    return problem


def rewritten(model: ModelConfig, folder: Path, change: Any) -> ModelConfig:
    """A copy of a model whose tensors went through `change(name, tensor)`."""
    shutil.copytree(model.path, folder)
    state = {
        name: change(name, tensor).contiguous() for name, tensor in load_file(f"{folder}/model.safetensors").items()
    }
    save_file(state, f"{folder}/model.safetensors", metadata={"format": "pt"})
    return model.model_copy(update={"path": str(folder)})


def test_an_adapter_of_this_base_is_accepted_in_any_precision_and_under_any_name(
    tiny: ModelConfig, adapter: Path, tmp_path: Path
) -> None:
    Processor.load(with_adapter(tiny, adapter))
    half = rewritten(tiny, tmp_path / "half", lambda name, tensor: tensor.to(torch.bfloat16))
    Processor.load(with_adapter(half, adapter))
    again = trained(half, tmp_path / "again")  # trained in float32 on bfloat16 files
    Processor.load(with_adapter(half, again))


def test_an_adapter_of_another_base_is_refused_before_a_model_loads(
    tiny: ModelConfig, adapter: Path, tmp_path: Path
) -> None:
    """The same architecture with other numbers, and one of other shapes; file, key and remedy are named."""
    sizes = TinyConfig(
        vocabulary=500, hidden=64, layers=2, vision_layers=3, heads=2, image_size=24, patch_size=8, context=512
    )
    build(sizes, CORPUS * 4, tmp_path / "wide", 0)
    others = {
        "weights of the last decoder layer": tiny_model(tmp_path / "other", seed=1),
        "down_proj.weight as one of shape (32, ": tiny.model_copy(update={"path": str(tmp_path / "wide")}),
    }
    for reason, model in others.items():
        problem = refusal(with_adapter(model, adapter))
        assert problem.startswith(
            f"model.adapter: {adapter / WEIGHTS_FILE} was trained on another base than {model.path}"
        )
        assert reason in problem
        assert f"set the model's path to the adapter's own base ({tiny.path})" in problem
    with pytest.raises(ConfigError, match=r"critic\.model\.adapter: .*another base"):
        check_same_inputs(tiny, with_adapter(tiny_model(tmp_path / "critic", seed=2), adapter), "critic.model")
    with pytest.raises(ConfigError, match="another base"):
        llava.load(with_adapter(others["weights of the last decoder layer"], adapter), None, Processor.load(tiny))


def test_of_the_base_what_an_adapter_does_not_bring_must_be_the_same(tiny: ModelConfig, tmp_path: Path) -> None:
    def other(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.1 if "multi_modal_projector" in name else tensor

    changed = rewritten(tiny, tmp_path / "changed", other)
    bringing, lacking = trained(tiny, tmp_path / "with"), trained(tiny, tmp_path / "without", projector=False)
    Processor.load(with_adapter(changed, bringing))
    assert "of the projector are not" in refusal(with_adapter(changed, lacking))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_rslora", True),
        ("use_dora", True),
        ("alpha_pattern", {"q_proj": 3}),
        ("rank_pattern", {"q_proj": 3}),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("a_setting_of_tomorrow", 1),
    ],
)
def test_settings_that_mean_another_sum_are_refused(
    tiny: ModelConfig, adapter: Path, tmp_path: Path, name: str, value: object
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    settings = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(settings | {name: value}))
    problem = refusal(with_adapter(tiny, folder))
    assert f"model.adapter: {folder / CONFIG_FILE} has {name}={value}" in problem
    assert "merge_and_unload" in problem


def test_a_folder_without_an_adapter_is_refused_with_what_would_be_one(tiny: ModelConfig, tmp_path: Path) -> None:
    for prepare, reason in (
        (lambda: None, "No such file"),
        (lambda: (tmp_path / CONFIG_FILE).write_text('{"peft_type": "IA3"}'), "not of a LoRA"),
        (lambda: (tmp_path / CONFIG_FILE).write_text('{"peft_type": "LORA", "r": 4}'), WEIGHTS_FILE),
    ):
        prepare()
        problem = refusal(with_adapter(tiny, tmp_path))
        assert problem.startswith(f"model.adapter: {tmp_path} is no PEFT adapter directory")
        assert reason in problem
        assert f"name one with {CONFIG_FILE} and {WEIGHTS_FILE}" in problem
    assert "set model.quantise=none" in refusal(with_adapter(tiny, tmp_path, quantise="nf4"))


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        ("base_model.model.lm_head.weight", "neither an adapter nor the projector"),
        (
            "base_model.model.model.vision_tower.encoder.layers.0.mlp.fc1.lora_A.weight",
            "no matrix of this language model",
        ),
        (f"base_model.model.{Q_PROJ.replace('1', '7')}.lora_A.weight", "no matrix of this language model"),
    ],
)
def test_tensors_that_have_no_place_are_named(
    tiny: ModelConfig, adapter: Path, tmp_path: Path, tensor: str, reason: str
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    state = load_file(folder / WEIGHTS_FILE)
    save_file({**state, tensor: torch.zeros(4, 32)}, folder / WEIGHTS_FILE)
    assert reason in refusal(with_adapter(tiny, folder))


def test_an_adapter_of_peft_itself_is_known_by_the_name_of_its_base(tiny: ModelConfig, tmp_path: Path) -> None:
    base = AutoModelForImageTextToText.from_pretrained(tiny.path)
    settings = PeftConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights="gaussian")
    get_peft_model(base, settings).save_pretrained(tmp_path / "peft")
    Processor.load(with_adapter(tiny, tmp_path / "peft"))
    file = tmp_path / "peft" / CONFIG_FILE
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"base_model_name_or_path": f"somebody/{Path(tiny.path).name}"}))
    Processor.load(with_adapter(tiny, tmp_path / "peft"))
    file.write_text(json.dumps(content | {"base_model_name_or_path": "/elsewhere/model"}))
    problem = refusal(with_adapter(tiny, tmp_path / "peft"))
    assert f"{CONFIG_FILE} names /elsewhere/model (write {tiny.path} there if that is the same model" in problem


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_directory_holds_the_base_plus_scale_b_a(
    tiny: ModelConfig, adapter: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    base = rewritten(tiny, tmp_path / "base", lambda name, tensor: tensor.to(dtype))
    run(ConvertConfig(direction="merge", source=base.path, adapter=str(adapter), target=str(tmp_path / "merged")))
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (base.path, tmp_path / "merged"))
    learned = load_file(adapter / WEIGHTS_FILE)
    assert {name: tensor.dtype for name, tensor in before.items()} == {n: t.dtype for n, t in after.items()}
    for name, tensor in before.items():
        inner = "base_model.model.model.language_model." + name.removeprefix("language_model.model.")
        a = learned.get(inner.replace(".weight", ".lora_A.weight"))
        expected = tensor
        if a is not None:
            expected = (
                tensor.double() + 2.0 * learned[inner.replace(".weight", ".lora_B.weight")].double() @ a.double()
            ).to(dtype)
        elif "multi_modal_projector" in name:
            expected = learned[f"base_model.model.model.{name}"].to(dtype)
        torch.testing.assert_close(after[name], expected, atol=1e-6, rtol=0.01 if dtype == torch.bfloat16 else 0)
    names = {file.name for file in Path(base.path).iterdir()}
    assert {file.name for file in (tmp_path / "merged").iterdir()} == names


def test_a_merged_directory_of_shards_answers_as_the_model_that_took_the_adapter_in(
    tiny: ModelConfig, adapter: Path, tmp_path: Path, pictures: list[str]
) -> None:
    base = Path(shutil.copytree(tiny.path, tmp_path / "base"))
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    with ShardWriter(base, limit=50_000) as writer:
        for name, tensor in state.items():
            writer.add(name, tensor)
    run(ConvertConfig(direction="merge", source=str(base), adapter=str(adapter), target=str(tmp_path / "merged")))
    merged_model = tiny.model_copy(update={"path": str(tmp_path / "merged")})
    live = llava.load(with_adapter(tiny, adapter), None).named_state()
    for name, tensor in llava.load(merged_model, None).named_state().items():
        torch.testing.assert_close(tensor, live[name], atol=1e-6, rtol=0)
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    prompts, greedy = make_prompts(pictures, 2), Sampling(max_new_tokens=8, temperature=0)
    answers = [
        [one.token_ids for one in build_engine(model, config, Processor.load(model)).generate(prompts, greedy)]
        for model in (tiny, merged_model)
    ]
    assert answers[0] != answers[1]


def test_merging_refuses_what_loading_would(tiny: ModelConfig, adapter: Path, tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", seed=1)
    target = tmp_path / "merged"
    with pytest.raises(ConfigError, match=r"adapter: .*another base"):
        run(ConvertConfig(direction="merge", source=other.path, adapter=str(adapter), target=str(target)))
    assert not target.exists()
    for wrong in (["direction=merge"], ["direction=to_hub", "adapter=./x"]):
        with pytest.raises(ConfigError, match="direction=merge needs it"):
            load(ConvertConfig, None, ["source=./a", "target=./b", *wrong])


def test_exported_adapters_merge_as_the_export_was_merged(tiny: ModelConfig, tmp_path: Path) -> None:
    """`lora.merged`, which exports use, and `merge_directory`, from the same training."""
    backbone = llava.load(tiny, TrainableConfig(lora=LORA))
    with torch.no_grad():
        for parameter in backbone.vlm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    state = backbone.named_state()
    save_adapter(state, LORA, tiny.path, True, tmp_path / "adapter")
    loaded = llava.load(with_adapter(tiny, tmp_path / "adapter"), None).named_state()
    for name, tensor in merged(state, LORA.scale).items():
        torch.testing.assert_close(loaded[name], tensor, atol=1e-6, rtol=0)


def test_engines_refuse_a_model_that_they_would_load_without_its_adapter(tiny: ModelConfig, adapter: Path) -> None:
    config = RolloutConfig(engine="transformers", dtype="float32", max_length=256)
    processor = Processor.load(tiny)
    with pytest.raises(ConfigError, match=r"model\.adapter: engines load whole models.*direction=merge source="):
        build_engine(with_adapter(tiny, adapter), config, processor)
    with pytest.raises(ConfigError, match=r"model\.quantise: engines load whole models"):
        build_engine(tiny.model_copy(update={"quantise": "nf4"}), config, processor)
