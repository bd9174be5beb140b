"""The loop over the policy's own rollouts: PPO, GRPO or RLOO, from prompt to weight sync, in ten steps.

`iterate` is one iteration and reads from top to bottom. It talks to roles, never to machines, and computes nothing
itself: the maths is in `rlhf/algorithms/`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.algorithms import ON_POLICY
from rlhf.algorithms.on_policy import mini_batches
from rlhf.batch import Completion, Experience, Prompt, Score, TokenBatch
from rlhf.checkpoint import Checkpoint, RunFolder
from rlhf.constraints import Multiplier, constrained_scores, first_multipliers, mean_cost
from rlhf.data.processor import Processor
from rlhf.data.stream import rows_at
from rlhf.errors import LogprobGapError, StaleRolloutError
from rlhf.metrics import MetricsLog, Progress, SamplesLog
from rlhf.monitors import reward_monitors
from rlhf.online_config import LoopConfig, OnlineConfig
from rlhf.pareto import Point, best
from rlhf.roles import Roles, Rollout
from rlhf.selection import choose, measure, record


@dataclass(frozen=True, slots=True)
class OnlineState:
    """Everything the loop itself must remember; `iteration` is also the policy's version."""

    iteration: int = 0
    cursor: int = 0  # prompts taken from the stream so far
    kl_coefficient: float = 0.0
    multipliers: dict[str, Multiplier] = field(default_factory=dict)
    points: tuple[Point, ...] = ()  # what was evaluated so far; `selection` chooses among them


@dataclass
class Stopwatch:
    """Seconds per stage of one iteration."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[f"seconds/{stage}"] = self.seconds.get(f"seconds/{stage}", 0.0) + time.monotonic() - start

    def all(self) -> dict[str, float]:
        """Every stage and the total."""
        return {**self.seconds, "seconds/total": time.monotonic() - self.began}


@dataclass(frozen=True, slots=True)
class Iteration:
    """What one iteration leaves behind."""

    state: OnlineState
    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def iterate(
    state: OnlineState, roles: Roles, prompts: Sequence[Prompt], processor: Processor, config: OnlineConfig
) -> Iteration:
    """Steps 1 to 9 of one iteration; the caller evaluates and saves (step 10)."""
    clock, loop, seed = Stopwatch(), config.loop, config.run.seed
    # 1. The next prompts: text and image references, no pixels.
    rows = rows_at(len(prompts), seed, state.cursor, loop.prompts_per_iteration)
    batch = _repeated([prompts[row] for row in rows], config.algorithm.answers_per_prompt)
    # 2. Answers with the engine's own log-probabilities.
    sampling = config.sampling.model_copy(update={"seed": seed * 1_000_003 + state.iteration})
    with clock("generate"):
        completions = roles.rollout.generate(batch, sampling).result()
    # 3. Join: placeholders expanded, response_mask final.
    tokens = processor.join(batch, [completion.token_ids for completion in completions])
    # 4. Everybody judges at once.
    with clock("score"):
        judging = roles.policy.logprobs(tokens), roles.reference.logprobs(tokens)
        valuing = roles.critic.values(tokens) if roles.critic else None
        scoring = roles.reward.score([Rollout(*pair) for pair in zip(batch, completions, strict=True)])
        (old, reference), scores = (one.result() for one in judging), scoring.result()
        values = valuing.result() if valuing else torch.zeros_like(old)
    # 5. Refuse stale or inconsistent rollouts.
    shaped = constrained_scores(scores, state.multipliers)
    experience = _experience(tokens, completions, shaped, old, reference, values)
    gap = _check(experience, completions, state.iteration, loop)
    # 6. Rewards, advantages, returns.
    with clock("estimate"):
        algorithm = ON_POLICY[config.algorithm.kind]
        experience, metrics = algorithm.estimate(experience, config.algorithm, state.kl_coefficient)
    # 7. Policy and critic (if there is one) each step exactly once per mini-batch.
    with clock("update"):
        metrics |= _update(experience, roles, config, state.iteration)
    # 8. The engines get the new weights.
    with clock("sync"):
        sync = roles.rollout.sync(state.iteration + 1)
    # 9. Metrics, samples, the KL controller, the multipliers of constraints.
    controller = replace(config.algorithm.controller(), coefficient=state.kl_coefficient)
    controller = controller.update(metrics["kl/sequence"], len(batch))
    metrics |= clock.all() | {"sync/" + key: value for key, value in asdict(sync).items() if isinstance(value, float)}
    metrics |= {"rollout/logprob_gap": gap, "kl/coefficient": state.kl_coefficient}
    multipliers, constrained = _multiplied(state, scores, config)
    metrics |= constrained | reward_monitors(completions, scores)
    metrics["rollout/tokens_per_second"] = float(tokens.response_mask.sum()) / clock.seconds["seconds/generate"]
    samples = _samples(batch, completions, scores, loop.samples_per_iteration)
    after = replace(
        state,
        iteration=state.iteration + 1,
        cursor=state.cursor + len(rows),
        kl_coefficient=controller.coefficient,
        multipliers=multipliers,
    )
    return Iteration(after, metrics, samples)


def train(
    roles: Roles,
    prompts: Sequence[Prompt],
    processor: Processor,
    config: OnlineConfig,
    folder: RunFolder,
    validation: Sequence[Prompt] = (),
) -> OnlineState:
    """Iterate to the end, going on from the newest checkpoint. The engines must hold that checkpoint's weights.

    With `config.selection` the policy answers the `validation` prompts when due; `take_best` then ends the run.
    """
    state = state_of(folder.checkpoints.latest(), config)
    if config.selection:  # what a lost part of the run had measured is forgotten
        record(folder.path, state.points, config.selection.bounds, validation)
    log, samples = MetricsLog(folder.path, state.iteration), SamplesLog(folder.path, state.iteration)
    with Progress(config.run.name, config.loop.iterations, state.iteration) as progress:
        while state.iteration < config.loop.iterations:
            done = iterate(state, roles, prompts, processor, config)
            # 10. When due, evaluate, and save everything that must resume as one state.
            state, measured = _evaluated(done.state, roles, validation, config, folder)
            metrics, last = done.metrics | measured, state.iteration == config.loop.iterations
            if last or measured or state.iteration % config.run.checkpoint_every == 0:
                start = time.monotonic()
                save(state, roles, config, folder)
                metrics["seconds/checkpoint"] = time.monotonic() - start
            if last or measured or state.iteration % config.run.log_every == 0:
                log.log(state.iteration, metrics)
            samples.append(state.iteration, done.samples)
            shown = {"reward": "score/mean", "kl": "kl/sequence", "length": "response/length", "s": "seconds/total"}
            progress.advance(state.iteration, {name: metrics[key] for name, key in shown.items()})
    log.close()
    samples.close()
    return state


def state_of(checkpoint: Checkpoint | None, config: OnlineConfig) -> OnlineState:
    """The loop's state in a checkpoint, or at the start."""
    if checkpoint is None:
        multipliers = first_multipliers(config.constraints)
        return OnlineState(kl_coefficient=config.algorithm.kl_coefficient, multipliers=multipliers)
    known = {name: Multiplier(**one) for name, one in checkpoint.state.get("multipliers", {}).items()}
    points = tuple(Point(**one) for one in checkpoint.state.get("points", ()))
    return OnlineState(**{**checkpoint.state, "multipliers": known, "points": points})


