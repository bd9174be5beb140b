"""A guard over HTTP: an image and a policy in, a verdict with its policy's hash out."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image
from pydantic import Field

from rlhf.batch import Completion
from rlhf.config import resolve
from rlhf.errors import RequestError
from rlhf.guard.policy import Policy, build_policy, checked_overrides, text_policy
from rlhf.guard.prompt import GuardRequest, guard_prompt, require_room
from rlhf.guard.taxonomy import taxonomy
from rlhf.guard.verdict import parse_verdict
from rlhf.serving.config import GuardServiceConfig, ServingConfig
from rlhf.serving.service import Body, Call, parse
from rlhf.serving.uploads import UploadProcessor, image_bytes

_BLANK_SIDE = 64


class GuardBody(Body):
    """What to judge, and under what: a policy by name, its categories in other variants, or one's own words."""

    image: str
    """A data URI, or base64."""
    policy_id: str = "default"
    """A policy of the server."""
    overrides: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Variants by category (default, exempt, sensitive) on top of the policy's own."""
    policy: str | None = None
    """A policy's whole text instead; categories and keys of an answer stay those of `policy_id`."""
    categories: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=64)
    """policy: names of its categories, which the text must contain, if they are not those of `policy_id`."""


class GuardService:
    """POST /v1/guard."""

    path = "/v1/guard"

    def __init__(self, config: ServingConfig, settings: GuardServiceConfig, processor: UploadProcessor) -> None:
        """Raises ConfigError or PolicyError for a policy that cannot be built, PromptTooLongError for a long one."""
        self._config, self._settings, self._processor = config, settings, processor
        self._policies = {name: one.build() for name, one in settings.policies.items()}
        blank = io.BytesIO()
        Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE)).save(blank, format="PNG")
        upload = processor.hold(blank.getvalue(), _BLANK_SIDE)
        for policy in self._policies.values():
            self._require_room(GuardRequest(upload.name, upload.name, policy))

    def about(self) -> dict[str, Any]:
        """The hash of every policy that can be named, and how verdicts are drawn."""
        hashes = {name: policy.sha256 for name, policy in self._policies.items()}
        return {"decoding": self._settings.sampling.words, "policies": hashes}

    def read(self, content: bytes) -> Call:
        """Raises RequestError, ImageError, PolicyError, PromptTooLongError, or RowError for a reserved token."""
        body = parse(GuardBody, content)
        policy = self._policy(body)
        upload = self._processor.hold(image_bytes(body.image, "image"), self._config.http.max_image_side)
        request = GuardRequest(upload.name, upload.name, policy)
        self._require_room(request)
        sampling = self._settings.sampling.for_request(request)
        return Call(guard_prompt(request), sampling, upload, lambda said, seconds: self._respond(said, policy, seconds))

    def _respond(self, said: Completion, policy: Policy, seconds: float) -> dict[str, Any]:
        verdict = parse_verdict(said.text, policy)
        return {
            "rating": verdict.rating,
            "category": verdict.category,
            "categories": list(verdict.categories),
            "rationale": verdict.rationale,
            "valid": verdict.status,
            "reason": verdict.reason,
            "raw": verdict.raw,
            "truncated": said.finish_reason == "length",
            "model": self._config.name,
            "policy_sha256": policy.sha256,
            "seconds": round(seconds, 4),
        }

    def _policy(self, body: GuardBody) -> Policy:
        base = self._policies.get(body.policy_id)
        if base is None:
            known = ", ".join(self._policies)
            raise RequestError(
                f"there is no policy {body.policy_id[:80]!r}; known are {known}",
                code="unknown_policy",
                param="policy_id",
            )
        if body.policy is not None:
            if body.overrides:
                raise RequestError("a policy's text is taken as it is; leave overrides or policy out", param="policy")
            return text_policy("the policy", body.policy, body.categories or base.categories, base.keys)
        if body.categories is not None:
            raise RequestError("categories are those of a policy's text, which is missing", param="categories")
        return self._overridden(base, body) if body.overrides else base

    def _overridden(self, base: Policy, body: GuardBody) -> Policy:
        settings = self._settings.policies[body.policy_id]
        if settings.age is not None or settings.text is not None:
            raise RequestError(f"the policy {body.policy_id!r} has no variants", param="overrides")
        chosen = taxonomy(resolve(settings.taxonomy))
        checked_overrides(chosen, body.overrides)
        asked = {chosen.category(label).id: variant for label, variant in body.overrides.items()}
        return build_policy(chosen, {**base.overrides, **asked}, base.keys)

    def _require_room(self, request: GuardRequest) -> None:
        require_room(request, self._processor, self._config.context, self._settings.sampling.max_new_tokens)
