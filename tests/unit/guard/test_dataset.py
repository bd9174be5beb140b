"""Augmentations, splits, balance and whole data sets: properties, and the numbers of the published set."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jobs.build_guard_data import GuardDataConfig, run
from rlhf.config import ModelConfig
from rlhf.data.llava_format import read_examples
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, DataError, RowError
from rlhf.guard.augment import Augmentation, Sample, augment, augmented
from rlhf.guard.dataset import build_samples, version
from rlhf.guard.labels import Annotation
from rlhf.guard.metrics import align, evaluate, read_truths
from rlhf.guard.rationales import RationaleConfig
from rlhf.guard.splits import QuotaConfig, balanced, copied, split_images
from rlhf.guard.taxonomy import taxonomy
from rlhf.inference import Answer, GenerationConfig

IDS = taxonomy().ids
SCORES = {"Highly Unsafe": "Unsafe", "Moderately Unsafe": "Unsafe", "Barely Safe": "Safe", "Generally Safe": "Safe"}

samples = st.builds(
    lambda name, category, rating: Sample(str(name), "a.png", category, "x", rating, "Why."),
    st.integers(0, 10_000),
    st.sampled_from(IDS),
    st.sampled_from(["Safe", "Unsafe"]),
)
seeds = st.integers(0, 1000)


def unsafe(sample: Sample) -> Sample:
    return Sample(sample.id, sample.image, sample.category, "x", "Unsafe", "Why.")


@given(samples, seeds)
def test_guard06_v2_exempts_its_own_category_alone_and_turns_the_rating(sample: Sample, seed: int) -> None:
    made = augment(unsafe(sample), "v2", 0, IDS, seed)
    assert made.overrides == {sample.category: "exempt"}
    assert (made.rating, made.augmentation, made.base) == ("Safe", "v2", sample.id)


@given(samples, seeds)
def test_guard06_v2a_exempts_its_own_and_up_to_two_others(sample: Sample, seed: int) -> None:
    made = augment(unsafe(sample), "v2a", 0, IDS, seed)
    assert made.overrides[sample.category] == "exempt"
    assert 1 <= len(made.overrides) <= 3
    assert set(made.overrides.values()) == {"exempt"}
    assert made.rating == "Safe"


@given(samples, seeds, st.sampled_from(["v3", "v5"]))
def test_guard06_v3_and_v5_change_one_to_three_others_and_keep_the_rating(
    sample: Sample, seed: int, key: Augmentation
) -> None:
    made = augment(sample, key, 0, IDS, seed)
    assert sample.category not in made.overrides
    assert 1 <= len(made.overrides) <= 3
    assert set(made.overrides.values()) == {"exempt" if key == "v3" else "sensitive"}
    assert made.rating == sample.rating


@given(samples, seeds)
def test_guard06_v1_never_touches_its_own_and_v0_nothing(sample: Sample, seed: int) -> None:
    made = augment(sample, "v1", 0, IDS, seed)
    assert sample.category not in made.overrides
    assert set(made.overrides.values()) <= {"exempt"}
    assert augment(sample, "v0", 0, IDS, seed).overrides == {}
    assert made.rating == sample.rating


def test_guard06_v1_exempts_half_of_the_others_and_v3_all_counts_alike() -> None:
    many = [Sample(str(number), "a.png", "O4", "x", "Unsafe") for number in range(3000)]
    ones = [augment(one, "v1", 0, IDS, 0) for one in many]
    for name in IDS:
        share = sum(name in one.overrides for one in ones) / len(ones)
        assert share == 0 if name == "O4" else abs(share - 0.5) < 0.04
    counts = Counter(len(augment(one, "v3", 0, IDS, 0).overrides) for one in many)
    assert set(counts) == {1, 2, 3}
    assert all(abs(count / len(many) - 1 / 3) < 0.04 for count in counts.values())


@given(samples, seeds)
def test_guard06_v4_forbids_its_own_category_and_turns_the_rating(sample: Sample, seed: int) -> None:
    safe = Sample(sample.id, sample.image, sample.category, "x", "Safe", "Why.")
    made = augment(safe, "v4", 0, IDS, seed)
    assert (made.overrides, made.rating) == ({sample.category: "sensitive"}, "Unsafe")
    with pytest.raises(RowError, match="v4 needs a sample with a category that is Safe"):
        augment(unsafe(sample), "v4", 0, IDS, seed)
    with pytest.raises(RowError, match="v2 needs a sample with a category that is Unsafe"):
        augment(safe, "v2", 0, IDS, seed)
    with pytest.raises(RowError, match="has another policy already"):
        augment(made, "v3", 0, IDS, seed)


def test_guard06_draws_differ_and_depend_on_seed_and_sample_only() -> None:
    plan = version("v24").unsafe
    one = Sample("7", "a.png", "O4", "x", "Unsafe", "Why.")
    made = augmented(one, plan, IDS, 0)
    policies = [tuple(sample.overrides.items()) for sample in made]
    assert len(set(policies)) == len(made) == 5
    assert len({sample.id for sample in made}) == 5
    assert augmented(one, plan, IDS, 0) == made
    assert augmented(one, plan, IDS, 1) != made
    assert [sample.augmentation for sample in made] == [None, "v3", "v3", "v3", "v2"]


def test_guard06_probabilities_of_safe_samples() -> None:
    """Version 14 draws v3 for about 10 of 101 safe samples, v5 for 25 and v4 for all with a category."""
    plan = version("v14").safe
    many = [Sample(str(number), "a.png", "O4" if number % 2 else "NA", "x", "Safe") for number in range(4000)]
    counts = Counter(made.augmentation for one in many for made in augmented(one, plan, IDS, 0))
    assert counts["v4"] == 2000
    assert abs(counts["v3"] / 4000 - 10 / 101) < 0.02
    assert abs(counts["v5"] / 4000 - 25 / 101) < 0.03


def annotations(counts: dict[tuple[str, str], int]) -> list[Annotation]:
    made = []
    for (category, score), count in counts.items():
        for number in range(count):
            name = f"{category}-{score}-{number}".replace(" ", "")
            made.append(Annotation(name, f"{name}.png", category, score, SCORES[score], "Why."))  # type: ignore[arg-type]
    return made


def test_guard07_sizes_of_the_cells_and_no_image_twice() -> None:
    cells = {
        ("NA", "Generally Safe"): 300,
        ("O1", "Highly Unsafe"): 40,
        ("O1", "Moderately Unsafe"): 40,
        ("O1", "Barely Safe"): 40,
        ("O2", "Generally Safe"): 40,
        ("O2", "Highly Unsafe"): 3,  # smaller than what the test set asks for
    }
    rows = annotations(cells)
    splits = split_images(rows, QuotaConfig(), 42)
    found = Counter((one.category, one.score, splits[one.image]) for one in rows)
    expected = {
        ("NA", "Generally Safe"): (100, 5),
        ("O1", "Highly Unsafe"): (5, 1),
        ("O1", "Moderately Unsafe"): (5, 0),
        ("O1", "Barely Safe"): (10, 1),
        ("O2", "Generally Safe"): (10, 1),
        ("O2", "Highly Unsafe"): (3, 0),
    }
    for cell, sizes in expected.items():
        assert (found[(*cell, "test")], found[(*cell, "eval")]) == sizes, cell
    shuffled = rows[:]
    random.Random(1).shuffle(shuffled)
    assert split_images(shuffled, QuotaConfig(), 42) == splits
    assert split_images(rows, QuotaConfig(), 43) != splits


def test_guard07_equal_files_and_augmentations_stay_in_one_split() -> None:
    rows = annotations({("O1", "Highly Unsafe"): 60, ("NA", "Generally Safe"): 60})
    pairs = {one.image: f"content {place // 2}" for place, one in enumerate(rows)}
    quotas = QuotaConfig(test_none=10, test_unsafe=10)
    splits = split_images(rows, quotas, 0, pairs.__getitem__)
    by_content: dict[str, set[str]] = {}
    for image, content in pairs.items():
        by_content.setdefault(content, set()).add(splits[image])
    assert all(len(found) == 1 for found in by_content.values())
    assert set(splits.values()) == {"train", "eval", "test"}
    built = build_samples(rows, taxonomy(), version("v24"), quotas, 0)
    for split in ("train", "eval", "test"):
        mine = {one.id for one in built.samples if built.splits[one.image] == split and one.augmentation is None}
        assert {one.base for one in built.samples if one.augmentation and built.splits[one.image] == split} <= mine


@pytest.mark.parametrize(("safe", "bad"), [(7, 3), (3, 7), (5, 5), (9, 2)])
def test_guard08_classes_are_equal_and_the_larger_is_untouched(safe: int, bad: int) -> None:
    made = [Sample(f"s{n}", "a", "O1", "x", "Safe") for n in range(safe)]
    made += [Sample(f"u{n}", "a", "O1", "x", "Unsafe") for n in range(bad)]
    even = [copied(one, copy) for one, copy in balanced(made, 0)]
    larger = max(safe, bad)
    assert Counter(one.rating for one in even) == {"Safe": larger, "Unsafe": larger}
    assert len({one.id for one in even}) == 2 * larger  # the SFT job refuses an id twice
    assert {one.id for one in made} <= {one.id for one in even}
    big = "s" if safe >= bad else "u"
    assert Counter(one.id for one in even if one.id.startswith(big)) == Counter(f"{big}{n}" for n in range(larger))
    small = Counter(one.id.split("=")[0] for one in even if not one.id.startswith(big))
    assert max(small.values()) - min(small.values()) <= 1
    assert balanced(made, 0) == balanced(made, 0)


def test_guard09_a_set_like_the_published_one_has_its_sizes() -> None:
    """Seed page 2.1, derived: 556 unsafe and 2,686 safe images give 5,466 samples, 2,224 of them unsafe."""
    rows = annotations({("O1", "Highly Unsafe"): 556, ("NA", "Generally Safe"): 2686})
    built = build_samples(rows, taxonomy(), version("v24"), QuotaConfig(), 42)
    assert len(built.samples) == 5466
    assert Counter(one.rating for one in built.samples) == {"Safe": 3242, "Unsafe": 2224}
    assert sum(one.augmentation is not None for one in built.samples) == 2224
    assert sum(one.augmentation == "v2" for one in built.samples) == 556


RATING_FIRST, RATING_LAST = ("rating", "category", "rationale"), ("category", "rationale", "rating")
TABLE = {  # seed page 2.6: samples of an unsafe image, and the keys; up to v11 the page has other names for the keys
    **{f"v{number}": (1, RATING_FIRST) for number in range(5)},
    **{f"v{number}": (5, RATING_FIRST) for number in (5, 6, 7, 8, 9, 10, 11, 12, 16, 20, 21, 23, 24)},
    **dict.fromkeys(("v13", "v17"), (5, RATING_LAST)),
    "v14": (7, RATING_FIRST),
    "v15": (7, RATING_LAST),
    "v22": (4, RATING_FIRST),
    "v22-b": (4, ("rationale", "rating", "category")),
    "v25": (5, ("rating",)),
}


@pytest.mark.parametrize("name", TABLE)
def test_guard09_every_version_of_the_table_has_its_samples_and_keys(name: str) -> None:
    rows = annotations({("O3", "Highly Unsafe"): 4})
    made = build_samples(rows, taxonomy(), version(name), QuotaConfig(), 0).samples
    assert (len(made), version(name).keys) == (4 * TABLE[name][0], TABLE[name][1])
    drawn = {one.augmentation for one in made} - {None}
    first = {f"v{number}" for number in range(5, 9)}
    expected = set() if TABLE[name][0] == 1 else {"v1", "v2"} if name in first else {"v3", "v2"}
    if name in ("v14", "v15"):
        expected |= {"v0", "v5"}
    assert drawn == (expected if name not in ("v22", "v22-b") else {"v3", "v2a"})


def test_guard09_the_table_has_no_other_versions() -> None:
    with pytest.raises(ConfigError, match=r"'v99' is not known; choose one of v0, .*, v25\Z") as caught:
        version("v99")
    assert set(str(caught.value).split("choose one of ")[1].split(", ")) == set(TABLE)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Forty annotated pictures, no two alike but the first two; "_v2" in names must mean nothing (seed trap 8)."""
    (tmp_path / "images_v2").mkdir()
    rows: list[dict[str, Any]] = []
    for number in range(40):
        name = f"{number}_v2.png"
        Image.new("RGB", (8, 8), (max(number, 1) * 6, 0, 9)).save(tmp_path / "images_v2" / name)
        category, score = ("O6", "Highly Unsafe") if number % 4 == 0 else (None, "Generally Safe")
        if number % 4 == 1:
            category, score = "O6", "Barely Safe"
        rows.append({"id": f"{number}_v2", "image": name, "category": category, "score": score, "rationale": "Why so."})
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    return tmp_path


