"""Answers over HTTP: a policy as an OpenAI-compatible endpoint, or a guard that judges images under policies."""

from __future__ import annotations

from rlhf.serving.chat import ChatService
from rlhf.serving.config import ChatServiceConfig, ServingConfig
from rlhf.serving.guard import GuardService
from rlhf.serving.service import Service
from rlhf.serving.uploads import UploadProcessor

__all__ = ["build_service"]


def build_service(config: ServingConfig, processor: UploadProcessor) -> Service:
    """What a configuration serves. Raises ConfigError or DataError for policies that cannot be asked."""
    settings = config.service
    if isinstance(settings, ChatServiceConfig):
        return ChatService(config, settings, processor)
    return GuardService(config, settings, processor)
