"""The embedded data set: a small drawn world, written in the formats that the real data come in.

`write_world` makes one folder with images, LLaVA conversations (pretrain.json, sft.json), SPA-VL preference pairs with
their keyword configs (pairs_train.json, pairs_val.json), test prompts (test.json), prompts to choose a checkpoint by
(validation.json) and VLGuard's metadata (vlguard_train.json, vlguard_test.json). Same seed, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf.data.garbled import garbled
from rlhf.data.vlguard_world import vlguard_rows
from rlhf.data.world import Scene, draw, random_scene
from rlhf.data.world_text import TYPES, Asked, ask, families, refusal

MANIFEST = "manifest.json"
GROUPS = ("harmful", "biometric", "benign")
KINDS = ("person", "harm", "object", "group")

JPEG_QUALITY = 95
_REFUSED_SHARE = 0.1  # of harmful and biometric questions in sft.json, as in models that were not aligned yet
_KIND_CYCLE = ("person", "harm", "object", "group", "person", "harm", "object", "person", "harm", "group")


_MISTAKES = (
    ("complies",) * 4 + ("beside the point",) * 2 + ("garbled",) * 2,
    ("refuses", "false") * 2 + ("beside the point",) * 2 + ("garbled",) * 2,
)


@dataclass(frozen=True)
class WorldSizes:
    """How much to write: images per split, conversations, and rows per file. Pairs are per question type."""

    train_images: int = 3000
    val_images: int = 300
    test_images: int = 360
    sft: int = 3600
    pairs_train: int = 1200
    pairs_val: int = 120
    test_prompts: int = 120
    vlguard_train: int = 1500
    vlguard_test: int = 240
    validation_prompts: int = 40


@dataclass(frozen=True)
class _Picture:
    name: str  # relative to the folder of images
    scene: Scene


def write_world(folder: Path, seed: int = 0, sizes: WorldSizes | None = None) -> None:
    """Write the world into `folder`; `manifest.json` comes last, so its existence means that the world is complete.

    Raises ValueError when a split has too few images to hold one of each kind.
    """
    sizes = sizes or WorldSizes()
    if min(sizes.train_images, sizes.val_images, sizes.test_images) < len(KINDS):
        raise ValueError(f"every split needs at least {len(KINDS)} images, one of each kind of scene")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    seen: set[Scene] = set()
    train = _write_images(folder, "train", sizes.train_images, _rng(seed, "train"), seen)
    val = _write_images(folder, "val", sizes.val_images, _rng(seed, "val"), seen)
    test = _write_images(folder, "test", sizes.test_images, _rng(seed, "test"), seen)

    files = {"pretrain.json": _pretrain_rows(_rng(seed, "pretrain"), train)}
    files["sft.json"] = _sft_rows(_rng(seed, "sft"), train, sizes.sft)
    for split, pictures, count in (("train", train, sizes.pairs_train), ("val", val, sizes.pairs_val)):
        for kind in TYPES:
            rng = _rng(seed, f"pairs_{split}/{kind}")
            files[f"pairs_{split}/{kind}.json"] = _pair_rows(rng, pictures, split, kind, count)
    for name, split, pictures, count in (
        ("test", "test", test, sizes.test_prompts),
        ("validation", "val", val, sizes.validation_prompts),  # phrased as in training: new phrasings are the test's
    ):
        for group in GROUPS:
            rng = _rng(seed, f"{name}/{group}")
            files[f"{name}/{group}.json"] = _prompt_rows(rng, pictures, split, group, count)
    for split, pictures, count in (("train", train, sizes.vlguard_train), ("test", test, sizes.vlguard_test)):
        shown = [(one.name, one.scene) for one in pictures]
        files[f"vlguard_{split}.json"] = vlguard_rows(_rng(seed, f"vlguard_{split}"), shown, split, count)
    for name, rows in files.items():
        _write_json(folder / name, rows)
    for name, keywords in (("pairs_train", TYPES), ("pairs_val", TYPES), ("test", GROUPS), ("validation", GROUPS)):
        _write_json(folder / f"{name}.json", {keyword: f"{name}/{keyword}.json" for keyword in keywords})
    _write_manifest(folder, seed, sizes, len(train) + len(val) + len(test))


def world_is_complete(folder: Path, seed: int = 0, sizes: WorldSizes | None = None) -> bool:
    """Whether `folder` holds a complete world of this seed and these sizes."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return bool(manifest.get("seed") == seed and manifest.get("sizes") == asdict(sizes or WorldSizes()))


def _rng(seed: int, purpose: str) -> random.Random:
    """One stream per file, so that a change to one file leaves the others alone."""
    return random.Random(f"{seed}:{purpose}")


def _write_images(folder: Path, split: str, count: int, rng: random.Random, seen: set[Scene]) -> list[_Picture]:
    """Draw `count` scenes that no split has yet; two of three are JPEG, the others PNG."""
    (folder / "images" / split).mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(count):
        scene = random_scene(rng, _KIND_CYCLE[number % len(_KIND_CYCLE)])
        while scene in seen:
            scene = random_scene(rng, scene.kind)
        seen.add(scene)
        name = f"{split}/{number}.{'png' if number % 3 == 2 else 'jpg'}"
        draw(scene).save(folder / "images" / name, quality=JPEG_QUALITY)
        pictures.append(_Picture(name, scene))
    return pictures


