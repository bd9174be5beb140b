"""Native LLaVA-OneVision checkpoints, as LlavaGuard's are, and the hub layout: equal logits, equal bytes, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from jobs.convert_llava import ConvertConfig, run
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.shards import read_tensors
from tests.fakes import draw_images
from tests.unit.models.test_native import WORDS, write_tokenizer

ROWS = 320  # of the vocabulary: more than the tokenizer has words, as in Qwen2
GRID = [[24 * rows, 24 * columns] for rows in (1, 2) for columns in (1, 2)]
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "image_size": 24, "patch_size": 8}
INSIDE = "model.vision_tower.vision_tower."


def random_model(tied: bool = False, rows: int = ROWS) -> Any:
    torch.manual_seed(5)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(num_hidden_layers=3, vision_use_head=False, **TOWER),
        text_config=Qwen2Config(
            vocab_size=rows,
            tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            **SIZES,
        ),
        image_token_index=WORDS,
        video_token_index=WORDS + 1,
        image_grid_pinpoints=GRID,
        tie_word_embeddings=tied,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # biases and norms are no constants
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model()


@pytest.fixture(scope="module")
def tower(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SigLIP directory: text half, head, and one layer more than the model has, which is not used."""
    folder = tmp_path_factory.mktemp("siglip")
    whole = SiglipVisionConfig(num_hidden_layers=4, **TOWER)
    state = {_inside(name): t.detach().clone() for name, t in SiglipVisionModel(whole).state_dict().items()}
    assert any(name.startswith("vision_model.head.") for name in state)
    other = {"text_model.x": torch.ones(2), "logit_scale": torch.ones(1), "logit_bias": torch.ones(1)}
    save_file({**state, **tower_state(model), **other}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", "vision_config": whole.to_dict()}))
    SiglipImageProcessor(size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def _inside(name: str) -> str:
    return f"vision_model.{name.removeprefix('vision_model.')}"


def tower_state(model: Any) -> dict[str, Tensor]:
    state = model.model.vision_tower.state_dict()
    return {_inside(name): tensor.clone().contiguous() for name, tensor in state.items()}


def native_state(model: Any) -> dict[str, Tensor]:
    """The native layout, written down from LLaVA-NeXT's own modules and not from the code under test."""
    qwen, projector = model.model.language_model, model.model.multi_modal_projector
    state = {"model.embed_tokens.weight": qwen.embed_tokens.weight, "model.norm.weight": qwen.norm.weight}
    for index, layer in enumerate(qwen.layers):
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                for kind, tensor in getattr(getattr(layer, part), f"{name}_proj").named_parameters():
                    state[f"model.layers.{index}.{part}.{name}_proj.{kind}"] = tensor
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{index}.{norm}.weight"] = getattr(layer, norm).weight
    for place, linear in (("0", projector.linear_1), ("2", projector.linear_2)):
        state |= {f"model.mm_projector.{place}.{kind}": tensor for kind, tensor in linear.named_parameters()}
    state |= {f"{INSIDE}{name}": tensor for name, tensor in tower_state(model).items()}
    state["model.image_newline"] = model.model.image_newline
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def write_native(folder: Path, state: dict[str, Tensor], tower: Path, **changes: Any) -> Path:
    folder.mkdir()
    config = {
        **SIZES,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "vocab_size": ROWS,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "image_aspect_ratio": "anyres_max_9",
        "image_grid_pinpoints": GRID,
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(tower),
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    save_file(state, folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def native(model: Any, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native(tmp_path_factory.mktemp("native") / "model", native_state(model), tower)


@pytest.fixture(scope="module")
def converted(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_hub(native, tmp_path_factory.mktemp("converted") / "hub")


def to_hub(source: Path, target: Path) -> Path:
    return run(ConvertConfig(direction="to_hub", source=str(source), target=str(target)))


def logits(model: Any, folder: Path, images: list[str]) -> list[Tensor]:
    """Of a prompt about each image, prepared by the processor in `folder`."""
    processor = AutoProcessor.from_pretrained(folder)
    found = []
    for path in images:
        picture = Image.open(path).convert("RGB")
        inputs = processor(text="word7 <image>\nword8 word9", images=picture, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**inputs).logits)
    return found


def test_guard19_a_native_guard_becomes_a_model_with_equal_logits(model: Any, converted: Path, tmp_path: Path) -> None:
    """Of images whose crops are arranged in different grids."""
    images = draw_images(tmp_path, 2)
    Image.open(images[0]).resize((90, 20)).save(images[0])
    loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()
    expected, found = (logits(one, converted, images) for one in (model, loaded))
    assert expected[0].shape != expected[1].shape
    for one, other in zip(expected, found, strict=True):
        assert one.shape[-1] == ROWS
        assert torch.equal(one, other)


def test_guard19_there_and_back_every_tensor_has_the_same_bytes(
    model: Any, native: Path, converted: Path, tower: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    run(ConvertConfig(direction="to_native", source=str(converted), target=str(back), vision_tower=str(tower)))
    before, after = native_state(model), dict(read_tensors(back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (native, back))
    assert {key: second[key] for key in first} == first
    again = dict(read_tensors(to_hub(back, tmp_path / "again")))  # its tokenizer and configuration are complete
    assert all(torch.equal(tensor, again[name]) for name, tensor in read_tensors(converted))


def test_guard19_a_converted_guard_is_one_of_ours(converted: Path, tmp_path: Path) -> None:
    config = ModelConfig(path=str(converted), dtype="float32", max_length=256, template="qwen", pad_to_square=False)
    processor = Processor.load(config)
    assert (processor.image_id, processor.tokens_per_image) == (WORDS, None)
    (image,) = draw_images(tmp_path, 1)
    assert AutoProcessor.from_pretrained(converted)(
        text="<image>", images=Image.open(image).convert("RGB"), return_tensors="pt"
    )["input_ids"][0].tolist().count(WORDS) == processor.family.image_tokens(processor.image_size(image))


def test_guard19_a_tied_head_is_the_embedding_or_refused(tower: Path, tmp_path: Path) -> None:
    """The 0.5B model; some writers store the head all the same."""
    small = random_model(tied=True)
    state = native_state(small)
    twice = state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}
    for name, tensors in (("once", state), ("twice", twice)):
        source = write_native(tmp_path / name, tensors, tower, tie_word_embeddings=True)
        folder = to_hub(source, tmp_path / f"{name}_hub")
        loaded = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        images = draw_images(tmp_path / "images", 1)
        assert torch.equal(*logits(small, folder, images), *logits(loaded, folder, images))
        assert "language_model.lm_head.weight" not in dict(read_tensors(folder))
    other = write_native(
        tmp_path / "other", state | {"lm_head.weight": torch.ones(ROWS, 32)}, tower, tie_word_embeddings=True
    )
    with pytest.raises(CheckpointError, match="the LM head is not the embedding"):
        to_hub(other, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_guard19_a_tower_outside_the_checkpoint_loses_its_last_layer_and_its_head(
    model: Any, converted: Path, tower: Path, tmp_path: Path
) -> None:
    bare = {name: tensor for name, tensor in native_state(model).items() if not name.startswith(INSIDE)}
    state = dict(read_tensors(to_hub(write_native(tmp_path / "native", bare, tower), tmp_path / "hub")))
    expected = dict(read_tensors(converted))
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.items())


def test_guard19_where_no_row_is_spare_for_the_tags_rows_are_added(tower: Path, tmp_path: Path) -> None:
    full = random_model(rows=WORDS)
    folder = to_hub(write_native(tmp_path / "native", native_state(full), tower, vocab_size=WORDS), tmp_path / "hub")
    state = dict(read_tensors(folder))
    embedding, before = state["language_model.model.embed_tokens.weight"], full.model.language_model.embed_tokens.weight
    assert torch.equal(embedding[:WORDS], before)
    assert embedding.shape[0] == 320
    assert torch.allclose(embedding[WORDS:], before.detach().mean(0).expand(20, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear, only mlp2x_gelu"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type is flat, only spatial_unpad"),
        ({"image_aspect_ratio": "pad"}, "image_aspect_ratio pad with"),
        ({"image_grid_pinpoints": "(1x1),(2x2)"}, "only anyres_max_N with a list"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled positions"),
        ({"mm_vision_tower": "./no/such/tower"}, "vision_tower: .*no/such/tower holds no config.json"),
    ],
)
def test_guard19_what_the_hub_layout_cannot_hold_is_refused_before_anything_is_written(
    model: Any, tower: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = write_native(tmp_path / "native", native_state(model), tower, **changes)
    with pytest.raises(ConfigError, match=message):
        to_hub(source, tmp_path / "hub")
    assert list(tmp_path.iterdir()) == [source]


def test_guard19_unknown_and_missing_tensors_are_named(model: Any, tower: Path, tmp_path: Path) -> None:
    good = native_state(model)
    bad = {
        "model.vision_resampler.weight": (good | {"model.vision_resampler.weight": torch.ones(2)}, "LLaVA-OneVision"),
        "image_newline": ({k: v for k, v in good.items() if k != "model.image_newline"}, "lacks"),
        "lm_head.weight": (good | {"lm_head.weight": torch.ones(7, 32)}, "vocab_size=320"),
    }
    for number, (name, (state, message)) in enumerate(bad.items()):
        source = write_native(tmp_path / str(number), state, tower)
        with pytest.raises(CheckpointError, match=message) as caught:
            to_hub(source, tmp_path / "hub")
        assert name in str(caught.value)
        assert not (tmp_path / "hub").exists()
