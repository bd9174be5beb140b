"""One rank of roles that never learn, whole and shared out: a process of test_frozen.py. No cluster is needed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from actors.frozen import FrozenRank, ReferenceRank, RewardRank
from actors.group import even_shares
from actors.preference import PairReferenceRank
from rlhf.batch import Completion, PairBatch, deal
from rlhf.config import load
from rlhf.data.processor import Processor
from rlhf.online_config import OnlineConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.roles import Rollout
from tests.fakes import make_prompts

TINY = Path(__file__).parents[2] / "jobs" / "configs" / "tiny"
ROWS = 7


def ppo(settings: dict[str, Any], weights: str) -> OnlineConfig:
    learned = {"kind": "learned", "micro_rows": 2, "model": model(settings, "reward")}
    reward = {
        "kind": "mixture",
        "rewards": [{"name": "a", "weight": 1.0, "reward": learned}],
        "costs": [{"name": "b", "reward": learned | {"model": model(settings, "cost")}}],
    }
    roles = [f"roles.reference.weights={weights}", f"roles.reward.weights={weights}"]
    parts = [f"model={json.dumps(model(settings, 'policy'))}", f"reward={json.dumps(reward)}", "policy.micro_rows=2"]
    return load(OnlineConfig, TINY / "ppo.yaml", [*parts, "rollout.max_length=128", *roles])


def dpo(settings: dict[str, Any], weights: str) -> PreferenceConfig:
    parts = [
        f"model={json.dumps(model(settings, 'policy'))}",
        "reference.micro_rows=2",
        "answers.engine.max_length=128",
    ]
    return load(PreferenceConfig, TINY / "dpo.yaml", [*parts, f"roles.reference.weights={weights}"])


def model(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {"path": f"{settings['models']}/{name}", "dtype": "float32", "max_length": 256, "template": "llava_hf"}


def held(rank: FrozenRank) -> int:
    """Elements of the weights that this rank has between two passes."""
    return sum(getattr(one, "ds_tensor", one).numel() for one in rank.model.parameters())


def one(settings: dict[str, Any], weights: str) -> dict[str, Any]:
    """What this rank says of its rows, in the order in which the driver puts the ranks' answers together."""
    rank, world = dist.get_rank(), dist.get_world_size()
    ranks: list[Any] = [ReferenceRank(rank, world, 1, ppo(settings, weights))]
    ranks += [
        PairReferenceRank(rank, world, 1, dpo(settings, weights)),
        RewardRank(rank, world, 1, ppo(settings, weights)),
    ]
    for role in ranks if weights != "whole" else ():
        role.build()
    reference, pair_reference, reward = ranks
    processor = Processor.load(reference.config.model)
    prompts = make_prompts(settings["images"], 4) + make_prompts([], ROWS - 4)
    rows = [processor.encode(prompt, "yes " * (1 + 3 * place % 5)) for place, prompt in enumerate(prompts)]
    tokens = processor.collate(rows)
    mine = deal(tokens.sizes, world).hands[rank]
    others = processor.collate([processor.encode(prompt, "no no") for prompt in prompts])
    pairs = PairBatch(tokens.select(mine), others.select(mine))
    ids = [[token for token, counted in zip(row.ids, row.response, strict=True) if counted] for row in rows]
    answers = [
        Completion(p.id, tuple(row), (0.0,) * len(row), "", "stop", 0) for p, row in zip(prompts, ids, strict=True)
    ]
    rollouts = [Rollout(prompts[row], answers[row]) for row in even_shares(ROWS, world)[rank]]
    scores = reward.score(rollouts)
    return {
        "rows": mine,
        "reference": reference.logprobs(tokens.select(mine)).sum(dim=1).tolist(),
        "pairs": pair_reference.logprobs(pairs).tolist(),
        "scores": [[score.value, score.costs["b"]] for score in scores],
        "held": [held(reference), held(pair_reference)],
    }


def main() -> None:
    settings = json.loads(sys.argv[1])
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ReferenceRank(rank, world, 1, ppo(settings, "whole")).join(
        (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), "gloo"
    )
    results = {weights: one(settings, weights) for weights in ("whole", "partitioned", "offloaded")}
    (Path(settings["out"]) / f"frozen_{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
