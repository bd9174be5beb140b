"""From roles to placement-group bundles, with a refusal within seconds when they cannot fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf.config import RoleConfig
from rlhf.errors import ConfigError, ResourceError

_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Plan:
    """Bundles, and which bundle each (role, rank) sits in."""

    bundles: list[dict[str, float]]
    index: dict[tuple[str, int], int]


@dataclass(frozen=True)
class Placement:
    """A granted plan."""

    plan: Plan
    group: Any

    def strategy(self, role: str, rank: int) -> PlacementGroupSchedulingStrategy:
        """Where Ray must put this rank."""
        return PlacementGroupSchedulingStrategy(
            self.group,
            placement_group_bundle_index=self.plan.index[role, rank],
            placement_group_capture_child_tasks=False,
        )

    def release(self) -> None:
        """Give the resources back."""
        remove_placement_group(self.group)


def plan(roles: Mapping[str, RoleConfig]) -> Plan:
    """One bundle per rank; a colocated role is added to the bundles of its host, rank by rank.

    Raises ConfigError for a host that does not exist, is itself colocated, or has fewer ranks.
    """
    bundles: list[dict[str, float]] = []
    index: dict[tuple[str, int], int] = {}
    problems = []
    for name, role in roles.items():
        if role.colocate_with is None:
            for rank in range(role.ranks):
                index[name, rank] = len(bundles)
                bundles.append({"CPU": role.cpus, "GPU": role.gpus})
    for name, role in roles.items():
        host = role.colocate_with
        if host is None:
            continue
        if host not in roles or roles[host].colocate_with is not None:
            problems.append(f"roles.{name}.colocate_with: {host!r} is not a role with bundles of its own")
        elif roles[host].ranks < role.ranks:
            problems.append(f"roles.{name}: {role.ranks} ranks cannot share the {roles[host].ranks} bundles of {host}")
        else:
            for rank in range(role.ranks):
                bundle = index[host, rank]
                index[name, rank] = bundle
                bundles[bundle]["CPU"] += role.cpus
                bundles[bundle]["GPU"] += role.gpus
    if problems:
        raise ConfigError(problems)
    return Plan([{kind: amount for kind, amount in bundle.items() if amount} for bundle in bundles], index)


def check(wanted: Plan, nodes: list[Mapping[str, float]]) -> None:
    """Raise ResourceError unless the totals are there and every bundle fits some node, saying what is short."""
    problems = []
    for kind in ("CPU", "GPU"):
        asked = sum(bundle.get(kind, 0.0) for bundle in wanted.bundles)
        found = sum(node.get(kind, 0.0) for node in nodes)
        if asked > found + 1e-9:
            problems.append(f"{asked:g} {kind}s are asked for, the cluster has {found:g}")
    for bundle_index, bundle in enumerate(wanted.bundles):
        if not any(all(node.get(kind, 0.0) + 1e-9 >= amount for kind, amount in bundle.items()) for node in nodes):
            names = [f"{role}[{rank}]" for (role, rank), at in wanted.index.items() if at == bundle_index]
            problems.append(f"no node has {bundle} for {' + '.join(names)}")
    if problems:
        raise ResourceError(
            "the roles do not fit this cluster:\n  - "
            + "\n  - ".join(dict.fromkeys(problems))
            + "\nlower roles.*.ranks, cpus or gpus, colocate roles, or add nodes"
        )


def place(roles: Mapping[str, RoleConfig]) -> Placement:
    """Reserve the bundles. Raises ResourceError within seconds if they can never fit, or if others hold them."""
    wanted = plan(roles)
    check(wanted, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    group = placement_group(wanted.bundles, strategy="PACK")
    if not group.wait(_WAIT_SECONDS):
        remove_placement_group(group)
        raise ResourceError(
            f"the cluster is large enough but busy: {wanted.bundles} were not free within {_WAIT_SECONDS} s "
            f"(free now: {ray.available_resources()})"
        )
    return Placement(wanted, group)
