"""Many questions to an endpoint at once: answers are kept as they come, and one that never comes stops no other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from rlhf.errors import EndpointError

PATIENCE = 20
"""Questions in a row without an answer after which an endpoint is taken for dead."""

Key = TypeVar("Key", bound=Hashable)
Said = TypeVar("Said")


@dataclass
class Patience:
    """How long an endpoint may be silent; one for all calls of `ask_all` that ask the same endpoint.

    `settled` questions were asked before, of which the last `in_a_row` have no answer.
    """

    most: int = PATIENCE
    settled: int = 0
    in_a_row: int = 0


def ask_all(
    questions: Mapping[Key, Callable[[], Said]],
    keep: Callable[[Key, Said], None],
    concurrency: int,
    patience: Patience,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[Key, str]:
    """Ask every question by its key; an answer is given to `keep` as soon as it is there, by the calling thread.

    Returns why the others have none, by key: the endpoint was silent (`EndpointError.silent`). They are not kept, so
    that a repeated command can ask them again. `tell` hears how many are settled, those of earlier calls included.
    Raises EndpointError where the endpoint refuses, or is silent `patience.most` times in a row or on everything, and
    says on how many; what was answered until then is kept.
    """
    lost: dict[Key, str] = {}
    most = min(patience.most, patience.settled + len(questions))
    waiting = iter(questions.items())
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        asked = {pool.submit(ask): key for key, ask in islice(waiting, concurrency)}
        try:
            while asked:
                for future in wait(asked, return_when=FIRST_COMPLETED).done:
                    key = asked.pop(future)
                    patience.settled += 1
                    try:
                        keep(key, future.result())
                        patience.in_a_row = 0
                    except EndpointError as error:
                        lost[key] = _or_raise(error, patience, most)
                    tell(patience.settled)
                # no more than can be under way: an endpoint that is dead is not asked further
                asked |= {pool.submit(ask): key for key, ask in islice(waiting, concurrency - len(asked))}
        except Exception:
            pool.shutdown()
            for future, key in asked.items():  # what was under way has its answer too
                if future.exception() is None:
                    keep(key, future.result())
            raise
    return lost


def _or_raise(error: EndpointError, patience: Patience, most: int) -> str:
    """Why a question has no answer, unless that ends the asking."""
    patience.in_a_row += 1
    if not error.silent:
        raise error
    if patience.in_a_row >= most:
        count = f"the last {patience.in_a_row} of {patience.settled} questions have no answer"
        raise type(error)(f"{count}: {error}", silent=True) from error
    return str(error)