def save(state: OnlineState, roles: Roles, config: OnlineConfig, folder: RunFolder) -> None:
    """Write one checkpoint: policy, critic and loop state together. The best of the evaluated ones stays on disk."""
    target = folder.checkpoints.begin(state.iteration)
    saving = [roles.policy.save(target / "policy")]
    if roles.critic:
        saving.append(roles.critic.save(target / "critic"))
    for one in saving:
        one.result()
    pinned = None
    if config.selection and state.points:
        pinned = best(state.points, config.selection.bounds).iteration
    folder.checkpoints.commit(state.iteration, asdict(state), pinned)
    folder.publish()


def restore(roles: Roles, checkpoint: Checkpoint) -> None:
    """The inverse of `save` for policy and critic; the engines need a sync afterwards."""
    loading = [roles.policy.load(checkpoint.folder / "policy")]
    if roles.critic:
        loading.append(roles.critic.load(checkpoint.folder / "critic"))
    for one in loading:
        one.result()


def take_best(
    state: OnlineState, roles: Roles, config: OnlineConfig, folder: RunFolder, validation: Sequence[Prompt]
) -> None:
    """After training, bring policy, critic and engines to the checkpoint that `config.selection` chooses, if it is set.

    Raises CheckpointError where no evaluated checkpoint can be read.
    """
    if config.selection is None:
        return
    bounds = config.selection.bounds
    choice = choose(state.points, bounds, folder.checkpoints, present=state.iteration)
    record(folder.path, state.points, bounds, validation, choice.lost)
    if choice.checkpoint:
        restore(roles, choice.checkpoint)
        roles.rollout.sync(choice.checkpoint.step)


