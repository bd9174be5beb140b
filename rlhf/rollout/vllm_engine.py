"""Rollouts by vLLM, in the calling process, with weights replaced in place.

vLLM is imported by the constructor only, after its environment is set.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from rlhf.batch import Completion, Prompt
from rlhf.config import LoraConfig, ModelConfig, resolve
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError, WeightSyncError
from rlhf.models.lora import is_adapter, peft_config
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.updates import UpdateState
from rlhf.rollout.weights import WeightBucket, unpack

_ADAPTER = 1  # vLLM's number for the policy's adapter
_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
_CPU_BLOCK = 32  # the default of 128 is longer than most prompts of a small model, which then share no prefix
_CPU_CACHE_MB = 256
_CPU_BATCHED_TOKENS = 8192


def cpu_environment() -> dict[str, str]:
    """Variables that must be set before vLLM is imported on a machine without GPU: one process, no compilation."""
    return {
        **_common_environment(),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the actor's own thread count holds
        "TORCHDYNAMO_DISABLE": "1",  # compiling vLLM's log-prob helper takes longer than a tiny run's rollouts
    }


def device_environment() -> dict[str, str]:
    """Variables that must be set before vLLM is imported on this machine."""
    return _common_environment() if torch.cuda.is_available() else cpu_environment()


def device_options(config: RolloutConfig) -> dict[str, Any]:
    """What `vllm.LLM` is told about this machine's device."""
    return _gpu_options(config) if torch.cuda.is_available() else _cpu_options(config)


def _common_environment() -> dict[str, str]:
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core lives here, so weights need no further copy
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }


