"""Rollouts by transformers, one prompt at a time: the slow reference that vLLM is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rlhf.batch import Completion, Prompt
from rlhf.config import LoraConfig, ModelConfig, resolve
from rlhf.data.processor import Processor
from rlhf.errors import ConfigError, WeightSyncError
from rlhf.models.keys import from_hub
from rlhf.models.llava import DTYPES
from rlhf.models.lora import attach, is_adapter, memory_name
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.updates import UpdateState
from rlhf.rollout.weights import WeightBucket, unpack


class HfEngine:
    """`RolloutEngine` on transformers' own forward pass, of whatever family the model is."""

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        processor: Processor,
        seed: int = 0,
        lora: LoraConfig | None = None,
    ) -> None:
        from transformers import AutoModelForImageTextToText

        self._config, self._processor, self._state = config, processor, UpdateState()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = AutoModelForImageTextToText.from_pretrained(
            resolve(model.path), dtype=DTYPES[config.dtype], attn_implementation=model.attention
        ).to(self._device)
        if lora:
            attach(self._model.model.language_model, lora)
        self._model.eval().requires_grad_(False)

    @property
    def version(self) -> int:
        """The policy version whose weights answer; -1 while an update is unfinished."""
        return self._state.version

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """One completion per prompt, in order. Raises ConfigError for a JSON schema, which needs the vllm engine."""
        self._state.require_closed()
        if sampling.json_schema is not None:
            raise ConfigError(
                ["sampling.json_schema: the transformers engine cannot hold answers to one; use rollout.engine=vllm"]
            )
        return [self._complete(prompt, sampling) for prompt in prompts]

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of given response tokens."""
        self._state.require_closed()
        scores = []
        for prompt, response in zip(prompts, responses, strict=True):
            ids = self._processor.prompt_ids(prompt)
            head = torch.tensor([ids], device=self._device)
            tail = torch.tensor([list(response)], dtype=torch.long, device=self._device)
            at = self._positions(prompt, ids, len(response))
            # in two steps, because a placeholder that was sampled is an ordinary token
            pixels = self._pixels(prompt)
            first = self._model(
                input_ids=head, position_ids=at(0, len(ids)), use_cache=True, logits_to_keep=1, **pixels
            )
            rest = at(len(ids), len(ids) + len(response))
            second = self._model(input_ids=tail, position_ids=rest, past_key_values=first.past_key_values)
            before = torch.cat([first.logits, second.logits[:, :-1]], dim=1)[0]  # [N, V]
            log_p = torch.log_softmax(before.float(), dim=-1)
            scores.append(log_p.gather(1, tail.T).squeeze(1).tolist())
        return scores

    def begin_update(self, version: int) -> None:
        """Open an update to `version`; one that is still open is dropped."""
        self._state.begin(version)

    @torch.no_grad()
    def load_bucket(self, bucket: WeightBucket) -> None:
        """Load one bucket (see `wire_name`). After a WeightSyncError the update must begin again."""
        self._state.require_open()
        try:
            for name, tensor in unpack(bucket):
                inner = memory_name(name) if is_adapter(name) else from_hub(name, self._processor.family.names)
                parameter = self._model.get_parameter(inner)
                if parameter.shape != tensor.shape:
                    raise WeightSyncError(f"{name} is {tuple(tensor.shape)}, expected {tuple(parameter.shape)}")
                parameter.copy_(tensor)
        except (KeyError, AttributeError) as error:
            self._state.failed(str(error))
            raise WeightSyncError(f"the model has no such parameter: {error}") from error
        except WeightSyncError as error:
            self._state.failed(str(error))
            raise
        self._state.received(bucket.digest)

    def finish_update(self) -> str:
        """Close the update and return the fingerprint of the buckets received."""
        return self._state.finish()

    @torch.no_grad()
    def _complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        head = self._processor.prompt_ids(prompt, sampling.max_new_tokens, self._config.max_length)
        generator = torch.Generator().manual_seed(sampling.seed_for(prompt.id))
        inputs = {"input_ids": torch.tensor([head], device=self._device), **self._pixels(prompt)}
        at, begin, end = self._positions(prompt, head, sampling.max_new_tokens), 0, len(head)
        token_ids: list[int] = []
        logprobs: list[float] = []
        while len(token_ids) < sampling.max_new_tokens:
            output = self._model(**inputs, position_ids=at(begin, end), use_cache=True, logits_to_keep=1)
            logits = output.logits[0, -1].float().cpu()  # [V]
            log_p = processed_logprobs(logits, sampling)
            if sampling.temperature == 0:
                token = int(log_p.argmax())
            else:
                token = int(torch.multinomial(log_p.exp(), 1, generator=generator))
            token_ids.append(token)
            logprobs.append(float(log_p[token]))
            if token == self._processor.eos_id:
                break
            inputs = {
                "input_ids": torch.tensor([[token]], device=self._device),
                "past_key_values": output.past_key_values,
            }
            begin, end = end, end + 1
        return Completion(
            prompt_id=prompt.id,
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            text=self._processor.decode(token_ids),
            finish_reason="stop" if token_ids[-1] == self._processor.eos_id else "length",
            policy_version=self.version,
        )

    def _positions(self, prompt: Prompt, head: Sequence[int], new: int) -> Callable[[int, int], Tensor | None]:
        """Position ids of a stretch of the prompt and of `new` tokens after it, None for the model's own."""
        size = None if prompt.image is None else self._processor.image_size(prompt.image)
        places = torch.tensor([[*(token == self._processor.image_id for token in head), *[False] * new]])
        every = self._processor.family.positions(None, places.to(self._device), [size])
        return lambda begin, end: None if every is None else every[..., begin:end]

    def _pixels(self, prompt: Prompt) -> dict[str, Tensor]:
        if prompt.image is None:
            return {}
        inputs = self._processor.model_inputs(prompt.image)
        return {
            name: tensor.to(self._device, self._model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }


def processed_logprobs(logits: Tensor, sampling: Sampling) -> Tensor:
    """[V] log-probabilities of the distribution that is drawn from: temperature, then top-k, then top-p."""
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        lowest = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    if sampling.top_p < 1:
        probabilities, order = torch.softmax(logits, dim=-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities  # mass of the likelier tokens; 0 for the likeliest
        logits = logits.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    return torch.log_softmax(logits, dim=-1)
