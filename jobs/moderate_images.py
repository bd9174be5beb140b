"""Generated pictures that a guard lets pass: `python jobs/moderate_images.py --config ...`.

Prompts go to a generator, its pictures to a guard; what is not read as Safe is blocked and drawn again, `tries` times
in all. Writes `decisions.jsonl` and `evaluation/moderation.json`; kill it and repeat the command to go on. Where an
endpoint stayed silent the decision is to block, and a repeated command asks again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jobs.command_line import main
from rlhf.checkpoint import RunFolder
from rlhf.config import Config, ModelConfig, RoleConfig, RunConfig, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.errors import DataError, ImageError
from rlhf.evaluation.asking import Patience, ask_all
from rlhf.guard.asking import GuardGenerationConfig, batch_prompt, held_to, require_room_for
from rlhf.guard.generators import FolderConfig, ImagesEndpointConfig, Wanted
from rlhf.guard.guards import ChatGuard, EndpointConfig, GuardDecoding
from rlhf.guard.moderation import Decision, Judge, moderate, read_wanted, statistics
from rlhf.guard.policy import Policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.prompt import GuardRequest
from rlhf.guard.verdict import Verdict, parse_verdict, silent_verdict
from rlhf.ledger import Ledger, write_whole
from rlhf.rollout.base import RolloutConfig

DECISIONS = "decisions.jsonl"


class EngineGuardConfig(Config):
    """A guard's weights, in engines of this job."""

    kind: Literal["engine"] = "engine"
    """engine: the guard runs here. openai: it is behind an endpoint."""
    model: ModelConfig
    sampling: GuardDecoding = GuardDecoding()
    rollout: RolloutConfig = RolloutConfig()
    workers: RoleConfig = RoleConfig()
    batch_rows: int = Field(default=256, ge=1)
    """Pictures that one engine judges together."""

    def generation(self, run: RunConfig) -> GuardGenerationConfig:
        """As batch inference wants it; a picture that cannot be opened is blocked and does not stop the run."""
        return GuardGenerationConfig(
            run=run,
            model=self.model,
            sampling=self.sampling,
            rollout=self.rollout,
            workers=self.workers,
            batch_rows=self.batch_rows,
            max_rejected_share=1.0,
        )


class EndpointGuardConfig(EndpointConfig):
    """A guard behind any OpenAI-compatible endpoint; pictures leave the machine."""

    kind: Literal["openai"] = "openai"
    """openai: POST chat/completions."""
    sampling: GuardDecoding = GuardDecoding()


class ModerateConfig(Config):
    """Which prompts, who draws, who judges."""

    run: RunConfig
    prompts: str
    """JSON list or JSON lines of {id, prompt} and optionally category."""
    generator: Annotated[FolderConfig | ImagesEndpointConfig, Field(discriminator="kind")]
    guard: Annotated[EngineGuardConfig | EndpointGuardConfig, Field(discriminator="kind")]
    policy: PolicyConfig = PolicyConfig()
    tries: int = Field(default=1, ge=1)
    """Pictures of one prompt, at most: a blocked one is drawn again. A folder has one."""
    max_rejected_share: float = Field(default=0.0, ge=0, le=1)
    """Stop if more than this share of prompt rows is unusable."""
    label: str = ""
    """What the data are; stands in the results."""

    @model_validator(mode="after")
    def _guard_can_run(self) -> ModerateConfig:
        if isinstance(self.guard, EngineGuardConfig):
            self.guard.generation(self.run)  # refuses numbers that do not fit together
        return self


def run(config: ModerateConfig) -> dict[str, Any]:
    """Moderate every prompt, or go on where an earlier process was stopped; returns the statistics."""
    folder = RunFolder(config.run, config)
    try:
        target = folder.path / "evaluation" / "moderation.json"
        if folder.complete:
            print(f"{config.run.name} is complete: {folder.path} (--fresh begins again)", flush=True)
        else:
            _run(config, folder.path, target)
        results: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        _show(results)
        if results["pictures"]["silent"]:
            print("an endpoint was silent: repeat the command to ask it again", flush=True)
        elif not folder.complete:
            folder.mark_complete()
        print(f"decisions: {folder.path / DECISIONS}", flush=True)
        return results
    finally:
        folder.close()


