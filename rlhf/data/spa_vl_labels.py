"""SPA-VL's names in one spelling: classes, question types, response models, image paths (seed page 1.5)."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from rlhf.errors import RowError

QUESTION_TYPES = ("easy", "hardq", "hards")
RESPONSE_MODELS = (
    "Otter", "mPLUG-Owl", "LAMM_SFT", "LLaMA-Adapter-v2", "MiniGPT-4", "InstructBLIP", "LAMM", "LLaVA1.5",
    "InternLMXComposer", "QwenVL", "gemini", "gemini_jb",
)  # fmt: skip

_TYPOS = {"disablity": "disability", "scamns": "scams"}


def normal_label(text: str) -> str:
    """A class label with the white space that the hub's labels lack ("...ToxicityHarms") and without its typos."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text.replace("_", " ")).split()
    return " ".join(_TYPOS.get(word, word) for word in words)


def normal_question_type(name: str) -> str:
    """The hub's name of a question type; the seed's code says `hardd` where the hub says `hards`."""
    return "hards" if name == "hardd" else name


def image_path(classes: tuple[str, ...], name: str) -> str:
    """`class1/class2/class3/N.jpg` from normalised classes and the hub's file name; without classes the name itself.

    Raises RowError for a name that would lead out of the image folder.
    """
    pure = PurePosixPath(name)
    if pure.is_absolute() or not pure.name or ".." in pure.parts or "\0" in name:
        raise RowError(f"image name {name!r} must be a relative path")
    if not any(classes):
        return str(pure)
    if not all(classes) or any(label.startswith(".") for label in classes):
        raise RowError(f"the classes {classes} of image {name!r} do not make a path: class1 to class3 are needed")
    return "/".join([*(label.replace("/", "-") for label in classes), pure.name])
