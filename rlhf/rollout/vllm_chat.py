"""A chat model in vLLM, in the calling process: whoever asks at the same time is answered together."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rlhf.config import resolve
from rlhf.errors import PromptTooLongError, WorkerLostError
from rlhf.rollout.base import RolloutConfig
from rlhf.rollout.vllm_engine import device_environment, device_options


@dataclass(frozen=True, slots=True)
class _Question:
    token_ids: list[int]
    reply: Future[str] = field(default_factory=Future)


class VllmChat:
    """Replies greedily; `reply` may be called from any number of threads.

    One thread drives the engine, and a question joins those under way at the engine's next step: a long reply keeps
    nobody waiting. Text only; the model's own chat template writes the prompt.
    """

    def __init__(self, model: str, config: RolloutConfig, max_tokens: int) -> None:
        """Starts the engine. `max_tokens` is the budget of one reply."""
        for name, value in device_environment().items():
            os.environ.setdefault(name, value)
        from transformers import AutoTokenizer
        from vllm import LLM, SamplingParams

        path = resolve(model)
        self._tokenizer = AutoTokenizer.from_pretrained(path)
        self._context, self._max_tokens = config.max_length, max_tokens
        self._params = SamplingParams(max_tokens=max_tokens, temperature=0.0, detokenize=False)
        self._asked: queue.SimpleQueue[_Question] = queue.SimpleQueue()
        self._lost: WorkerLostError | None = None
        self._llm = LLM(
            path,
            dtype=config.dtype,
            max_model_len=config.max_length,
            max_num_seqs=config.max_sequences,
            generation_config="vllm",  # no defaults from the model's folder
            **device_options(config),
        )
        threading.Thread(target=self._drive, name="vllm chat", daemon=True).start()

    def reply(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of the next turn. Raises PromptTooLongError, and WorkerLostError once the engine has failed."""
        question = _Question(self._token_ids(messages))
        self._asked.put(question)
        if self._lost is not None:  # nobody reads the queue any more
            raise self._lost
        return question.reply.result()

    def _token_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) + self._max_tokens > self._context:
            raise PromptTooLongError(
                f"{len(ids)} tokens and a reply of {self._max_tokens} do not fit into a context of {self._context}"
            )
        return ids

    def _drive(self) -> None:
        engine, waiting, names = self._llm.llm_engine, dict[str, _Question](), count()
        try:
            while True:
                while not waiting or not self._asked.empty():
                    name, question = str(next(names)), self._asked.get()
                    waiting[name] = question
                    engine.add_request(name, {"prompt_token_ids": question.token_ids}, self._params)
                for output in engine.step():
                    if output.finished:
                        text = self._tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)
                        waiting.pop(output.request_id).reply.set_result(text)
        except Exception as error:
            self._lost = WorkerLostError("the engine of a chat model", f"{type(error).__name__}: {error}")
            left = list(waiting.values())
            while not self._asked.empty():
                left.append(self._asked.get())
            for question in left:
                question.reply.set_exception(self._lost)
