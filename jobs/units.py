"""Units of work on Ray Data: each is done by an actor that writes its own part file, so a killed job goes on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

_SECONDS_BETWEEN_LINES = 10


def run_units(
    worker: type, arguments: tuple[Any, ...], units: Sequence[dict[str, Any]], workers: int, gpus: int = 0
) -> None:
    """Call `worker(*arguments)` with every unit, on at most `workers` CPUs with `gpus` each, and say how it goes on.

    The worker returns a dict with `rows`, how many it did. A unit whose worker dies is done again by another one.
    Raises ResourceError if no node can hold one worker.
    """
    import ray.data

    from cluster.connect import connect
    from cluster.placement import check, plan
    from rlhf.config import RoleConfig

    own = connect(shared_cores=True)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check(plan({"worker": RoleConfig(gpus=gpus)}), nodes)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = ray.data.from_items(list(units), override_num_blocks=len(units))
    pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=workers, max_size=workers)  # all that fit start at once
    done = items.map(worker, fn_constructor_args=arguments, num_cpus=1, num_gpus=gpus, compute=pool)
    spoken, rows = time.monotonic(), 0
    for count, result in enumerate(done.iter_rows(), start=1):
        rows += result["rows"]
        if time.monotonic() - spoken > _SECONDS_BETWEEN_LINES or count == len(units):
            spoken = time.monotonic()
            print(f"{count} of {len(units)} units, {rows} rows", flush=True)
    if own:
        ray.shutdown()
