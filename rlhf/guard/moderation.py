"""Moderation of generated pictures: draw, judge, allow or block, and draw again a bounded number of times.

Nothing passes that was not read as Safe: a verdict that cannot be read, a missing one and a missing picture block.
Source: LlavaGuard seed page, 6.2 and row 17.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import Row, UniqueIds, id_of, read_json_rows, read_rows, text_of
from rlhf.guard.audit import share
from rlhf.guard.generators import Drawn, Generator, Wanted
from rlhf.guard.policy import Policy
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.taxonomy import is_none
from rlhf.guard.verdict import Verdict

Judge = Callable[[Sequence[GuardRequest], int], Mapping[str, Verdict]]
"""Verdicts by id for the requests of one try (counted from 0); what could not be asked has none."""


@dataclass(frozen=True, slots=True)
class Try:
    """One picture of a prompt, or why there is none, and what the guard said of it."""

    image: str | None
    problem: str
    verdict: Verdict | None
    silent: bool = False
    """Generator or guard never answered; asked again, it may."""

    @property
    def allowed(self) -> bool:
        """Whether the guard was understood and said Safe."""
        return self.verdict is not None and self.verdict.rating == "Safe"

    @property
    def reason(self) -> str:
        """Why it is allowed or blocked, in words."""
        if self.image is None:
            return f"no picture: {self.problem}"
        if self.verdict is None:
            return "no verdict: see rejected.jsonl"
        if self.verdict.rating is None:
            return f"invalid verdict: {self.verdict.reason}"
        return f"{self.verdict.rating}: {self.verdict.category or 'no category named'}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of one prompt; the last of its tries decides."""

    wanted: Wanted
    tries: tuple[Try, ...]

    @property
    def allowed(self) -> bool:
        """Whether its last picture may be shown."""
        return self.tries[-1].allowed

    def line(self) -> dict[str, Any]:
        """The decision as a line of JSON; a blocked picture keeps its path, for people who check."""
        last = self.tries[-1]
        verdict = last.verdict
        return {
            "id": self.wanted.id,
            "prompt": self.wanted.prompt,
            "prompt_category": self.wanted.category,
            "decision": "allow" if self.allowed else "block",
            "reason": last.reason,
            "tries": len(self.tries),
            "image": last.image,
            "status": verdict.status if verdict else None,
            "rating": verdict.rating if verdict else None,
            "categories": list(verdict.categories) if verdict else [],
            "rationale": verdict.rationale if verdict else "",
            "blocked_before": [one.reason for one in self.tries[:-1]],
        }


def read_wanted(path: Path, rejected: RejectedRows) -> list[Wanted]:
    """Rows {id, prompt, category?} of a JSON list or of JSON lines (.jsonl); bad rows go to `rejected`."""
    ids = UniqueIds()

    def parse(row: Row, _: int = 0) -> Wanted:
        identifier = id_of(row)
        ids.check(identifier)
        return Wanted(identifier, text_of(row, "prompt"), str(row.get("category") or ""))

    return read_json_rows(path, parse, rejected) if path.suffix == ".jsonl" else read_rows(path, parse, rejected)


def moderate(
    wanted: Sequence[Wanted],
    policy: Policy,
    generator: Generator,
    judge: Judge,
    tries: int,
    tell: Callable[[Sequence[Decision]], None] | None = None,
) -> list[Decision]:
    """A decision per prompt, in order. What is blocked is drawn again, `tries` times in all, where that can help.

    `tell` hears of all decisions so far after every try, later ones of the same prompt replacing earlier ones.
    """
    made: dict[str, tuple[Try, ...]] = {one.id: () for one in wanted}
    left = list(wanted)
    for attempt in range(tries if generator.tries else min(tries, 1)):
        pictures = dict(zip([one.id for one in left], generator.draw(left, attempt), strict=True))
        asked = [GuardRequest(name, one.image, policy) for name, one in pictures.items() if one.image is not None]
        verdicts = judge(asked, attempt) if asked else {}
        for name, drawn in pictures.items():
            made[name] += (_tried(drawn, verdicts.get(name)),)
        left = [one for one in left if not made[one.id][-1].allowed]
        if tell:
            tell([Decision(one, made[one.id]) for one in wanted])
        if not left:
            break
    return [Decision(one, made[one.id]) for one in wanted]


def statistics(decisions: Sequence[Decision]) -> dict[str, Any]:
    """Shares with 95 % intervals: of prompts that are blocked, and of pictures of each category that are unsafe.

    `pictures` count every try: all that the guard was asked about. Its categories leave the one for none out.
    """
    every = [one for decision in decisions for one in decision.tries]
    verdicts = [one.verdict for one in every if one.verdict is not None]
    read = [one for one in verdicts if one.rating is not None]
    blocked = [not one.allowed for one in decisions]
    first = [not one.tries[0].allowed for one in decisions]
    by_prompt: dict[str, list[bool]] = defaultdict(list)
    by_verdict: dict[str, list[bool]] = defaultdict(list)
    for decision in decisions:
        if decision.wanted.category:
            by_prompt[decision.wanted.category].append(not decision.allowed)
    for verdict in read:
        if verdict.category is not None and not is_none(verdict.category):
            by_verdict[verdict.category].append(verdict.rating == "Unsafe")
    return {
        "prompts": {"count": len(decisions), **share(sum(blocked), len(blocked), "blocked")},
        "first_try": share(sum(first), len(first), "blocked"),
        "pictures": {
            "count": sum(one.image is not None for one in every),
            "not_drawn": sum(one.image is None for one in every),
            "without_verdict": sum(one.image is not None and one.verdict is None for one in every),
            "invalid": len(verdicts) - len(read),
            "silent": sum(one.silent for one in every),
            **share(sum(one.rating == "Unsafe" for one in read), len(read), "unsafe"),
        },
        "prompt_categories": _shares(by_prompt, "prompts", "blocked"),
        "verdict_categories": _shares(by_verdict, "pictures", "unsafe"),
    }


def _tried(drawn: Drawn, verdict: Verdict | None) -> Try:
    if drawn.image is None:
        return Try(None, drawn.problem, None, drawn.silent)
    return Try(drawn.image, drawn.problem, verdict, verdict is not None and verdict.silent)


def _shares(flags: Mapping[str, Sequence[bool]], whole: str, part: str) -> dict[str, Any]:
    return {name: {whole: len(found), **share(sum(found), len(found), part)} for name, found in sorted(flags.items())}
