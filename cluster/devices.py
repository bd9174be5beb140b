"""Which ranks share a device when a plan is granted: Ray fills a partly used GPU before it takes another one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.placement import Plan
from rlhf.config import RoleConfig

_EXACT = 1e-9


@dataclass(slots=True)
class Device:
    """One GPU and the (role, rank) pairs on it; the device of index -1 is the host, for roles without a GPU."""

    index: int
    free: float = 1.0
    ranks: list[tuple[str, int]] = field(default_factory=list)


def devices(plan: Plan, roles: Mapping[str, RoleConfig]) -> list[Device]:
    """Devices of one cluster, in the order in which bundles take them; a rank of several GPUs is on each of them."""
    host = Device(-1)
    found: list[Device] = []
    for bundle, resources in enumerate(plan.bundles):
        inside = [name for name, at in plan.index.items() if at == bundle]
        wanted = resources.get("GPU", 0.0)
        local = _with_room(found, wanted) if 0 < wanted < 1 else []
        for role, rank in inside:
            gpus = roles[role].gpus
            if gpus == 0:
                host.ranks.append((role, rank))
                continue
            chosen = _with_room(local, gpus) if gpus < 1 else []
            if not chosen:
                chosen = [Device(len(found) + number) for number in range(math.ceil(gpus))]
                found += chosen
                local += chosen
            for device in chosen:
                device.free -= min(1.0, gpus)
                device.ranks.append((role, rank))
    return [*found, *([host] if host.ranks else [])]


def _with_room(candidates: list[Device], amount: float) -> list[Device]:
    return [device for device in candidates if device.free + _EXACT >= amount][:1]
