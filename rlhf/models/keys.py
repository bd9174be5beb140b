"""Parameter names: transformers in memory <-> the layout of the hub's checkpoints, one table per kind of model.

Both vLLM and transformers load the hub layout, so exports and weight syncs use it and nothing else (seed row 32).
"""

from __future__ import annotations

from typing import Literal

Names = tuple[tuple[str, str], ...]
"""Beginnings of names in memory, and what the hub's checkpoints have instead."""

PROJECTORS = ("multi_modal_projector", "visual.merger")
"""LLaVA's, and Qwen's, which is inside its tower."""

Part = Literal["tower", "projector", "language", "lm_head"]

LLAVA: Names = (
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
QWEN: Names = (
    ("model.visual.", "visual."),
    ("model.language_model.", "model."),
    ("lm_head.", "lm_head."),
)


def to_hub(name: str, names: Names) -> str:
    """Hub name of a parameter of a model with these names; raises KeyError for a name of another model."""
    for prefix, replacement in names:
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return replacement + rest.removeprefix("vision_model.")
    raise KeyError(name)


def from_hub(name: str, names: Names) -> str:
    """The inverse of `to_hub`."""
    for prefix, replacement in names:
        if name.startswith(replacement):
            return prefix + name[len(replacement) :]
    raise KeyError(name)


def part_of(name: str) -> Part:
    """The part of the model that a parameter belongs to, by its name in memory."""
    if name.startswith("lm_head."):
        return "lm_head"
    if is_projector(name):
        return "projector"
    if ".vision_tower." in name or ".visual." in name:
        return "tower"
    return "language"


def is_projector(name: str) -> bool:
    """Whether a parameter, by any of its names, belongs to the projector."""
    return projector_of(name) is not None


def projector_of(name: str) -> str | None:
    """The module of the projector that a parameter, by any of its names, belongs to."""
    return next((module for module in PROJECTORS if f"{module}." in name), None)
