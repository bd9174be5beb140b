"""Native LLaVA checkpoints and the hub layout: equal logits one way, equal bytes the other way, clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from jobs.convert_llava import ConvertConfig, run
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.native import hub_to_native, native_to_hub, to_hub_layout, to_native_layout
from rlhf.models.shards import ShardWriter, read_tensors, shard_files

WORDS = 300
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=24,
    patch_size=8,
    projection_dim=16,
)


@pytest.fixture(scope="module")
def model() -> Any:
    """A random model whose vocabulary has just the words; the token of the image is the next one."""
    torch.manual_seed(3)
    config = LlavaConfig(
        vision_config=VISION,
        text_config=LlamaConfig(vocab_size=WORDS + 1, tie_word_embeddings=False, **LLAMA),
        image_token_index=WORDS,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def tower(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's tower as the full CLIP directory that the hub has: text half, projections and buffers included."""
    folder = tmp_path_factory.mktemp("clip")
    state = {f"vision_model.{name}": tensor for name, tensor in _tower_state(model).items()}
    other = {"text_model.x": torch.ones(2), "visual_projection.weight": torch.ones(2), "logit_scale": torch.ones(1)}
    save_file(
        {**state, **other, "vision_model.embeddings.position_ids": torch.arange(10)}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": VISION.to_dict()}))
    CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}).save_pretrained(folder)
    return folder


def _tower_state(model: Any) -> dict[str, Tensor]:
    plain = CLIPVisionModel(VISION)
    plain.load_state_dict(model.model.vision_tower.state_dict())
    return {name.removeprefix("vision_model."): t.contiguous() for name, t in plain.state_dict().items()}


def _native_state(model: Any) -> dict[str, Tensor]:
    """The native layout, written down from LLaVA's own modules and not from the code under test."""
    llama, projector = model.model.language_model, model.model.multi_modal_projector
    state = {"model.embed_tokens.weight": llama.embed_tokens.weight[:WORDS], "model.norm.weight": llama.norm.weight}
    for index, layer in enumerate(llama.layers):
        for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                matrix = getattr(getattr(layer, part), f"{name}_proj").weight
                state[f"model.layers.{index}.{part}.{name}_proj.weight"] = matrix
        for norm in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{index}.{norm}.weight"] = getattr(layer, norm).weight
        state[f"model.layers.{index}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # old versions wrote it
    for place, linear in (("0", projector.linear_1), ("2", projector.linear_2)):
        state[f"model.mm_projector.{place}.weight"] = linear.weight
        state[f"model.mm_projector.{place}.bias"] = linear.bias
    state["lm_head.weight"] = model.lm_head.weight[:WORDS]
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of WORDS tokens, none of them a tag."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<unk>", "<s>", "</s>", *alphabet, *(f"word{n}" for n in range(WORDS - 3 - len(alphabet)))]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    ).save_pretrained(folder)


