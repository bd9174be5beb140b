"""The doctor's arithmetic against the papers' own numbers, against hand-made ones, and against measured tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf.config import DeepSpeedConfig, LoraConfig, ModelConfig, TrainableConfig
from rlhf.memory import (
    LIVE_PARAMETERS,
    REDUCE_BUCKET,
    SUB_GROUP,
    Footprint,
    Load,
    Split,
    activations,
    decoder_layer,
    dequantised,
    frozen_bytes,
    image_features,
    kv_bytes_per_token,
    lm_head,
    model_states,
    outside_layers,
    split,
)
from rlhf.models.architecture import Architecture, read_architecture
from rlhf.models.llava import load
from rlhf.models.tiny import TinyConfig, build
from tests.fakes import CORPUS
from tests.memory_meter import Subject, storage_bytes

SIZES = TinyConfig(
    vocabulary=500, hidden=64, layers=4, vision_layers=3, heads=2, image_size=24, patch_size=8, context=256
)
LLAVA_7B = "llava-hf/llava-1.5-7b-hf"
PSI = 7_500_000_000  # the example of figure 1 of the ZeRO paper, with 64 GPUs


@pytest.fixture(scope="module")
def seven() -> Architecture:
    return read_architecture(LLAVA_7B)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


def states(stage: int, ranks: int, *, trainable: int, frozen: int = 0, **others: object) -> Footprint:
    dtype = str(others.pop("dtype", "bfloat16"))
    config = DeepSpeedConfig.model_validate({"zero_stage": stage, "whole_below": 0, **others})
    return model_states(Split((trainable,), (frozen,)), config, ranks, dtype)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_the_zero_papers_figure(stage: int, gigabytes: float) -> None:
    """Figure 1: 7.5 billion parameters, 64 GPUs, mixed precision with Adam."""
    one = states(stage, 64, trainable=PSI)
    assert (one.weights + one.gradients + one.optimizer) / 1e9 == pytest.approx(gigabytes, abs=0.06)


def test_known_models_have_their_published_number_of_parameters(seven: Architecture) -> None:
    assert seven.count() == 7_063_427_072
    assert read_architecture("llava-hf/llava-1.5-13b-hf").count() == 13_351_494_656
    small = read_architecture("llava-hf/llava-onevision-qwen2-0.5b-ov-hf")
    assert small.count() == 893_618_208 + 64 * small.hidden  # the original's, and the words that the hub layout adds
    large = read_architecture("llava-hf/llava-onevision-qwen2-7b-ov-hf")
    assert large.count() == 8_030_348_832 + 2 * 64 * large.hidden  # its head is not tied
    assert read_architecture("AIML-TUDA/LlavaGuard-v1.2-7B-OV-hf").parameters == large.parameters
    assert read_architecture("Qwen/Qwen2.5-VL-3B-Instruct").count() == 3_754_622_976
    assert read_architecture("Qwen/Qwen2.5-VL-7B-Instruct").count() == 8_292_166_656
    assert seven.count("projector") == 20_979_712
    assert seven.count("tower") == 303_507_456
    assert seven.image_tokens == 576


def test_a_7b_llama_keeps_half_a_mebibyte_of_keys_and_values_per_token(seven: Architecture) -> None:
    assert kv_bytes_per_token(seven, "bfloat16") == 2**19


def test_frozen_elements_have_weights_only() -> None:
    with_frozen, without = states(2, 4, trainable=1000, frozen=600), states(2, 4, trainable=1000)
    assert with_frozen.weights - without.weights == 2 * 600
    assert (with_frozen.gradients, with_frozen.optimizer) == (without.gradients, without.optimizer)


def test_fp32_has_a_master_copy_too_except_without_zero() -> None:
    kept = {stage: states(stage, 1, trainable=1000, dtype="float32").optimizer for stage in range(4)}
    assert kept == {0: 8000, 1: 12000, 2: 12000, 3: 12000}


def test_stage_three_pads_every_tensor_and_keeps_small_ones_whole() -> None:
    config = DeepSpeedConfig(zero_stage=3, whole_below=8)
    one = model_states(Split((10, 7), (5,)), config, 4, "float32")
    assert one.weights == 4 * ((3 + 2 + 2) + (7 + 5))
    assert one.gradients == 4 * (3 + 2)


def test_buffers_on_a_gpu_have_deepspeeds_fixed_sizes_and_on_a_cpu_what_is_written() -> None:
    assert states(2, 2, trainable=1000).buffers == 2 * REDUCE_BUCKET
    assert states(3, 2, trainable=PSI).buffers == 2 * (2 * REDUCE_BUCKET + LIVE_PARAMETERS)
    assert model_states(Split((1000,), ()), DeepSpeedConfig(zero_stage=2), 2, "bfloat16", on_gpu=False).buffers == 2000


def test_the_optimizer_step_of_stage_three_works_on_one_sub_group_at_a_time() -> None:
    assert states(3, 2, trainable=PSI).step == 8 * SUB_GROUP
    assert states(2, 2, trainable=PSI).step == 8 * PSI // 2


def test_offloading_moves_state_to_the_host_and_loses_nothing() -> None:
    near, far = states(3, 2, trainable=PSI, frozen=1000), states(3, 2, trainable=PSI, frozen=1000, offload=True)
    assert (far.weights, far.gradients, far.optimizer, far.step) == (0, 0, 0, 0)
    assert far.host == near.weights + near.gradients + near.optimizer + 4 * PSI // 2  # and fp32 gradients
    second = states(2, 2, trainable=PSI, offload=True)
    assert second.weights == 2 * PSI
    assert second.optimizer == second.gradients == 0


def test_activations_and_the_optimizer_step_are_not_there_together() -> None:
    assert Footprint(weights=10, activations=5, step=3).total == 15
    assert Footprint(weights=10, activations=2, step=3).total == 13


def test_checkpointing_leaves_the_inputs_of_layers_and_one_layer(seven: Architecture) -> None:
    load = Load(1, 2048, 0, "flash_attention_2", 1)
    full, thin = (
        activations(seven, load, TrainableConfig(gradient_checkpointing=on), "scalar", "bfloat16")
        for on in (False, True)
    )
    layer = decoder_layer(seven, 2, load)
    assert full - thin == 31 * layer - 32 * 2 * 4096 * 2048
    assert thin < 0.15 * full


def test_one_layer_of_llava_7b_by_hand(seven: Architecture) -> None:
    """bf16, 2,048 tokens, FlashAttention: 24 h + 8 i + 4 a + 8 bytes per token."""
    assert decoder_layer(seven, 2, Load(1, 2048, 0, "flash_attention_2", 1)) == 2048 * (
        24 * 4096 + 8 * 11008 + 4 * 32 + 8
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_autograd_keeps_is_predicted_to_one_per_cent(folder: Path, dtype: str, attention: str) -> None:
    """Not exact: rows are counted at their padded length, and small masks are not counted."""
    subject = Subject(folder, SIZES, "scalar", dtype, attention=attention, rows=3)
    architecture, width = read_architecture(str(folder)), 4 if dtype == "float32" else 2
    layers = architecture.layers * decoder_layer(architecture, width, subject.load)
    assert layers + outside_layers(architecture, width, subject.load) == pytest.approx(subject.kept(), rel=0.01)


@pytest.mark.parametrize("kind", ["policy", "scalar"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_measured_peak_of_a_step_is_within_the_prediction(
    folder: Path, kind: str, dtype: str, checkpointing: bool
) -> None:
    """Tolerance: never below the measured peak, and at most 35 % above it (the working space is an upper bound)."""
    subject = Subject(folder, SIZES, kind, dtype, checkpointing=checkpointing)  # type: ignore[arg-type]
    architecture = read_architecture(str(folder))
    predicted = activations(architecture, subject.load, subject.trainable, kind, dtype)  # type: ignore[arg-type]
    assert 1.0 <= predicted / subject.peak() <= 1.35


def test_a_forward_pass_alone_needs_no_more_than_predicted(folder: Path) -> None:
    for kind in ("policy", "scalar"):
        subject = Subject(folder, SIZES, kind, trains=False)  # type: ignore[arg-type]
        architecture = read_architecture(str(folder))
        predicted = activations(architecture, subject.load, None, kind, "float32")  # type: ignore[arg-type]
        assert 1.0 <= predicted / subject.peak() <= 2.5


def test_weights_gradients_and_adams_state_are_exact_after_a_real_step(folder: Path) -> None:
    subject = Subject(folder, SIZES)
    learning = [parameter for parameter in subject.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    subject.loss().backward()
    gradients = storage_bytes(p.grad for p in learning if p.grad is not None)
    optimizer.step()
    state = storage_bytes(t for values in optimizer.state.values() for name, t in values.items() if name != "step")
    sizes = split(read_architecture(str(folder)), TrainableConfig(), "policy")
    predicted = model_states(sizes, DeepSpeedConfig(zero_stage=0), 1, "float32")
    assert predicted.weights == storage_bytes(subject.module.parameters())
    assert predicted.gradients == gradients
    assert predicted.optimizer == state


def test_a_scalar_model_trains_its_head_and_not_the_lm_head(folder: Path) -> None:
    subject = Subject(folder, SIZES, "scalar")
    sizes = split(read_architecture(str(folder)), TrainableConfig(), "scalar")
    parameters = list(subject.module.parameters())
    assert sum(sizes.trainable) == sum(p.numel() for p in parameters if p.requires_grad)
    assert sum(sizes.frozen) == sum(p.numel() for p in parameters if not p.requires_grad)


def test_lora_trains_what_peft_makes_trainable(folder: Path) -> None:
    lora = LoraConfig(rank=4, alpha=8, targets=("q_proj", "o_proj", "down_proj"))
    subject = Subject(folder, SIZES, lora=lora)
    sizes = split(read_architecture(str(folder)), TrainableConfig(lora=lora), "policy")
    assert sum(sizes.trainable) == sum(p.numel() for p in subject.module.parameters() if p.requires_grad)
    predicted = activations(read_architecture(str(folder)), subject.load, subject.trainable, "policy", "float32")
    assert 1.0 <= predicted / subject.peak() <= 1.5  # frozen matrices keep less than counted


def held(vlm: torch.nn.Module) -> int:
    """Bytes of a quantised model: every weight with the scales and tables that belong to it."""
    tensors: list[torch.Tensor] = []
    for parameter in vlm.parameters():
        state = getattr(parameter, "quant_state", None)
        owners = [parameter] if state is None else [parameter, state, state.state2]
        tensors += [parameter.data, *(v for one in owners for v in vars(one).values() if isinstance(v, torch.Tensor))]
    return storage_bytes(tensors)


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_row21_row30_quantised_weights_take_what_is_predicted(
    tmp_path_factory: pytest.TempPathFactory, quantise: str, dtype: str
) -> None:
    """A model of blocks that do not fill up, under LoRA and frozen whole: to the byte."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.getbasetemp() / "quantised"
    if not folder.exists():
        build(SIZES.model_copy(update={"hidden": 192, "layers": 2}), CORPUS * 4, folder)
    config = ModelConfig.model_validate(
        {"path": str(folder), "dtype": dtype, "quantise": quantise, "max_length": 256, "template": "llava_hf"}
    )
    architecture, width = read_architecture(str(folder)), 4 if dtype == "float32" else 2
    assert frozen_bytes(architecture, dtype, quantise) == held(load(config, None).vlm)  # type: ignore[arg-type]
    lora = TrainableConfig(lora=LoraConfig(rank=4, alpha=8))
    sizes = split(architecture, lora, "policy", quantise)  # type: ignore[arg-type]
    vlm = load(config, lora).vlm
    adapters = [one for one in vlm.parameters() if one.requires_grad]
    assert sum(sizes.trainable) == sum(one.numel() for one in adapters)
    learning = width * sum(sizes.trainable) - storage_bytes(adapters)  # PEFT may keep adapters in float32
    predicted = model_states(sizes, DeepSpeedConfig(zero_stage=2), 1, dtype).weights
    assert predicted - learning == held(vlm)
    assert sizes.quantised < (0.14 if quantise == "nf4" else 0.26) * 4 * sum(
        p.elements for p in architecture.of(["language"])
    )