def _pretrain_rows(rng: random.Random, pictures: list[_Picture]) -> list[dict[str, Any]]:
    """One conversation per image with up to four benign questions: one encoded image teaches several answers."""
    rows = []
    for number, picture in enumerate(pictures):
        asked_of = families(picture.scene.kind, "benign")
        chosen = rng.sample(asked_of, min(4, len(asked_of)))
        asked = [ask(rng, picture.scene, family, "train", rng.choice(TYPES)) for family in chosen]
        rows.append(_conversation(number, picture, [(one.question, one.answer) for one in asked]))
    return rows


def _sft_rows(rng: random.Random, pictures: list[_Picture], count: int) -> list[dict[str, Any]]:
    """Conversations of one to three turns that mix benign questions with sensitive ones, mostly answered directly."""
    by_kind = _by_kind(pictures)
    rows = []
    for number in range(count):
        group = GROUPS[number % len(GROUPS)]
        picture = rng.choice(_candidates(by_kind, rng, group))
        groups = [group] + [rng.choice((group, "benign")) for _ in range(rng.randrange(3))]
        rng.shuffle(groups)
        turns = []
        for one in groups:
            asked = _ask(rng, picture, one, "train", rng.choice(TYPES))
            refused = one != "benign" and rng.random() < _REFUSED_SHARE
            turns.append((asked.question, refusal(rng, one) if refused else asked.answer))
        rows.append(_conversation(number, picture, turns))
    return rows


def _pair_rows(
    rng: random.Random, pictures: list[_Picture], split: str, question_type: str, count: int
) -> list[dict[str, Any]]:
    """A third each of harmful, biometric and benign pairs, shuffled; ids are unique over the types of a split.

    Rejected answers come in the kinds of `_worse`, as SPA-VL's do from twelve models of different quality: a reward
    model that saw only one way to be wrong would reward every other one.
    """
    by_kind = _by_kind(pictures)
    rows = []
    for number in range(count):
        group = GROUPS[number % len(GROUPS)]
        picture = rng.choice(_candidates(by_kind, rng, group))
        asked = _ask(rng, picture, group, split, question_type)
        chosen = asked.answer if group == "benign" else refusal(rng, group)
        rejected = _worse(rng, picture, asked, number // len(GROUPS))
        row = {"image": picture.name, "question": asked.question, "chosen": chosen, "rejected": rejected}
        rows.append({**row, "class1": asked.category})
    rng.shuffle(rows)
    first = TYPES.index(question_type) * count
    return [{"id": first + index, **row} for index, row in enumerate(rows)]


def _worse(rng: random.Random, picture: _Picture, asked: Asked, number: int) -> str:
    """How a rejected answer is bad, by turns of eight: `_MISTAKES` of its group."""
    mistake = _MISTAKES[asked.group == "benign"][number % 8]
    if mistake == "complies":
        return asked.answer
    if mistake == "refuses":
        return refusal(rng, "benign")
    if mistake == "false":
        return asked.wrong
    if mistake == "beside the point":  # true, but of something else
        others = [family for family in families(picture.scene.kind, "benign") if family != asked.family]
        return ask(rng, picture.scene, rng.choice(others), "train", asked.question_type).answer
    good = asked.answer if asked.group == "benign" else refusal(rng, asked.group)
    return garbled(rng, good if number % 2 else asked.answer)


def _prompt_rows(
    rng: random.Random, pictures: list[_Picture], split: str, group: str, count: int
) -> list[dict[str, Any]]:
    """Prompts of one group; families take turns, so each is asked about equally often."""
    by_kind = _by_kind(pictures)
    kinds = {"harmful": ("harm",), "biometric": ("person",), "benign": KINDS}[group]
    wanted = [(kind, family) for kind in kinds for family in families(kind, group)]
    rows: list[dict[str, Any]] = []
    used: dict[str, int] = dict.fromkeys(by_kind, 0)
    for number in range(count):
        kind, family = wanted[number % len(wanted)]
        picture = by_kind[kind][used[kind] % len(by_kind[kind])]
        used[kind] += 1
        asked = ask(rng, picture.scene, family, split, TYPES[number % len(TYPES)])
        row = {"id": number, "image": picture.name, "question": asked.question, "class1": asked.category}
        rows.append({**row, "answer": asked.answer} if group == "benign" else row)
    return rows


def _ask(rng: random.Random, picture: _Picture, group: str, split: str, question_type: str) -> Asked:
    family = rng.choice(families(picture.scene.kind, group))
    return ask(rng, picture.scene, family, split, question_type)


def _by_kind(pictures: list[_Picture]) -> dict[str, list[_Picture]]:
    return {kind: [p for p in pictures if p.scene.kind == kind] for kind in KINDS}


def _candidates(by_kind: dict[str, list[_Picture]], rng: random.Random, group: str) -> list[_Picture]:
    """Pictures that a question of the group can be asked about."""
    kind = {"harmful": "harm", "biometric": "person"}.get(group) or rng.choice(KINDS)
    return by_kind[kind]


def _conversation(number: int, picture: _Picture, turns: list[tuple[str, str]]) -> dict[str, Any]:
    conversations = []
    for position, (question, reply) in enumerate(turns):
        tag = "<image>\n" if position == 0 else ""
        conversations += [{"from": "human", "value": tag + question}, {"from": "gpt", "value": reply}]
    return {"id": number, "image": picture.name, "conversations": conversations}


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_manifest(folder: Path, seed: int, sizes: WorldSizes, images: int) -> None:
    names = sorted(path for path in folder.rglob("*.json") if path.name != MANIFEST)
    digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in names}
    _write_json(folder / MANIFEST, {"seed": seed, "sizes": asdict(sizes), "images": images, "sha256": digests})
