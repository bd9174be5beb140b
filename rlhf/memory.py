"""How many bytes one rank of a role needs on its device. Pure arithmetic on shapes; nothing is loaded or measured here.

Notation: w bytes per weight (2 or 4), t trainable and f frozen elements of the module that DeepSpeed wraps, N ranks.

Model states follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 3 and figure 1): with bf16, 2 t weights,
2 t gradients and 12 t optimizer state (an fp32 master copy and Adam's two moments), where stage 1 divides the optimizer
state by N, stage 2 the gradients too, stage 3 the weights too. What DeepSpeed 0.19 does beyond the paper is counted as
well: fp32 training has a master copy too, except under stage 0; the step turns a partition's (stage 3: a sub-group's)
gradients into fp32 and Adam needs one more such tensor; and communication has buffers of a fixed size.

Matrices in 8 or 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3) never learn: see `quantised_bytes`.

Activations follow Korthikanti et al. 2022 (arXiv 2205.05198, section 4) with this decoder's own tensors instead of
GPT's: see `decoder_layer`. Checkpointing keeps each layer's input and recomputes one layer at a time (section 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from rlhf.config import DeepSpeedConfig, TrainableConfig
from rlhf.models.architecture import Architecture, Parameter
from rlhf.models.keys import Part
from rlhf.models.token_logprobs import CHUNK, KEPT

GIB = 2**30
WIDTHS = {"float32": 4, "bfloat16": 2}
ADAM_MOMENTS = 8  # bytes per trainable element, always fp32
MASTER = 4

# Constants of DeepSpeed 0.19 that SafeVL does not set (deepspeed/runtime/zero/config.py), in elements.
REDUCE_BUCKET = 500_000_000
SUB_GROUP = 1_000_000_000
LIVE_PARAMETERS = 1_000_000_000

RUNTIME_GPU = GIB  # assumed: CUDA context, cuBLAS workspace and NCCL's buffers of one process
RUNTIME_CPU = 3 * GIB // 4  # assumed: Python with torch, transformers and DeepSpeed in one process

Kind = Literal["policy", "scalar"]
Quantise = Literal["none", "int8", "nf4"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one rank on its device. `host` is what offloading and the feature cache keep in host memory instead.

    `activations` and `step` are never there together, so the total counts the larger one.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    buffers: int = 0
    activations: int = 0
    step: int = 0
    features: int = 0
    kv_cache: int = 0
    runtime: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """The peak."""
        kept = self.weights + self.gradients + self.optimizer + self.buffers + self.features
        return kept + self.kv_cache + self.runtime + max(self.activations, self.step)

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))


@dataclass(frozen=True, slots=True)
class Load:
    """What passes through a model at once on one rank."""

    rows: int
    length: int  # tokens per row, padding included
    responses: int  # tokens per row that the LM head sees
    attention: str
    images: int

    @property
    def tokens(self) -> int:
        """Positions."""
        return self.rows * self.length


@dataclass(frozen=True, slots=True)
class Split:
    """Elements of the module that DeepSpeed wraps. The frozen vision tower is not part of it."""

    trainable: tuple[int, ...]  # per tensor, because ZeRO-3 rounds each one up
    frozen: tuple[int, ...]
    quantised: int = 0  # bytes, not elements, of frozen matrices in 8 or 4 bits, which are not in `frozen`


def split(architecture: Architecture, trainable: TrainableConfig, kind: Kind, quantise: Quantise = "none") -> Split:
    """Who learns, as `rlhf.models.llava.load` and `ScalarModel` set it: a scalar model's LM head never does.

    With LoRA the language model is frozen and adapters of rank x (in + out) elements per matrix learn.
    """
    lora = trainable.lora
    learning: set[Part] = set()
    if trainable.vision_tower:
        learning.add("tower")
    if trainable.projector:
        learning.add("projector")
    if trainable.language_model and lora is None:
        learning |= {"language", "lm_head"} if kind == "policy" else {"language"}
    wrapped: set[Part] = {"projector", "language", "lm_head"}
    inside = architecture.of(wrapped | {"tower"} if trainable.vision_tower else wrapped)
    adapters = [lora.rank * side for matrix in adapted(architecture, lora.targets) for side in matrix] if lora else []
    head = [architecture.hidden] if kind == "scalar" else []
    frozen = [p for p in inside if p.part not in learning]
    return Split(
        trainable=(*(p.elements for p in inside if p.part in learning), *adapters, *head),
        frozen=tuple(p.elements for p in frozen if not _is_quantised(p, quantise)),
        quantised=sum(quantised_bytes(p, quantise) for p in frozen if _is_quantised(p, quantise)),
    )


def frozen_bytes(architecture: Architecture, dtype: str, quantise: Quantise = "none") -> int:
    """Bytes of a whole model that never learns, its tower apart."""
    return sum(
        quantised_bytes(one, quantise) if _is_quantised(one, quantise) else WIDTHS[dtype] * one.elements
        for one in architecture.of(["projector", "language", "lm_head"])
    )


def quantised_bytes(matrix: Parameter, quantise: Quantise) -> int:
    """Bytes of a decoder matrix of n elements as bitsandbytes holds it.

    int8: n, and a float32 scale per row. nf4: n / 2, with double quantisation a byte per block of 64 elements and a
    float32 per 256 blocks, and 1,092 bytes of tables.
    """
    elements, rows = matrix.elements, matrix.shape[0]
    if quantise == "int8":
        return elements + 4 * rows
    blocks = -(-elements // 64)
    return -(-elements // 2) + blocks + 4 * -(-blocks // 256) + 4 * (16 + 256 + 1)


def dequantised(architecture: Architecture, dtype: str, quantise: Quantise) -> int:
    """Bytes of the largest quantised matrix as it is multiplied with: one at a time is whole again."""
    small = (one.elements for one in architecture.parameters if _is_quantised(one, quantise))
    return WIDTHS[dtype] * max(small, default=0)


def _is_quantised(parameter: Parameter, quantise: Quantise) -> bool:
    """Whether `rlhf/models/quantised.py` takes a parameter: the decoder's linear layers, if any."""
    matrix = parameter.part == "language" and len(parameter.shape) == 2
    return quantise != "none" and matrix and _layer_name(parameter) != "embed_tokens"


