"""MM-SafetyBench (Liu et al., ECCV 2024): each question as text and with three kinds of image.

The published tiny list has 168 questions over 13 scenarios, so one item is 0.6 points of a variant (seed page 6.1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from rlhf.batch import Prompt
from rlhf.config import Config, resolve
from rlhf.data.rejected import RejectedRows
from rlhf.data.rows import ImageFolder, read_json, text_of
from rlhf.errors import DataError, RowError
from rlhf.evaluation.benchmark import Item

Variant = Literal["text", "SD", "TYPO", "SD_TYPO"]

TINY_ROWS = 168  # per variant
TINY_LIST = "TinyVersion_ID_List.json"
# which question goes with which image: only the Stable Diffusion picture alone is asked about by name
QUESTION_KEYS: dict[Variant, str] = {
    "text": "Question",
    "SD": "Rephrased Question(SD)",
    "TYPO": "Rephrased Question",
    "SD_TYPO": "Rephrased Question",
}


class MMSafetyBenchConfig(Config):
    """Where the benchmark is."""

    folder: str
    """A copy of its repository: data/processed_questions/*.json and TinyVersion_ID_List.json."""
    image_root: str | None = None
    """Folder with <scenario>/<SD, TYPO or SD_TYPO>/<id>.jpg; `folder`/data/imgs if unset."""
    variants: tuple[Variant, ...] = Field(default=("text", "SD", "TYPO", "SD_TYPO"), min_length=1)
    """Which forms of the questions are asked."""
    tiny: bool = True
    """Only the questions of the published tiny list."""

    @property
    def expected(self) -> int | None:
        """Published number of items, None for the full version."""
        return TINY_ROWS * len(self.variants) if self.tiny else None


def read_mm_safetybench(config: MMSafetyBenchConfig, rejected: RejectedRows) -> list[Item]:
    """The items, with groups variant and scenario; ids are "mm_safetybench/<variant>/<scenario>:<id>".

    A listed question that is missing or malformed goes to `rejected`. Raises DataError for an unusable file or folder.
    """
    folder = Path(resolve(config.folder))
    root = Path(resolve(config.image_root)) if config.image_root else folder / "data" / "imgs"
    questions = folder / "data" / "processed_questions"
    files = {path.stem: path for path in sorted(questions.glob("*.json"))}
    if not files:
        raise DataError("no scenario files (*.json) here", source=str(questions))
    chosen = _tiny_list(folder / TINY_LIST) if config.tiny else dict.fromkeys(files)
    images = ImageFolder(root, check=False)
    items = []
    for scenario, listed in chosen.items():
        if scenario not in files:
            rejected.add(DataError(f"scenario {scenario} has no file in {questions}", source=str(folder / TINY_LIST)))
            continue
        table = read_json(files[scenario])
        if not isinstance(table, dict):
            raise DataError("expected a map from id to question", source=str(files[scenario]))
        for identifier in table if listed is None else listed:
            for variant in config.variants:
                try:
                    items.append(_item(table, scenario, identifier, variant, images))
                except DataError as error:
                    rejected.add(type(error)(error.reason, source=str(files[scenario]), row=identifier))
    return items


def _item(table: dict[str, Any], scenario: str, identifier: str, variant: Variant, images: ImageFolder) -> Item:
    row = table.get(identifier)
    if not isinstance(row, dict):
        raise RowError(f"there is no question {identifier}")
    if not identifier.isdecimal():
        raise RowError(f"the id must be a number, found {identifier!r}")
    image = None if variant == "text" else images.locate(f"{scenario}/{variant}/{identifier}.jpg")
    prompt = Prompt(
        id=f"mm_safetybench/{variant}/{scenario}:{identifier}",
        question=text_of(row, QUESTION_KEYS[variant]),
        image=image,
        kind="harmful",
        category=scenario,
    )
    return Item(prompt, {"variant": variant, "scenario": scenario})


def _tiny_list(path: Path) -> dict[str, list[str] | None]:
    """Scenario to ids, from a JSON list of {"Scenario": ..., "Sampled_ID_List": [...]}."""
    content = read_json(path)
    try:
        return {str(entry["Scenario"]): [str(one) for one in entry["Sampled_ID_List"]] for entry in content}
    except (KeyError, TypeError):
        raise DataError('expected a list of {"Scenario", "Sampled_ID_List"}', source=str(path)) from None
