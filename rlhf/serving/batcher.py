"""Requests that wait at the same time go to the engine together; one thread asks it, so the event loop stays free."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rlhf.batch import Completion, Prompt
from rlhf.errors import DataError, WorkerLostError
from rlhf.rollout.base import RolloutEngine, Sampling
from rlhf.serving.service import Call

_PROBE = Call(Prompt("probe", "Hello?"), Sampling(max_new_tokens=1, temperature=0.0), None, lambda said, seconds: {})


@dataclass(frozen=True, slots=True)
class _Waiting:
    call: Call
    future: asyncio.Future[Completion]


class Batcher:
    """Holds an engine. `ask` belongs to one event loop."""

    def __init__(self, build: Callable[[], RolloutEngine], rows: int, gather_seconds: float) -> None:
        """Builds the engine in the thread that will ask it, and has it say one word, so that no client waits for that.

        `rows` calls go to the engine together, at most; an idle engine waits `gather_seconds` for more than one. Raises
        what building or the first word raises.
        """
        self._rows, self._gather_seconds = rows, gather_seconds
        self._waiting: deque[_Waiting] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._suspect = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine = self._thread.submit(build).result()
        self._thread.submit(self._engine.generate, [_PROBE.prompt], _PROBE.sampling).result()

    async def ask(self, call: Call) -> Completion:
        """The engine's answer. Raises what the engine raised for this very call; neighbours are not hurt by it."""
        waiting = _Waiting(call, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await waiting.future

    async def check(self) -> None:
        """Raises WorkerLostError if the engine failed lately, and fails again."""
        if self._suspect:
            said = (await self._in_thread([_PROBE]))[0]
            if isinstance(said, Exception):
                raise WorkerLostError("the engine of a server", f"{type(said).__name__}: {said}") from said
            self._suspect = False

    async def _work(self) -> None:
        if len(self._waiting) < self._rows:
            await asyncio.sleep(self._gather_seconds)
        while batch := self._take():
            answers = await self._in_thread([one.call for one in batch])
            for one, said in zip(batch, answers, strict=True):
                if one.future.done():
                    continue  # its client went away
                if isinstance(said, Exception):
                    one.future.set_exception(said)
                else:
                    one.future.set_result(said)

    def _take(self) -> list[_Waiting]:
        """The oldest call and those that are sampled as it is, in order; others wait for the next batch."""
        alive = [one for one in self._waiting if not one.future.done()]
        batch = [one for one in alive if one.call.sampling == alive[0].call.sampling][: self._rows]
        taken = {id(one) for one in batch}
        self._waiting = deque(one for one in alive if id(one) not in taken)
        return batch

    async def _in_thread(self, calls: Sequence[Call]) -> list[Completion | Exception]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answers, calls)

    def _answers(self, calls: Sequence[Call]) -> list[Completion | Exception]:
        try:
            return list(self._engine.generate([one.prompt for one in calls], calls[0].sampling))
        except Exception as error:
            if len(calls) > 1:  # one of them is to blame: ask each alone
                return [self._answers([one])[0] for one in calls]
            self._suspect = self._suspect or not isinstance(error, DataError)
            return [error]
