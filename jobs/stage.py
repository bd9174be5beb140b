"""How every supervised job runs: refuse what cannot fit, train on Ray Train, write the report, say where things are."""

from __future__ import annotations

import time
from typing import Any

from rlhf.checkpoint import local_path
from rlhf.supervised import SupervisedConfig


def run_stage(config: SupervisedConfig, build: Any) -> dict[str, float]:
    """Run one supervised job to its end; does nothing if an earlier process finished it."""
    folder = local_path(config.run)
    if (folder / "COMPLETE").exists():
        print(f"{config.run.name} is complete: {folder} (--fresh begins again)", flush=True)
        return {}
    config.batch.per_rank(config.workers.ranks)
    import ray

    from actors.supervised import fit
    from cluster.connect import connect
    from cluster.placement import check, plan

    began = time.monotonic()
    own = connect(shared_cores=config.workers.ranks > 1)
    check(plan({"workers": config.workers}), [node["Resources"] for node in ray.nodes() if node["Alive"]])
    results = fit(config, build)
    from rlhf.report import write_report

    write_report(folder)
    for name, value in sorted(results.items()):
        print(f"  {name}: {value:.4f}")
    print(f"{config.run.name}: done in {time.monotonic() - began:.0f} s, model in {folder / 'model'}", flush=True)
    if own:
        ray.shutdown()
    return results
