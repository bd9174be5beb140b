"""Many questions to a judge at once: answers are kept as they come, and one that never comes stops no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from rlhf.errors import EndpointError
from rlhf.ledger import Ledger

PATIENCE = 20
"""Questions in a row without an answer after which an endpoint is taken for dead."""


def ask_all(
    questions: Mapping[str, Callable[[], dict[str, Any]]],
    ledger: Ledger,
    concurrency: int,
    tell: Callable[[int], None],
    done: int = 0,
    patience: int = PATIENCE,
) -> dict[str, str]:
    """Ask every question by its key; an answer is in `ledger` as soon as it is there.

    Returns why the others have none, by key: the endpoint was silent (`EndpointError.silent`). They are not kept, and
    a repeated command asks them again. `tell` hears how many are settled, beginning behind the `done` of earlier calls.
    Raises EndpointError where the endpoint refuses, or is silent `patience` times in a row or on everything; what was
    answered until then is kept.
    """
    lost: dict[str, str] = {}
    in_a_row, most = 0, min(patience, done + len(questions))
    with ThreadPoolExecutor(max_workers=concurrency) as pool:
        asked = {pool.submit(ask): key for key, ask in questions.items()}
        try:
            for number, future in enumerate(as_completed(asked), start=done + 1):
                try:
                    ledger.add(asked[future], future.result())
                    in_a_row = 0
                except EndpointError as error:
                    in_a_row += 1
                    if not error.silent or in_a_row >= most:
                        raise
                    lost[asked[future]] = str(error)
                tell(number)
        except Exception:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return lost