def _evaluated(
    state: OnlineState, roles: Roles, validation: Sequence[Prompt], config: OnlineConfig, folder: RunFolder
) -> tuple[OnlineState, dict[str, float]]:
    """The state with one more point, and its metrics; nothing new where no evaluation is due."""
    selection = config.selection
    if selection is None or (state.iteration % selection.every and state.iteration < config.loop.iterations):
        return state, {}
    start = time.monotonic()
    point, metrics = measure(roles.rollout, validation, config.sampling.max_new_tokens, state.iteration)
    state = replace(state, points=(*state.points, point))
    record(folder.path, state.points, selection.bounds, validation)
    return state, metrics | {"seconds/evaluate": time.monotonic() - start}


def _repeated(prompts: Sequence[Prompt], times: int) -> list[Prompt]:
    """Every prompt so many times in a row; copies have ids of their own, so that their answers differ."""
    if times == 1:
        return list(prompts)
    return [replace(prompt, id=f"{prompt.id}#{copy}") for prompt in prompts for copy in range(times)]


def _experience(
    tokens: TokenBatch,
    completions: Sequence[Completion],
    scores: Tensor,
    old: Tensor,
    reference: Tensor,
    values: Tensor,
) -> Experience:
    engine = torch.zeros_like(old)
    engine[tokens.response_mask] = torch.tensor([p for one in completions for p in one.logprobs])  # row-major, as mask
    return Experience(
        tokens=tokens,
        old_logprobs=old,
        reference_logprobs=reference,
        rollout_logprobs=engine,
        old_values=values,
        scores=scores,
        truncated=torch.tensor([one.finish_reason == "length" for one in completions]),
        rewards=torch.zeros_like(old),
        advantages=torch.zeros_like(old),
        returns=torch.zeros_like(old),
    )


def _multiplied(
    state: OnlineState, scores: Sequence[Score], config: OnlineConfig
) -> tuple[dict[str, Multiplier], dict[str, float]]:
    """The multipliers after this iteration's costs, and what to log: the cost and the lambda that it was weighed by."""
    multipliers, metrics = {}, {}
    for one in config.constraints:
        cost, before = mean_cost(scores, one.name), state.multipliers[one.name]
        multipliers[one.name] = before.after(cost, one)
        metrics[f"constraint/{one.name}_lambda"] = before.value
        if cost is not None:
            metrics[f"constraint/{one.name}"] = cost
    return multipliers, metrics


def _check(experience: Experience, completions: Sequence[Completion], version: int, loop: LoopConfig) -> float:
    others = {completion.policy_version for completion in completions} - {version}
    if others:
        raise StaleRolloutError(f"a rollout of policy version {min(others)} at version {version}")
    gap = float((experience.old_logprobs - experience.rollout_logprobs).abs().max())
    if gap > loop.logprob_gap_bound:
        raise LogprobGapError(
            f"engine and learner differ by {gap:.3g} nats on a sampled token (loop.logprob_gap_bound="
            f"{loop.logprob_gap_bound}): same precision? same weights?"
        )
    return gap


def _update(experience: Experience, roles: Roles, config: OnlineConfig, iteration: int) -> dict[str, float]:
    algorithm = config.algorithm
    rows = len(experience)
    totals: dict[str, float] = {}
    steps = 0
    for epoch in range(algorithm.epochs):
        order_seed = (config.run.seed * 1_000_003 + iteration) * 101 + epoch
        for chosen in mini_batches(rows, algorithm.mini_batch_size, order_seed):
            mini_batch = experience.select(chosen)
            denominator = float(mini_batch.response_mask.sum())
            stepping = {"policy/": roles.policy.step(mini_batch, denominator)}
            if roles.critic:
                stepping["value/"] = roles.critic.step(mini_batch, denominator)
            for prefix, step in stepping.items():
                for name, value in step.result().items():
                    totals[prefix + name] = totals.get(prefix + name, 0.0) + value
            steps += 1
    return {name: value / steps for name, value in totals.items()}


def _samples(
    prompts: Sequence[Prompt], completions: Sequence[Completion], scores: Sequence[Score], count: int
) -> list[dict[str, Any]]:
    rows = list(zip(prompts, completions, scores, strict=True))[:count]
    return [
        {
            "prompt_id": prompt.id,
            "kind": prompt.kind,
            "question": prompt.question,
            "image": prompt.image,
            "response": completion.text,
            "score": score.value,
            "parts": score.parts,
            "costs": score.costs,
            "invalid": sorted(name for name, invalid in score.invalid.items() if invalid),
            "policy_version": completion.policy_version,
            "truncated": completion.finish_reason == "length",
        }
        for prompt, completion, score in rows
    ]