def adapted(architecture: Architecture, targets: Sequence[str]) -> list[tuple[int, int]]:
    """(out, in) of every language-model matrix whose last name is in `targets`."""
    return [
        (parameter.shape[0], parameter.shape[1])
        for parameter in architecture.of(["language"])
        if len(parameter.shape) == 2 and _layer_name(parameter) in targets
    ]


def _layer_name(parameter: Parameter) -> str:
    return parameter.name.removesuffix(".weight").rpartition(".")[2]


def model_states(sizes: Split, config: DeepSpeedConfig, ranks: int, dtype: str, on_gpu: bool = True) -> Footprint:
    """Weights, gradients, optimizer state, DeepSpeed's buffers and the optimizer step's temporaries of one rank.

    On a CPU the buffers count only as far as they are ever written.
    """
    width, stage = WIDTHS[dtype], config.zero_stage
    learns, stays = sum(sizes.trainable), sum(sizes.frozen)
    bucket = REDUCE_BUCKET if on_gpu else min(REDUCE_BUCKET, learns)
    if stage == 0:
        master = MASTER * learns if width == 2 else 0
        reduced = width * bucket if ranks > 1 else 0
        return Footprint(
            weights=width * (learns + stays) + sizes.quantised,
            gradients=width * learns,
            optimizer=ADAM_MOMENTS * learns + master,
            buffers=reduced,
            step=ADAM_MOMENTS * learns if width == 2 else 4 * learns,
        )
    own = _share(sizes.trainable, ranks) if stage == 3 else -(-learns // ranks)
    states = Footprint(
        weights=width * (learns + stays) + sizes.quantised,
        gradients=width * (learns if stage == 1 else own),
        optimizer=(ADAM_MOMENTS + MASTER) * own,
        buffers=width * bucket,
        step=2 * 4 * own,
    )
    if stage == 3:
        states = _stage_3(states, sizes, config, ranks, width, bucket)
    return _offloaded(states, config, own) if config.offload else states


def _stage_3(
    states: Footprint, sizes: Split, config: DeepSpeedConfig, ranks: int, width: int, bucket: int
) -> Footprint:
    every = (*sizes.trainable, *sizes.frozen)
    own, whole = _share(every, ranks), sum(size for size in every if size < config.whole_below)
    gathered = min(LIVE_PARAMETERS, sum(every) - whole)  # the layers in use, fetched ahead and not yet released
    return Footprint(
        weights=width * (own + whole) + sizes.quantised,
        gradients=states.gradients,
        optimizer=states.optimizer,
        buffers=width * (2 * bucket + gathered),  # reduce-scatter copies its bucket once more
        step=min(states.step, 2 * 4 * SUB_GROUP),
    )


def _offloaded(states: Footprint, config: DeepSpeedConfig, own: int) -> Footprint:
    """Optimizer state, gradients and step move to the host; with stage 3 the partitioned weights too."""
    moves = config.zero_stage == 3
    return Footprint(
        weights=0 if moves else states.weights,
        gradients=states.gradients if config.zero_stage == 1 else 0,
        buffers=states.buffers,
        host=states.optimizer + MASTER * own + (states.gradients + states.weights if moves else 0),
    )


def _share(sizes: Sequence[int], ranks: int) -> int:
    """Elements of one rank when each tensor is divided by itself and padded."""
    return sum(-(-size // ranks) for size in sizes)


def decoder_layer(architecture: Architecture, width: int, load: Load) -> int:
    """Bytes that one Llama layer keeps for its backward pass.

    Per token: 2 (4 + 2 w) h + 8 for the two norms (the fp32 input, the normalised one, the output that matrices
    read, and 4 bytes of scale), 2 w (q + k) for rotated query, rotated key, value and attention's result, 4 a for the
    softmax's logarithms, 4 w i for the gate, its SiLU, the up-projection and their product (h hidden, q query, k key
    width, a heads, i intermediate width). Without dropout no masks are kept. Kernels that never write scores
    (FlashAttention) add nothing; SDPA adds an additive mask, w per pair of positions, where rows are padded; eager
    attention keeps the fp32 softmax, and in bf16 its cast.
    """
    a = architecture
    per_token = 2 * (4 + 2 * width) * a.hidden + 8
    per_token += 2 * width * (a.query_width + a.key_width) + 4 * a.heads + 4 * width * a.intermediate
    pairs = load.rows * load.length**2
    if load.attention == "eager":
        scores = pairs * a.heads * (4 if width == 4 else 4 + width)
    elif load.attention == "sdpa" and load.rows > 1:
        scores = pairs * width
    else:
        scores = 0
    return per_token * load.tokens + scores


def tower_layer(architecture: Architecture, width: int, load: Load) -> int:
    """Bytes that one CLIP layer of a learning tower keeps: per patch w (8 d + 3 i), d and i its widths."""
    a = architecture
    return width * (8 * a.tower_width + 3 * a.tower_intermediate) * load.images * _patches(a, load)


def outside_layers(architecture: Architecture, width: int, load: Load) -> int:
    """Bytes kept by the embedding, the rotary tables, the projector and the last norm."""
    a = architecture
    head = a.query_width // a.heads
    per_token = (4 + 2 * width) * a.hidden + 4 + 2 * width * head + 9
    per_visual = width * (a.tower_patches * a.tower_width + 2 * a.hidden)
    return per_token * load.tokens + per_visual * load.images * _image_tokens(a, load)


def lm_head(architecture: Architecture, width: int, load: Load, learns: bool) -> int:
    """Bytes at the top of the log-probability computation (`rlhf/models/token_logprobs.py`).

    Per response token its state and that state's gradient, 2 w h; two fp32 chunks of logits; and if the matrix learns
    the fp32 log-probabilities that are kept and its fp32 gradient, 4 V h. In bf16 a chunk and the gradient have a cast.
    """
    answered = load.rows * load.responses
    if not answered:
        return 0
    logits, matrix = answered * architecture.vocabulary, architecture.vocabulary * architecture.hidden
    cast = 0 if width == 4 else width
    size = 2 * width * architecture.hidden * answered + (2 * 4 + cast) * min(logits, CHUNK)
    if learns:
        size += 4 * min(logits, KEPT) + (4 + cast) * matrix
    return size


def activations(
    architecture: Architecture, load: Load, trainable: TrainableConfig | None, kind: Kind, dtype: str
) -> int:
    """Peak bytes of one forward and backward pass; of a forward pass alone where nothing is trainable.

    What is kept, plus half a layer for the gradients in flight: measured peaks exceed what is kept by a tenth to a
    third of a layer (tests/unit/test_memory.py).
    """
    width = WIDTHS[dtype]
    layer = decoder_layer(architecture, width, load)
    learns = trainable is not None and trainable.language_model and trainable.lora is None
    head = lm_head(architecture, width, load, learns) if kind == "policy" else 0
    if trainable is None:
        return max(layer, head) + width * architecture.hidden * load.tokens
    if (lora := trainable.lora) is not None:
        layer += width * lora.rank * len(lora.targets) * load.tokens
    layers = architecture.layers
    tower = tower_layer(architecture, width, load) if trainable.vision_tower else 0
    if trainable.gradient_checkpointing:
        visual = load.images * _patches(architecture, load) if tower else 0
        inputs = (
            layers * architecture.hidden * load.tokens + architecture.tower_layers * architecture.tower_width * visual
        )
        kept, busy = width * inputs, max(layer, tower) + layer // 2  # layers are recomputed when the head is done
    else:
        kept, busy = layers * layer + architecture.tower_layers * tower, layer // 2
    return kept + outside_layers(architecture, width, load) + max(busy, head)


def image_features(architecture: Architecture, load: Load, dtype: str) -> int:
    """Device bytes of a frozen tower's output for one micro-batch, and of encoding one image."""
    a, width, tokens = architecture, WIDTHS[dtype], _patches(architecture, load)
    one = width * (tokens + 1) * (a.tower_width * (a.tower_layers + 1) + 3 * a.tower_intermediate + 4 * a.tower_width)
    return width * load.images * tokens * a.tower_width + one


def kv_bytes_per_token(architecture: Architecture, dtype: str) -> int:
    """Bytes of key and value of one token in all layers: 2 w L k."""
    return 2 * WIDTHS[dtype] * architecture.layers * architecture.key_width


def _image_tokens(architecture: Architecture, load: Load) -> int:
    # a tower without a fixed number of tokens can fill the whole context
    return architecture.image_tokens if architecture.image_tokens is not None else load.length


def _patches(architecture: Architecture, load: Load) -> int:
    return architecture.tower_patches * _image_tokens(architecture, load)