class VllmEngine:
    """`RolloutEngine` on `vllm.LLM`."""

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        processor: Processor,
        seed: int = 0,
        lora: LoraConfig | None = None,
    ) -> None:
        for name, value in device_environment().items():
            os.environ.setdefault(name, value)
        from vllm import LLM

        self._config, self._processor, self._state = config, processor, UpdateState()
        self._open = lru_cache(maxsize=processor.kept_images)(processor.image)
        self._lora, self._adapter, self._adapter_loaded = lora, dict[str, Tensor](), False
        self._reloading = False
        self._llm = LLM(
            resolve(model.path),
            dtype=config.dtype,
            seed=seed,
            max_model_len=config.max_length,
            max_num_seqs=config.max_sequences,
            limit_mm_per_prompt={"image": 1, "video": 0},
            logprobs_mode="processed_logprobs",  # after temperature and nucleus: those of the behaviour policy
            generation_config="vllm",  # no stop tokens or defaults from the model's folder
            **device_options(config),
            **(_lora_options(lora) if lora else {}),
        )

    @property
    def version(self) -> int:
        """The policy version whose weights answer; -1 while an update is unfinished."""
        return self._state.version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt, in order."""
        self._state.require_closed()
        budget = sampling.max_new_tokens
        requests = [self._request(prompt, (), budget) for prompt in prompts]
        params = [self._params(sampling, prompt) for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora_request())
        return [self._completion(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of given response tokens."""
        from vllm import SamplingParams

        self._state.require_closed()
        # vLLM always draws at least one token
        requests = [self._request(prompt, response, 1) for prompt, response in zip(prompts, responses, strict=True)]
        # vLLM reads no prefix from its cache for such requests: cached positions have no logits
        params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora_request())
        scores = []
        for output, response in zip(outputs, responses, strict=True):
            tail = output.prompt_logprobs[len(output.prompt_logprobs) - len(response) :]
            scores.append([entry[token].logprob for entry, token in zip(tail, response, strict=True)])
        return scores

    def begin_update(self, version: int) -> None:
        """Open an update to `version`; one that is still open is dropped."""
        self._state.begin(version)
        self._adapter.clear()
        self._reloading = False

    def load_bucket(self, bucket: WeightBucket) -> None:
        """Load one bucket (see `wire_name`). After a WeightSyncError the update must begin again."""
        self._state.require_open()
        try:
            pairs = list(unpack(bucket))
            self._adapter.update({name: tensor.clone() for name, tensor in pairs if is_adapter(name)})
            self._load_base([pair for pair in pairs if not is_adapter(pair[0])])
        except Exception as error:
            self._state.failed(str(error))
            if isinstance(error, WeightSyncError):
                raise
            raise WeightSyncError(f"vLLM refused a bucket of {len(bucket.names)} tensors: {error}") from error
        self._state.received(bucket.digest)

    def finish_update(self) -> str:
        """Close the update, drop every cache of old results, return the fingerprint of the buckets received."""
        self._state.require_open()
        if self._reloading:
            partial = sorted({name for names in self._llm.collective_rpc(_finish_reload) for name in names})
            if partial:
                self._state.failed(f"only some of the tensors that vLLM fuses arrived for {', '.join(partial)}")
                self._state.require_open()
            self._reloading = False
        if self._lora and self._adapter:
            settings = peft_config(self._lora, base="", projector=None)
            self._llm.collective_rpc(_install_adapter, args=(self._adapter, settings))
            self._adapter_loaded = True
        # KV blocks and projected image features are results of the old weights; cached pixels are not
        self._llm.llm_engine.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            self._state.failed("vLLM could not drop its prefix cache because requests are still running")
        return self._state.finish()

    def _load_base(self, pairs: list[tuple[str, Tensor]]) -> None:
        if not pairs:
            return
        if not self._reloading:
            self._llm.collective_rpc(_begin_reload)
            self._reloading = True
        missed = sorted({name for names in self._llm.collective_rpc(_load, args=(pairs,)) for name in names})
        if missed:
            raise WeightSyncError(f"vLLM did not load {', '.join(missed)}")

    def _lora_request(self) -> Any:
        if not self._adapter_loaded:
            return None  # adapters start at zero
        from vllm.lora.request import LoRARequest

        return LoRARequest("policy", _ADAPTER, "in memory")  # the path is never read: the id is loaded

    def _request(self, prompt: Prompt, response: Sequence[int], budget: int) -> dict[str, Any]:
        room = len(response) + budget
        ids = self._processor.prompt_ids(prompt, room, self._config.max_length)
        if prompt.image is None:
            return {"prompt_token_ids": [*ids, *response]}
        return {
            # the response is left as it is: a placeholder that was sampled is an ordinary token
            "prompt_token_ids": [*self._processor.collapse(ids), *response],
            "multi_modal_data": {"image": [self._open(prompt.image)]},
            "multi_modal_uuids": {"image": [prompt.image]},  # instead of a hash over the pixels
        }

    def _params(self, sampling: Sampling, prompt: Prompt) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        schema = sampling.json_schema
        return SamplingParams(
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed_for(prompt.id),
            logprobs=0,  # the sampled token's only
            flat_logprobs=True,
            detokenize=False,
            structured_outputs=StructuredOutputsParams(grammar=answer_grammar(schema)) if schema is not None else None,
        )

    def _completion(self, prompt: Prompt, output: Any) -> Completion:
        answer = output.outputs[0]
        token_ids = tuple(answer.token_ids)
        return Completion(
            prompt_id=prompt.id,
            token_ids=token_ids,
            logprobs=tuple(answer.logprobs.logprobs),
            text=self._processor.decode(token_ids),
            finish_reason="stop" if answer.finish_reason == "stop" else "length",
            policy_version=self.version,
        )


def _cpu_options(config: RolloutConfig) -> dict[str, Any]:
    return {
        "enforce_eager": True,
        "enable_chunked_prefill": False,  # vLLM rewinds a seeded generator after half a prompt; CPU ones cannot
        "max_num_batched_tokens": max(config.max_length, _CPU_BATCHED_TOKENS),
        "block_size": _CPU_BLOCK,
        "kv_cache_memory_bytes": (config.kv_cache_mb or _CPU_CACHE_MB) * 2**20,
    }


def _gpu_options(config: RolloutConfig) -> dict[str, Any]:
    options: dict[str, Any] = {
        "gpu_memory_utilization": config.gpu_memory_share,
        "tensor_parallel_size": config.tensor_parallel,
    }
    if config.kv_cache_mb is not None:
        options["kv_cache_memory_bytes"] = config.kv_cache_mb * 2**20
    return options


def _lora_options(lora: LoraConfig) -> dict[str, Any]:
    rank = min((rank for rank in _LORA_RANKS if rank >= lora.rank), default=None)
    if rank is None:
        raise ConfigError([f"policy.trainable.lora.rank={lora.rank}: vLLM serves ranks up to {max(_LORA_RANKS)}"])
    # one slot more than adapters: with all slots taken, vLLM's CPU kernel confuses them with the base model
    options = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 2, "max_cpu_loras": 2}
    # without the list vLLM adapts its LM head too, and then fails on log-probabilities of prompts
    return {**options, "lora_target_modules": list(lora.targets)}


