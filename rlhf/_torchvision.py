"""Lets torchvision import beside a CPU build of torch when only torchvision's CUDA build could be installed.

torchvision's CUDA wheel cannot load its compiled operators next to a CPU torch, and then fails while it registers the
Python side of two of them. Nothing in SafeVL calls those operators, so declaring their schemas is enough. PyTorch
calls this function (entry point group `torch.backends`) at every `import torch`, in every process.
"""

from __future__ import annotations

from importlib import metadata

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[object] = []  # a torch.library.Library must stay alive as long as its definitions


def declare_missing_operators() -> None:
    """Declare `torchvision::nms` and `torchvision::qnms` if torch is a CPU build and torchvision is not."""
    if "+cpu" not in metadata.version("torch"):
        return
    try:
        torchvision = metadata.version("torchvision")
    except metadata.PackageNotFoundError:
        return
    if "+cpu" in torchvision or _declared:
        return
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    _declared.append(library)
