"""Roles become bundles, and impossible demands are refused with what was asked and found."""

from __future__ import annotations

import pytest

placement = pytest.importorskip("cluster.placement", reason="needs ray")

from rlhf.config import RoleConfig  # noqa: E402
from rlhf.errors import ConfigError, ResourceError  # noqa: E402


def test_one_bundle_per_rank_and_none_for_colocated_roles() -> None:
    plan = placement.plan(
        {
            "policy": RoleConfig(ranks=2, cpus=2, gpus=0.6),
            "reference": RoleConfig(ranks=2, cpus=1, gpus=0.4, colocate_with="policy"),
            "rollout": RoleConfig(ranks=1, cpus=4, gpus=1),
        }
    )
    assert plan.bundles == [{"CPU": 3, "GPU": 1.0}, {"CPU": 3, "GPU": 1.0}, {"CPU": 4, "GPU": 1}]
    assert plan.index["reference", 1] == plan.index["policy", 1] == 1


def test_impossible_colocation_names_the_role() -> None:
    with pytest.raises(ConfigError, match="'critc' is not a role"):
        placement.plan({"reward": RoleConfig(colocate_with="critc")})
    with pytest.raises(ConfigError, match="3 ranks cannot share the 2 bundles"):
        placement.plan({"policy": RoleConfig(ranks=2), "reward": RoleConfig(ranks=3, colocate_with="policy")})


def test_totals_and_single_bundles_are_checked() -> None:
    wanted = placement.plan({"policy": RoleConfig(ranks=4, cpus=4, gpus=1)})
    placement.check(wanted, [{"CPU": 16, "GPU": 4}])
    with pytest.raises(ResourceError, match="4 GPUs are asked for, the cluster has 2"):
        placement.check(wanted, [{"CPU": 16, "GPU": 2}])
    with pytest.raises(ResourceError, match=r"no node has .* for policy\[0\]"):
        placement.check(wanted, [{"CPU": 3, "GPU": 1}] * 6)
