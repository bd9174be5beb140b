"""A reward model that reads other tokens or images than the policy is refused by its directory alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError
from rlhf.models.compatible import check_same_inputs
from rlhf.models.heads import check_head
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from tests.fakes import CORPUS, tiny_reward_model

SIZES = {"hidden": 32, "layers": 1, "vision_layers": 2, "heads": 1, "image_size": 24, "patch_size": 8}


def model(folder: Path, corpus: tuple[str, ...] = CORPUS, **sizes: int) -> ModelConfig:
    build(TinyConfig.model_validate({"vocabulary": 400, **SIZES, **sizes}), corpus * 4, folder)
    (folder / "model.safetensors").unlink()  # nothing here may load weights
    return ModelConfig(path=str(folder), template="llava_hf")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return model(tmp_path_factory.mktemp("policy"))


def edited(policy: ModelConfig, folder: Path, file: str, **changes: Any) -> ModelConfig:
    shutil.copytree(policy.path, folder)
    content = json.loads((folder / file).read_text())
    content.get("image_processor", content).update(changes)
    (folder / file).write_text(json.dumps(content))
    return policy.model_copy(update={"path": str(folder)})


def test_a_model_of_the_same_base_is_welcome(policy: ModelConfig, tmp_path: Path) -> None:
    check_same_inputs(policy, policy)
    check_same_inputs(policy, model(tmp_path / "deeper", layers=2, hidden=64))


def refused(policy: ModelConfig, other: ModelConfig, key: str = "reward.model") -> str:
    with pytest.raises(ConfigError) as caught:
        check_same_inputs(policy, other, key)
    text = str(caught.value)
    assert policy.path in text
    assert other.path in text
    assert f"set {key}.path" in text
    return text


def test_another_tokenizer_is_refused(policy: ModelConfig, tmp_path: Path) -> None:
    text = refused(policy, model(tmp_path / "other", ("Entirely different words in this corpus, nothing shared.",)))
    assert "tokens of its tokenizer have other ids (" in text
    assert "instead of" in text


def test_the_same_vocabulary_with_another_end_of_answer_is_refused(policy: ModelConfig, tmp_path: Path) -> None:
    other = edited(policy, tmp_path / "eos", "tokenizer_config.json", eos_token="<pad>")
    assert "its eos id is 3 instead of 2" in refused(policy, other)


def test_the_same_vocabulary_that_splits_text_otherwise_is_refused(policy: ModelConfig, tmp_path: Path) -> None:
    folder = tmp_path / "merges"
    shutil.copytree(policy.path, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    other = policy.model_copy(update={"path": str(folder)})
    assert "splits the same text into other tokens" in refused(policy, other)


def test_another_image_size_is_refused(policy: ModelConfig, tmp_path: Path) -> None:
    text = refused(policy, model(tmp_path / "large", image_size=48), "critic.model")
    assert "an image is 36 tokens instead of 9" in text
    assert "crop_size={'height': 48, 'width': 48}" in text


def test_other_image_settings_are_refused_by_name(policy: ModelConfig, tmp_path: Path) -> None:
    other = edited(policy, tmp_path / "grey", "processor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert "image_mean=[0.5, 0.5, 0.5]" in refused(policy, other)
    unpadded = policy.model_copy(update={"pad_to_square": False})
    assert "pad_to_square=False instead of True" in refused(policy, unpadded)


def test_every_difference_is_in_one_message(policy: ModelConfig) -> None:
    other = policy.model_copy(update={"template": "v1", "pad_to_square": False})
    text = refused(policy, other)
    assert "reward.model.template is v1, model.template is llava_hf" in text
    assert "pad_to_square" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "a llama model (LlamaForCausalLM)"),
        ({"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]}, "jobs/convert_llava.py direction="),
        ({}, "a nameless model (no named class)"),
    ],
)
def test_a_directory_of_another_architecture_is_refused_by_its_name(
    tmp_path: Path, content: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = ModelConfig(path=str(tmp_path))
    for attempt in (lambda: Processor.load(config), lambda: load(config, TrainableConfig())):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert f"model.path: {tmp_path} is" in str(caught.value)
        assert words in str(caught.value)


def test_a_model_without_a_head_is_no_reward_model(policy: ModelConfig, tmp_path: Path) -> None:
    check_head(tiny_reward_model(tmp_path))
    for path in (policy.path, "llava-hf/llava-1.5-7b-hf"):
        with pytest.raises(ConfigError) as caught:
            check_head(ModelConfig(path=path), "critic.model")
        assert f"critic.model.path: {path} has no scalar_head.safetensors" in str(caught.value)
        assert "run jobs/train_reward_model.py first" in str(caught.value)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_directory_without_a_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no model; run the stage"):
        Processor.load(ModelConfig(path=str(tmp_path / name)))