def test_quantising_makes_the_7b_base_smaller_by_its_decoders_matrices(seven: Architecture) -> None:
    """32 layers of 4 x 4,096 x 4,096 and 3 x 4,096 x 11,008: 12.1 GiB in bf16, 6.0 in int8, 3.1 in nf4."""
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    whole, eight, four = (frozen_bytes(seven, "bfloat16", name) for name in ("none", "int8", "nf4"))
    assert (whole - eight) / matrices == pytest.approx(1.0, abs=1e-3)
    assert (whole - four) / matrices == pytest.approx(2 - 0.516, abs=1e-3)  # QLoRA, section 3: 0.127 bits for scales
    assert dequantised(seven, "bfloat16", "nf4") == 2 * 4096 * 11008
    assert dequantised(seven, "bfloat16", "none") == 0


def test_the_lm_head_sees_response_tokens_only(seven: Architecture) -> None:
    """Four rows of 512 answer tokens: more logits than are ever there at once."""
    assert lm_head(seven, 2, Load(1, 2048, 0, "sdpa", 1), learns=True) == 0
    load, states, chunks = Load(4, 2048, 512, "sdpa", 4), 4 * 512 * 2 * 2 * 4096, 10 * 2**23
    assert lm_head(seven, 2, load, learns=False) == states + chunks
    assert lm_head(seven, 2, load, learns=True) == states + chunks + 3 * 2**25 + 32064 * 4096 * 6


def test_image_features_grow_with_the_images_of_a_micro_batch(seven: Architecture) -> None:
    one, two = (image_features(seven, Load(rows, 2048, 0, "sdpa", rows), "bfloat16") for rows in (1, 2))
    assert two - one == 576 * 1024 * 2