def _run(config: ModerateConfig, folder: Path, target: Path) -> None:
    rejected = RejectedRows(folder / "rejected.jsonl")
    wanted = read_wanted(Path(resolve(config.prompts)), rejected)
    rejected.check(len(wanted) + rejected.count, config.max_rejected_share)
    if not wanted:
        raise DataError("no usable prompt", source=config.prompts)
    policy = config.policy.build()
    judge = build_judge(config, wanted, policy, folder, rejected)
    generator = config.generator.build(folder)
    decisions = moderate(wanted, policy, generator, judge, config.tries, lambda made: _write(folder, made))
    _write(folder, decisions)
    found = {
        "label": config.label,
        "guard": config.guard.model if isinstance(config.guard, EndpointGuardConfig) else config.guard.model.path,
        "decoding": config.guard.sampling.words,
        "policy": policy.name,
        "policy_sha256": policy.sha256,
        "policy_file_sha256": dict(policy.file_hashes),
        "tries": config.tries,
        "rejected": rejected.count,
        **statistics(decisions),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def build_judge(
    config: ModerateConfig, wanted: Sequence[Wanted], policy: Policy, folder: Path, rejected: RejectedRows
) -> Judge:
    """The guard of the configuration; what it said is kept in `folder`.

    An engine's model that is missing, or has no room for the policy (PromptTooLongError), is refused here.
    """
    if isinstance(config.guard, EndpointGuardConfig):
        return _endpoint_judge(config.guard, folder / "verdicts", rejected)
    return _engine_judge(config.guard.generation(config.run), wanted, policy, folder / "generation", rejected)


def _engine_judge(
    config: GuardGenerationConfig, wanted: Sequence[Wanted], policy: Policy, folder: Path, rejected: RejectedRows
) -> Judge:
    from rlhf.data.processor import Processor

    processor = Processor.load(config.model)
    require_room_for(config, [GuardRequest(policy.name, "", policy)], processor, with_image=False)
    places = {one.id: place for place, one in enumerate(wanted)}

    def judge(requests: Sequence[GuardRequest], attempt: int) -> Mapping[str, Verdict]:
        from jobs.generation import answer_prompts

        require_room_for(config, requests[:1], processor)
        name = f"try_{attempt}"
        prompts = {batch_prompt(one, name, places[one.id]): one for one in requests}
        models = {name: (config.model, list(prompts))}
        answers = answer_prompts(held_to(config, requests[0]), models, folder, rejected)[name]
        return {
            request.id: parse_verdict(answers[prompt.id].response, request.policy)
            for prompt, request in prompts.items()
            if prompt.id in answers
        }

    return judge


def _endpoint_judge(config: EndpointGuardConfig, folder: Path, rejected: RejectedRows) -> Judge:
    chat = config.chat(config.sampling.max_new_tokens)
    guard = ChatGuard(chat, config.sampling, config.concurrency)
    made_by = {"guard": f"{config.model} at {chat.host}", "decoding": config.sampling.words}

    def keep(ledger: Ledger, key: str, said: Verdict | ImageError) -> None:
        if isinstance(said, ImageError):
            rejected.add(said)
        else:
            ledger.add(key, {"raw": said.raw})

    def judge(requests: Sequence[GuardRequest], attempt: int) -> Mapping[str, Verdict]:
        with Ledger(folder, made_by) as ledger:
            keys = {one.id: json.dumps([attempt, one.id, one.image, one.policy.sha256]) for one in requests}
            todo = {keys[one.id]: partial(_ask, guard, one) for one in requests if keys[one.id] not in ledger.entries}
            patience = Patience(settled=len(ledger.entries))
            lost = ask_all(todo, partial(keep, ledger), config.concurrency, patience)
            said = {
                one.id: parse_verdict(ledger.entries[keys[one.id]]["raw"], one.policy)
                for one in requests
                if keys[one.id] in ledger.entries
            }
        return said | {one.id: silent_verdict(lost[keys[one.id]]) for one in requests if keys[one.id] in lost}

    return judge


def _ask(guard: ChatGuard, request: GuardRequest) -> Verdict | ImageError:
    """The verdict, or why the picture cannot be shown to the guard: that refuses its own request alone."""
    try:
        return guard.ask(request)
    except ImageError as error:
        return ImageError(error.reason, source=request.image, row=request.id)


def _write(folder: Path, decisions: Sequence[Decision]) -> None:
    lines = (json.dumps(one.line(), ensure_ascii=False) + "\n" for one in decisions)
    write_whole(folder / DECISIONS, "".join(lines))


def _show(results: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    title = " - ".join(part for part in ("moderation", results["label"]) if part)
    table = Table("group", "what", "of", "share", "95 % interval", title=title)
    prompts, pictures = results["prompts"], results["pictures"]
    rows = [
        ("all prompts", "blocked", prompts["count"], prompts),
        ("all pictures", "unsafe", pictures["count"], pictures),
    ]
    for kind, whole, part in (("prompt", "prompts", "blocked"), ("verdict", "pictures", "unsafe")):
        rows += [(name, part, one[whole], one) for name, one in results[f"{kind}_categories"].items()]
    for name, part, whole, one in rows:
        interval = "-" if one["interval"] is None else "{:.3f} to {:.3f}".format(*one["interval"])
        number = "-" if one["share"] is None else f"{one['share']:.3f}"
        table.add_row(name, f"{one[part]} {part}", str(whole), number, interval)
    table.caption = (
        f"{pictures['invalid']} invalid verdicts, {pictures['not_drawn']} pictures not drawn, {pictures['silent']} of "
        "these because an endpoint was silent; all of them block"
    )
    console.print(table)


if __name__ == "__main__":
    main(ModerateConfig, run, __doc__ or "")