def job(files: Path, **more: Any) -> GuardDataConfig:
    quotas = QuotaConfig(test_none=4, test_safe=2, test_unsafe=2, eval_none=1, eval_safe=1)
    keys = {"annotations": "annotations.json", "image_root": "images_v2", "folder": "built", "work": "work"}
    return GuardDataConfig(**({"quotas": quotas} | {key: str(files / name) for key, name in keys.items()} | more))


def test_guard09_the_job_writes_files_that_the_sft_job_reads(files: Path) -> None:
    manifest = run(job(files))
    rows = {path.stem: json.loads(path.read_text()) for path in (files / "built").glob("*.json")}
    assert len(rows["all_data"]) == 30 + 10 * 5
    assert sum(len(rows[split]) for split in ("train", "eval", "test")) == 80
    assert Counter(row["rating"] for row in rows["train_balanced"]).most_common()[0][1] * 2 == len(
        rows["train_balanced"]
    )
    for row in rows["all_data"]:
        answer = json.loads(row["conversations"][1]["value"])
        assert (answer["rating"], answer["category"]) == (row["rating"], row["category"])
        assert list(answer) == ["rating", "category", "rationale"]
        assert row["augmentation"] in (None, "v2", "v3")
        assert ("Nothing is restricted" in row["conversations"][0]["value"]) == bool(row["overrides"])
    flipped = [row for row in rows["all_data"] if row["augmentation"] == "v2"]
    assert len(flipped) == 10
    assert all("permits the category O6: Weapons" in row["conversations"][1]["value"] for row in flipped)
    assert all(row["augmentation"] is None for row in rows["train_default_policy"])
    images = {split: {row["image"] for row in rows[split]} for split in ("train", "eval", "test")}
    assert not images["train"] & images["test"] | images["train"] & images["eval"] | images["eval"] & images["test"]
    rejected = RejectedRows()
    for name in ("train_balanced", "train_rating_only"):
        path = files / "built" / f"{name}.json"
        assert len(read_examples(path, files / "images_v2", rejected=rejected)) == len(rows["train_balanced"])
    assert rejected.count == 0
    assert {row["conversations"][1]["value"] for row in rows["train_rating_only"]} == {
        json.dumps({"rating": rating}, indent=4) for rating in ("Safe", "Unsafe")
    }
    assert run(job(files)) == manifest
    with pytest.raises(ConfigError, match="was built from other version; give another folder"):
        run(job(files, version="v22"))


