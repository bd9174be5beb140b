"""PRISM's question files in both of their layouts, and what has to be written for a published answer file.

Source: Safe-LLaVA seed page, sections 3.1 (files), 3.2 (prompts, whose published wording is known by hash only) and
3.3 (answers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field

from rlhf.batch import Prompt
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, Row, read_json_rows, text_of
from rlhf.errors import RowError
from rlhf.evaluation.prism import Task, category_of, published_task, task_of
from rlhf.scrub.taxonomy import Attribute

Size = Literal["small", "large"]
TASKS: tuple[Task, ...] = ("refusal_soft", "refusal_hard", "implicit_leakage")


class PrismFiles(Config):
    """Where the questions are and how the files are laid out."""

    folder: str
    """v1: holds PRISM_<task>.jsonl. v2: holds small_PRISM_<task>.jsonl and large_PRISM_<task>.jsonl."""
    image_root: str
    """v1: the folder that holds the category folders. v2: the folder that holds small_images and large_images."""
    layout: Literal["v1", "v2"] = "v2"
    """Of the first or of the second version of the benchmark."""
    sizes: tuple[Size, ...] = Field(default=("small", "large"), min_length=1)
    """v2 only: which part of the pictures."""
    tasks: tuple[Task, ...] = Field(default=TASKS, min_length=1)
    """refusal_soft and refusal_hard ask for attributes, implicit_leakage asks for descriptions."""


@dataclass(frozen=True, slots=True)
class Question:
    """One row of a question file. `attribute` is the one asked for; of an open question it is the picture's own."""

    question_id: str
    task: Task
    attribute: Attribute | None
    prompt: Prompt

    @property
    def published(self) -> bool:
        """Whether its wording is the published one."""
        return published_task(self.prompt.question) == self.task


def read_questions(files: PrismFiles, rejected: RejectedRows) -> list[Question]:
    """The questions of all chosen tasks in file order. Bad rows go to `rejected`; DataError for an unusable file."""
    root, images = Path(resolve(files.folder)), Path(resolve(files.image_root))
    found = []
    for task in files.tasks:
        for size in files.sizes if files.layout == "v2" else (None,):
            path = root / (f"{size}_PRISM_{task}.jsonl" if size else f"PRISM_{task}.jsonl")
            folder = ImageFolder(images / f"{size}_images" if size else images, check=False)
            found += read_json_rows(path, _parser(task, path.stem, folder, bool(size)), rejected)
    return found


def read_controls(path: Path, image_root: Path, rejected: RejectedRows) -> list[Prompt]:
    """Questions that nobody has to refuse, in the same keys (question_id, image, text)."""
    folder = ImageFolder(image_root, check=False)

    def parse(row: Row, number: int) -> Prompt:
        return Prompt(f"control:{number}", text_of(row, "text"), folder.path_of(row), kind=text_of(row, "question_id"))

    return read_json_rows(path, parse, rejected)


def answer_row(question: Question, response: str, model: str, truncated: bool) -> dict[str, Any]:
    """The seed's six keys; `answer_id` is 22 digits that depend on question, answer and model alone."""
    digest = hashlib.sha256("\0".join((question.prompt.id, question.prompt.question, response, model)).encode())
    return {
        "question_id": question.question_id,
        "prompt": question.prompt.question,
        "text": response,
        "answer_id": digest.hexdigest()[:22],
        "model_id": model,
        "metadata": {"truncated": True} if truncated else {},
    }


def _parser(task: Task, stem: str, images: ImageFolder, flat: bool) -> Callable[[Row, int], Question]:
    def parse(row: Row, number: int) -> Question:
        text, identifier = text_of(row, "text"), text_of(row, "question_id")
        told, asked = task_of(text)
        if (told == "implicit_leakage") != (task == "implicit_leakage"):
            raise RowError(f"{text!r} is no question of {task}")
        # the second version keeps the base name of the image only (seed page 3.1)
        place = {**row, "image": PurePosixPath(str(row.get("image"))).name} if flat else row
        prompt = Prompt(f"{stem}:{number}", row["text"], images.path_of(place), kind=task)
        return Question(identifier, task, asked or category_of(identifier), prompt)

    return parse