def _write_native(folder: Path, state: dict[str, Tensor], tower: Path, bins: bool, **changes: Any) -> Path:
    """A native checkpoint in two shards."""
    folder.mkdir()
    config = {
        **LLAMA,
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "vocab_size": WORDS,
        "mm_hidden_size": 16,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": str(tower),
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    names, weight_map = list(state), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        stem = f"{'pytorch_model' if bins else 'model'}-{number:05}-of-00002"
        file = f"{stem}.bin" if bins else f"{stem}.safetensors"
        piece = {name: state[name] for name in part}
        if bins:
            torch.save(piece, folder / file)
        else:
            save_file(piece, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = "pytorch_model.bin.index.json" if bins else "model.safetensors.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def native(request: pytest.FixtureRequest, model: Any, tower: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "model"
    return _write_native(folder, _native_state(model), tower, bins=request.param == "bin")


@pytest.fixture(scope="module")
def converted(native: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("converted") / "hub"
    run(ConvertConfig(direction="to_hub", source=str(native), target=str(target)))
    return target


def test_row29_a_native_checkpoint_becomes_a_model_with_equal_logits(model: Any, converted: Path) -> None:
    loaded = LlavaForConditionalGeneration.from_pretrained(converted, dtype=torch.float32).eval()
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 24, 24)
    ids = torch.tensor([[1, 17, *[WORDS] * 9, 200, 3, 99]])
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits[..., :WORDS]
        got = loaded(input_ids=ids, pixel_values=pixels).logits
    assert got.shape[-1] == 320  # 300 words, two new tokens, rounded up to 64
    assert torch.equal(got[..., :WORDS], expected)


def test_new_rows_are_the_mean_of_the_words(model: Any, converted: Path) -> None:
    state = dict(read_tensors(converted))
    for name, original in (
        ("language_model.model.embed_tokens.weight", model.model.language_model.embed_tokens.weight),
        ("language_model.lm_head.weight", model.lm_head.weight),
    ):
        mean = original[:WORDS].detach().mean(0)
        assert torch.allclose(state[name][WORDS:], mean.expand(20, -1), atol=1e-7)


def test_the_processor_of_a_converted_model_is_usable(converted: Path) -> None:
    config = ModelConfig(path=str(converted), dtype="float32", max_length=128, template="v1")
    processor = Processor.load(config)
    assert (processor.image_id, processor.pad_id, processor.tokens_per_image) == (WORDS, WORDS + 1, 9)
    ids = AutoProcessor.from_pretrained(converted).tokenizer("<image>word")["input_ids"]
    assert ids[:2] == [1, WORDS]


def test_row29_there_and_back_every_tensor_has_the_same_bytes(
    model: Any, native: Path, converted: Path, tower: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back"
    run(ConvertConfig(direction="to_native", source=str(converted), target=str(back), vision_tower=str(tower)))
    before = {name: t for name, t in _native_state(model).items() if not name.endswith("inv_freq")}
    after = dict(read_tensors(back))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype
        assert torch.equal(tensor, after[name]), name
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (native, back))
    assert {key: second[key] for key in first if key != "model_type"} == {
        key: value for key, value in first.items() if key != "model_type"
    }
    to_hub_layout(str(back), tmp_path / "again")  # its tokenizer and configuration are complete
    again = dict(read_tensors(tmp_path / "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in read_tensors(converted))


def test_a_trained_tower_is_not_lost_silently(converted: Path, tower: Path, tmp_path: Path) -> None:
    state = dict(read_tensors(tower))
    name = next(key for key in state if key.endswith("layers.0.mlp.fc1.weight"))
    other = tmp_path / "clip"
    other.mkdir()
    (other / "config.json").write_text((tower / "config.json").read_text())
    save_file(state | {name: state[name] + 1}, other / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"fc1.weight differs .* no place in the native layout"):
        to_native_layout(str(converted), tmp_path / "native", str(other))
    assert not (tmp_path / "native").exists()


def test_a_tower_inside_the_checkpoint_wins(model: Any, tower: Path, tmp_path: Path) -> None:
    """LLaVA writes it there when it was trained."""
    prefix = "model.vision_tower.vision_tower.vision_model."
    inside = {prefix + name: tensor + 1 for name, tensor in _tower_state(model).items()}
    source = _write_native(tmp_path / "native", _native_state(model) | inside, tower, bins=False)
    to_hub_layout(str(source), tmp_path / "hub")
    state = dict(read_tensors(tmp_path / "hub"))
    for name, tensor in inside.items():
        assert torch.equal(state["vision_tower.vision_model." + name.removeprefix(prefix)], tensor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlavaMistralForCausalLM"]}, "LlavaMistralForCausalLM, only LlavaLlamaForCausalLM"),
        ({"mm_projector_type": "linear"}, "mm_projector_type is linear"),
        ({"mm_vision_tower": "./no/such/tower"}, "vision_tower: .*no/such/tower holds no config.json"),
        ({"mm_use_im_start_end": True}, "image start and end tokens"),
    ],
)
def test_row29_another_architecture_is_refused_before_anything_is_written(
    model: Any, tower: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    source = _write_native(tmp_path / "native", _native_state(model), tower, bins=False, **changes)
    with pytest.raises(ConfigError, match=message):
        to_hub_layout(str(source), tmp_path / "hub")
    assert list(tmp_path.iterdir()) == [source]


def test_a_hub_model_of_another_kind_is_refused(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clip is not LlavaForConditionalGeneration"):
        to_native_layout(str(tower), tmp_path / "native", str(tower))


def test_unknown_missing_and_misshapen_tensors_are_named(model: Any, tower: Path, tmp_path: Path) -> None:
    good = _native_state(model)
    bad = {
        "model.image_newline": (good | {"model.image_newline": torch.ones(32)}, "belongs to another architecture"),
        "layers.7.": (good | {"model.layers.7.mlp.up_proj.weight": torch.ones(48, 32)}, "is no parameter of the model"),
        "linear_1.bias": ({k: v for k, v in good.items() if k != "model.mm_projector.0.bias"}, "lacks"),
        "linear_2.weight": (good | {"model.mm_projector.2.weight": torch.ones(32, 31)}, "config.json asks for"),
        "lm_head": (good | {"lm_head.weight": torch.ones(299, 32)}, "vocab_size=300"),
    }
    for number, (name, (state, message)) in enumerate(bad.items()):
        source = _write_native(tmp_path / str(number), state, tower, bins=False)
        with pytest.raises(CheckpointError, match=message) as caught:
            to_hub_layout(str(source), tmp_path / "hub")
        assert name in str(caught.value)
        assert not (tmp_path / "hub").exists()
        assert not (tmp_path / "hub.partial").exists()


def test_a_pickle_that_would_run_code_is_refused(model: Any, tower: Path, tmp_path: Path) -> None:
    source = _write_native(tmp_path / "native", _native_state(model), tower, bins=True)
    torch.save({"model.norm.weight": Path("x")}, source / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match="00001-of-00002.bin cannot be read"):
        to_hub_layout(str(source), tmp_path / "hub")


def test_an_existing_target_is_never_touched(native: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ConfigError, match="exists already"):
        to_hub_layout(str(native), tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_names_go_there_and_back() -> None:
    for name in ("model.layers.3.mlp.up_proj.weight", "model.mm_projector.2.bias", "lm_head.weight"):
        assert hub_to_native(native_to_hub(name)) == name
    assert native_to_hub("model.mm_projector.0.weight") == "multi_modal_projector.linear_1.weight"
    assert native_to_hub("model.norm.weight") == "language_model.model.norm.weight"
    with pytest.raises(KeyError):
        native_to_hub("transformer.h.0.attn.weight")


def test_shards_are_limited_and_indexed(tmp_path: Path) -> None:
    state = {f"t{index}": torch.full((10,), float(index)) for index in range(5)}
    with ShardWriter(tmp_path, limit=80) as writer:
        for name, tensor in state.items():
            writer.add(name, tensor)
    files = shard_files(tmp_path)
    assert [file.name for file in files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert all(sum(t.nbytes for t in load_file(file).values()) <= 80 for file in files)
    assert {name: t.tolist() for name, t in read_tensors(tmp_path)} == {name: t.tolist() for name, t in state.items()}
    files[1].unlink()
    with pytest.raises(CheckpointError, match="lacks model-00002-of-00003"):
        shard_files(tmp_path)


def test_safe20_stage_one_begins_with_a_decoder_a_tower_and_a_new_projector(
    model: Any, tower: Path, tmp_path: Path
) -> None:
    words = {name: tensor for name, tensor in _native_state(model).items() if "mm_projector" not in name}
    kind = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    vicuna = _write_native(tmp_path / "vicuna", words, tower, bins=False, **kind)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        target, parts = str(tmp_path / name), {"source": str(vicuna), "vision_tower": str(tower)}
        run(ConvertConfig(direction="assemble", target=target, seed=seed, **parts))
    one, again, other = (dict(read_tensors(tmp_path / name)) for name in ("one", "again", "other"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    projector = {name for name in one if name.startswith("multi_modal_projector.")}
    assert {name for name in one if not torch.equal(one[name], other[name])} == projector
    assert all(0.1 < float(one[name].abs().max()) <= 16**-0.5 for name in projector)  # torch's own bound, 16 inputs
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "one", dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight[:WORDS], model.lm_head.weight[:WORDS])
    for part in ("vision_tower", "language_model.layers", "language_model.norm"):
        found, expected = (one.model.get_submodule(part).state_dict() for one in (loaded, model))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), part


def test_only_a_plain_llama_is_assembled(native: Path, tower: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a llava_llama model; stage 1 needs a Llama"):
        run(
            ConvertConfig(direction="assemble", source=str(native), target=str(tmp_path / "x"), vision_tower=str(tower))
        )
    assert not (tmp_path / "x").exists()