# The functions below run in every vLLM worker.


def _install_adapter(worker: Any, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Replace the adapter's weights without a file. vLLM has no public call for it; the canary watches the result."""
    from vllm.lora.peft_helper import PEFTHelper

    workers_manager = worker.model_runner.lora_manager
    manager = workers_manager._adapter_manager
    adapter = workers_manager._lora_model_cls.from_lora_tensors(
        _ADAPTER,
        tensors,
        PEFTHelper.from_dict(settings),
        device="cpu",
        dtype=workers_manager.lora_config.lora_dtype,
        weights_mapper=worker.model_runner.get_model().hf_to_vllm_mapper.get_rename_mapper(),
    )
    manager.remove_adapter(_ADAPTER)
    manager.add_adapter(adapter)
    manager.activate_adapter(_ADAPTER)


def _begin_reload(worker: Any) -> None:
    """Open vLLM's layerwise reload: CPU kernels keep packed copies only, so tensors cannot be written one by one."""
    from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

    _abandon_reload(worker)
    initialize_layerwise_reload(worker.model_runner.get_model())


def _load(worker: Any, pairs: list[tuple[str, Tensor]]) -> list[str]:
    """Load tensors and return the names that vLLM passed over."""
    model = worker.model_runner.get_model()
    loaded: set[str] = model.load_weights(iter(pairs))
    fused = {part: whole for whole, parts in model.language_model.packed_modules_mapping.items() for part in parts}
    inside = {name: model.hf_to_vllm_mapper.map_name(name) for name, _ in pairs}
    # vLLM builds no vision layers behind the one that LLaVA reads, and skips their weights rightly
    return [
        name
        for name, held in inside.items()
        if not name.startswith("vision_tower.")
        and ".".join(fused.get(part, part) for part in held.split(".")) not in loaded
    ]


def _finish_reload(worker: Any) -> list[str]:
    """Close the reload and return the layers of which only a part arrived; if there are any, nothing is closed."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    partial = [name for name, layer, info in _reload_infos(worker) if 0 < info.load_numel < _expected(layer)]
    if not partial:
        model = worker.model_runner.get_model()
        finalize_layerwise_reload(model, worker.model_config)
        _repack_tied_head(model.language_model)
    return partial


def _repack_tied_head(language_model: Any) -> None:
    """Renew what the LM head computes with, where its matrix is that of the embeddings and arrived under their name.

    On CPUs that is a packed copy, and the reload only makes those of layers that received something.
    """
    head = language_model.lm_head
    if head.weight is language_model.model.embed_tokens.weight:
        head.quant_method.process_weights_after_loading(head)


def _abandon_reload(worker: Any) -> None:
    """Close a reload without what it still buffers. Layers that are complete keep their new weights."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    for _, _, info in _reload_infos(worker):
        info.loaded_weights.clear()
        info.load_numel = 0
    finalize_layerwise_reload(worker.model_runner.get_model(), worker.model_config)


def _expected(layer: Any) -> int:
    """Elements that a layer receives if all of it arrives; 0 where that is not known.

    Buffers are computed (CLIP's position ids) and never arrive; vocabularies are padded by vLLM.
    """
    if hasattr(layer, "num_embeddings_padded"):
        return 0
    return sum(parameter.numel() for parameter in layer.parameters(recurse=False))


def _reload_infos(worker: Any) -> list[tuple[str, Any, Any]]:
    """Every layer with its name and what vLLM's reload has noted about it."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    modules = worker.model_runner.get_model().named_modules()
    return [(name, layer, get_layerwise_info(layer)) for name, layer in modules]


@lru_cache(maxsize=64)
def answer_grammar(schema: str) -> str:
    """The EBNF of a JSON schema, with one blank allowed in front.

    Behind the assistant's mark a model has learned the token " {". A grammar that only knows "{" makes it begin as it
    never did, and what follows is worse: a tiny guard named one category in five wrong, instead of one in thirty.
    """
    import xgrammar

    blank, answer = xgrammar.Grammar.from_ebnf('root ::= " "?'), xgrammar.Grammar.from_json_schema(schema)
    return str(xgrammar.Grammar.concat(blank, answer))