def test_guard09_what_people_rated_under_an_exception_is_no_row_of_the_default_policy(files: Path) -> None:
    """The file to train on and the block of the evaluation mean the same rows."""
    rows = json.loads((files / "annotations.json").read_text())
    for number, score in ((8, "Non-Violating Exception"), (9, "Sensitive Exception")):
        rows[number] |= {"category": "O6", "score": score}
    (files / "annotations.json").write_text(json.dumps(rows))
    run(job(files, quotas=QuotaConfig(test_none=1, test_safe=0, test_unsafe=0, eval_none=0, eval_safe=0)))
    built = files / "built"
    truths = read_truths(built / "train.json", RejectedRows())
    found = evaluate(align(truths, {}))
    plain = [row["id"] for row in json.loads((built / "train_default_policy.json").read_text())]
    assert "7_v2" in plain
    assert not {"8_v2", "9_v2"} & set(plain)
    assert found["default_policy"]["rows"] == len(plain)
    exceptions = {one.id for one in truths if one.id in ("8_v2", "9_v2")}
    drawn = [one for one in truths if one.augmentation == "v2"]
    assert len(exceptions) == 2
    assert found["all"]["strict"]["policy_exceptions"] == len(drawn) + len(exceptions)


def test_guard10_the_job_asks_its_engine_in_batches_and_keeps_what_it_wrote(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's part is replaced by one engine in this process, which says the same to everything."""
    rows = json.loads((files / "annotations.json").read_text())
    (files / "annotations.json").write_text(json.dumps([row | {"rationale": ""} for row in rows]))
    calls: list[tuple[str, int, int]] = []

    def answers(
        config: GenerationConfig, models: dict[str, Any], folder: Path, rejected: RejectedRows
    ) -> dict[str, dict[str, Answer]]:
        ((name, (model, prompts)),) = models.items()
        calls.append((f"{folder.name}/{name}", len(prompts), config.sampling.seed))
        assert model == config.model
        said = "Nothing of the list is to be seen here."
        return {name: {one.id: Answer(one.id, said, 9, truncated=False) for one in prompts}}

    monkeypatch.setattr("jobs.generation.answer_prompts", answers)
    engine = {"model": {"path": str(files), "max_length": 2048}}
    config = job(files, rationales=RationaleConfig.model_validate({"engine": engine}))
    manifest = run(config)
    texts = 10 + 10 + 10 + 20  # unsafe, the same described as exceptions, safe of O6, safe of none
    assert calls == [("rationales/try_0", texts, 0)]
    assert manifest["no_rationale"] == {}
    row = json.loads((files / "built" / "all_data.json").read_text())[0]
    assert json.loads(row["conversations"][1]["value"])["rationale"] == "Nothing of the list is to be seen here."
    run(config.model_copy(update={"folder": str(files / "again")}))
    assert len(calls) == 1


def learned(path: Path, images: Path, processor: Processor) -> list[tuple[str, str]]:
    """The prompt and the text that counts in the loss of every row of a file, as the SFT job takes them."""
    rejected = RejectedRows()
    rows = [processor.encode_example(one) for one in read_examples(path, images, rejected=rejected)]
    assert rejected.count == 0
    pairs = []
    for row in rows:
        first = list(row.response).index(True)
        assert all(row.response[first:])
        prompt, target = processor.collapse(list(row.ids[:first])), list(row.ids[first:])
        pairs.append((processor.tokenizer.decode(prompt), processor.decode(target)))
    return pairs


def test_guard12_the_first_stages_learn_a_rating_alone_and_stage_0_the_default_policy_alone(
    files: Path, tiny: ModelConfig
) -> None:
    """Seed page, section 3: stage 0 rating-only under the default policy, 1 rating-only balanced, 2 whole answers."""
    manifest = run(job(files, taxonomy="tiny"))
    processor = Processor.load(tiny.model_copy(update={"max_length": 512}))
    names = ("train_rating_only_default_policy", "train_rating_only", "train_balanced")
    stages = [learned(files / "built" / f"{name}.json", files / "images_v2", processor) for name in names]
    assert len(stages[0]) == manifest["splits"]["train"]["images"]
    assert len(stages[1]) == len(stages[2]) > len(stages[0])
    for stage in stages[:2]:
        assert {target for _, target in stage} == {f'{{\n    "rating": "{one}"\n}}' for one in ("Safe", "Unsafe")}
    assert {tuple(json.loads(target)) for _, target in stages[2]} == {("rating", "category", "rationale")}
    policies = [{prompt.split("ASSISTANT")[0] for prompt, _ in stage} for stage in stages]
    assert len(policies[0]) == 1 < len(policies[1])
    (default,) = policies[0]
    assert "Answer as JSON with rating." in default
    assert " yes " not in default.split("Check the picture.")[1]  # the word of an exception
    assert default in policies[1]
    assert any("O6: yes guns and pills" in policy for policy in policies[1])
    assert all("Answer as JSON with rating, category, rationale." in policy for policy in policies[2])


def test_guard09_the_same_seed_gives_the_same_bytes(files: Path) -> None:
    first, second = run(job(files)), run(job(files, folder=str(files / "again")))
    assert first["files"] == second["files"]
    other = run(job(files, folder=str(files / "other"), seed=7))
    assert first["files"] != other["files"]


def test_guard09_annotations_outside_the_policy_or_without_rationale_stop_the_job(files: Path) -> None:
    path = files / "annotations.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([rows[0] | {"category": "O42"}, *rows[1:]]))
    with pytest.raises(DataError, match=r"1 of 40 rows were rejected .*'O42'"):
        run(job(files))
    path.write_text(json.dumps([rows[0] | {"rationale": ""}, *rows[1:]]))
    with pytest.raises(RowError, match="sample 0_v2 has no rationale"):
        run(job(files))
    assert not (files / "built").exists()
    assert run(job(files, version="v25"))["version"] == "v25"  # ratings need no rationale
