"""The taxonomy and the policy builder: names, variants, overrides, refusals, country and age policies."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.annotate_images import AnnotateConfig
from jobs.guard import GuardConfig
from rlhf.config import load
from rlhf.errors import ConfigError, PolicyError
from rlhf.guard.policy import Policy, age_policy, build_policy, file_hashes, load_policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.taxonomy import VARIANTS, taxonomy, taxonomy_file
from rlhf.serving.config import ServingConfig

NAMES = (  # seed page 1.1, exact
    "O1: Hate, Humiliation, Harassment",
    "O2: Violence, Harm, or Cruelty",
    "O3: Sexual Content",
    "O4: Nudity Content",
    "O5: Criminal Planning",
    "O6: Weapons or Substance Abuse",
    "O7: Self-Harm",
    "O8: Animal Cruelty",
    "O9: Disasters or Emergencies",
    "NA: None applying",
)
BULLETS = {  # seed page 1.1: rules that ban, rules that permit
    "O1": (2, 2), "O2": (2, 2), "O3": (1, 4), "O4": (1, 3), "O5": (2, 2),
    "O6": (4, 4), "O7": (2, 2), "O8": (3, 1), "O9": (2, 2),
}  # fmt: skip


def test_guard01_ten_names_and_as_many_rules_as_the_published_taxonomy() -> None:
    default = taxonomy()
    assert default.names == NAMES
    assert {one.id: (len(one.banned), len(one.permitted)) for one in default.categories} == BULLETS


@pytest.mark.parametrize("name", ["default", "eu"])
def test_guard01_three_variants_say_who_decides(name: str) -> None:
    found = taxonomy(name)
    for category in found.categories:
        blocks = {variant: found.block(category, variant) for variant in VARIANTS}
        assert len(set(blocks.values())) == 3
        assert all(block.startswith(f"{category.name}:\n") for block in blocks.values())
        rules = {*category.banned, *category.permitted}
        for block in blocks.values():
            assert {line.removeprefix("- ") for line in block.splitlines() if line.startswith("- ")} == rules
        assert blocks["default"].count(":\n") == 3  # name, banned, permitted
        assert "Nothing is restricted" in blocks["exempt"]
        assert "Nothing is tolerated" in blocks["sensitive"]


def mistakes_of(content: Any, folder: Path) -> list[str]:
    """Every line of the refusal of a file, without the file's path."""
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        taxonomy(str(path))
    assert all(problem.startswith(f"{path}: ") for problem in caught.value.problems)
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_guard01_a_taxonomy_of_ones_own_names_every_mistake_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load(taxonomy_file("default").read_text())
    content["opening"] = None
    content["none"].pop("title")
    content["categories"][0].pop("banned")
    content["categories"][1]["bans"] = ["x"]
    content["categories"][3]["id"] = "O3"
    content["categories"][4] = "O5"
    content["categories"][5]["banned"] = "abc"  # no list of one, and no list of three letters either
    content["categories"][6]["id"] = "na"
    content["categories"][7]["permitted"] = []
    found = "\n".join(mistakes_of(content, tmp_path))
    for key in ("opening", "none.title", "categories.0.banned", "categories.1.bans", "categories.4"):
        assert f"\n{key}: " in f"\n{found}", key
    assert "categories.5.banned: Input should be a valid tuple (got 'abc')" in found
    assert "categories.7.permitted: " in found
    assert "categories: 'O3' occurs twice" in found
    assert "categories: 'NA' is the category for none" in found
    assert len(found.splitlines()) == 9


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_guard01_no_value_of_any_key_is_a_traceback(name: str, tmp_path: Path) -> None:
    content = yaml.safe_load(taxonomy_file(name).read_text())
    for key in ("name", "opening", "none", "headings", "declarations", "lines", "categories"):
        for value in (None, "", "abc", 3, [], {}, ["x"]):
            if value != "abc" or key not in ("name", "opening"):  # a text is what these want
                found = mistakes_of(content | {key: value}, tmp_path)
                assert any(problem.startswith(key) for problem in found), (key, value)


def test_guard01_what_is_no_taxonomy_is_not_offered_as_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'defualt' is not packaged \(default, eu, tiny, tiny_answers\)"):
        taxonomy("defualt")
    for offered in ("default", "eu", "tiny", "tiny_answers"):
        assert taxonomy(offered).name == offered
    with pytest.raises(ConfigError, match="'ages' is not packaged"):
        taxonomy("ages")
    (tmp_path / "broken.yaml").write_bytes(b"name: \xff")
    for path, problem in (
        (tmp_path / "gone.yaml", "no such file"),
        (tmp_path / "broken.yaml", "cannot be read|not YAML"),
    ):
        with pytest.raises(ConfigError, match=problem):
            taxonomy(str(path))


def test_guard02_an_override_changes_its_own_block_alone() -> None:
    default = taxonomy()
    plain = build_policy(default).text
    changed = build_policy(default, {"O3": "exempt", "o8: animal cruelty": "sensitive"})
    assert changed.overrides == {"O3": "exempt", "O8": "sensitive"}
    pieces, others = plain.split("\n\n"), changed.text.split("\n\n")
    differing = [before.split(":")[0] for before, after in zip(pieces, others, strict=True) if before != after]
    assert differing == ["O3", "O8"]
    assert [piece.split(":")[0] for piece in pieces[1:10]] == [f"O{number}" for number in range(1, 10)]
    assert build_policy(default, {"O3": "default"}).text == plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"O11": "exempt"}, r"'O11' is no category .*did you mean"),
        ({"Violence": "exempt"}, r"did you mean 'O2: Violence, Harm, or Cruelty'"),
        ({"O1": "allowed"}, r"category O1: 'allowed' is no variant; choose one of default, exempt, sensitive"),
        ({"NA": "exempt"}, r"'NA: None applying' has no rules"),
        ({"O1": "exempt", "O1: Hate, Humiliation, Harassment": "exempt"}, r"O1 is overridden twice"),
    ],
)
def test_guard02_unknown_categories_and_variants_are_refused(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        build_policy(taxonomy(), overrides)


def test_guard02_the_empty_policy_and_wrong_answer_keys_are_refused() -> None:
    with pytest.raises(PolicyError, match=r"none: the policy is empty; give at least one rule"):
        Policy("none", " \n", NAMES)
    with pytest.raises(PolicyError, match="names no category"):
        Policy("mine", "Be kind.", ())
    with pytest.raises(PolicyError, match="'reason' is no key of an answer; did you mean"):
        build_policy(taxonomy(), keys=("rating", "reason"))
    with pytest.raises(PolicyError, match="needs 'rating'"):
        build_policy(taxonomy(), keys=("category", "rationale"))
    assert Policy("mine", "Be kind.", (), keys=("rating",)).categories == ()


def test_guard02_an_official_text_is_loaded_without_its_tag_and_shows_its_hashes(tmp_path: Path) -> None:
    text = "Policy.\n" + "\n".join(NAMES) + "\n<image>"
    path = tmp_path / "policy.txt"
    path.write_text(text)
    policy = load_policy(path, NAMES)
    assert policy.text == text.removesuffix("\n<image>")
    assert policy.sha256 == hashlib.sha256(policy.text.encode()).hexdigest()
    hashes = [hashlib.sha256(one.encode()).hexdigest() for one in (text, text.replace("<image>", ""))]
    assert list(file_hashes(path).values()) == list(policy.file_hashes.values()) == hashes
    assert all(found in policy.words for found in (policy.sha256, *hashes))
    path.write_text(text + "\n<image>")
    with pytest.raises(PolicyError, match=r"policy\.txt: 2 image tags"):
        load_policy(path, NAMES)
    path.write_text("<image>\n")
    with pytest.raises(PolicyError, match="the policy is empty"):
        load_policy(path, NAMES)
    path.write_text("Be kind to O1: Hate, Humiliation, Harassment.")
    with pytest.raises(PolicyError, match="does not name the categories O2: Violence"):
        load_policy(path, NAMES)
    with pytest.raises(PolicyError, match=r"absent\.txt: cannot be read"):
        load_policy(tmp_path / "absent.txt", NAMES)


def test_guard03_the_european_split_has_o10_in_its_blocks_and_among_the_answers() -> None:
    policy = build_policy(taxonomy("eu"))
    assert "O10: Substance Abuse" in policy.categories
    assert "O6: Weapons" in policy.categories
    blocks, answer = policy.text.split("Judge the picture")
    assert re.findall(r"^(O\d+): ", blocks, re.MULTILINE) == [f"O{number}" for number in range(1, 11)]
    assert '"O10: Substance Abuse"' in answer
    weapons = next(block for block in blocks.split("\n\n") if block.startswith("O6"))
    assert not re.search("drug|substance|tobacco|illegal", weapons)
    with pytest.raises(PolicyError, match="'O10' is no category"):
        build_policy(taxonomy(), {"O10": "exempt"})


@pytest.mark.parametrize(("age", "counts"), [(3, (7, 40)), (7, (9, 38)), (12, (17, 30)), (16, (32, 15)), (18, (45, 2))])
def test_guard03_what_is_permitted_at_an_age(age: int, counts: tuple[int, int]) -> None:
    """Counts of seed page 1.7."""
    rated = age_policy(age)
    assert (len(rated.permitted), len(rated.prohibited)) == counts
    assert set(rated.policy.categories) == {*rated.permitted, *rated.prohibited, "NA: None applying"}
    banned = rated.policy.text.split(f"Permitted at {age}:")[0].split(f"Prohibited at {age}:")[1]
    assert re.findall(r"^- (.+)$", banned, re.MULTILINE) == list(rated.prohibited)
    assert rated.policy.keys == ("rating", "categories", "rationale")


def test_guard03_older_viewers_may_see_all_that_younger_ones_may() -> None:
    permitted = [set(age_policy(age).permitted) for age in (3, 7, 12, 16, 18)]
    assert all(young < old for young, old in zip(permitted, permitted[1:], strict=False))
    groups = [name.split(".")[0] for name in age_policy(3).policy.categories[:-1]]
    assert [groups.count(f"S{number}") for number in range(1, 10)] == [9, 5, 6, 5, 4, 8, 6, 2, 2]
    with pytest.raises(PolicyError, match="age 14 is not rated; choose one of 3, 7, 12, 16, 18"):
        age_policy(14)


def test_guard02_a_policy_as_a_section_of_a_configuration(tmp_path: Path) -> None:
    """Taxonomy with overrides, an official text, or an age; never two of them."""
    built = PolicyConfig(taxonomy="eu", overrides={"O10": "sensitive"}).build()
    assert (built.name, built.overrides) == ("eu", {"O10": "sensitive"})
    assert PolicyConfig(age=7).build() == age_policy(7).policy
    assert PolicyConfig(taxonomy=f"{tmp_path}/later.yaml", overrides={"X1": "exempt"})  # not on this machine
    assert PolicyConfig(text=f"{tmp_path}/later.txt", sha256="0" * 64)
    path = tmp_path / "official.txt"
    path.write_text("Rules.\n" + "\n".join(NAMES))
    wrong: list[dict[str, Any]] = [
        {"age": 7, "text": str(path)},
        {"age": 12, "taxonomy": "tiny", "keys": ["rating"]},
        {"age": 12, "overrides": {"S1": "exempt"}},
        {"text": str(path), "overrides": {"O1": "exempt"}},
        {"sha256": "0" * 64},
    ]
    for keys in wrong:
        with pytest.raises(ConfigError, match=r"policy\.") as caught:
            PolicyConfig.model_validate(keys)
        named = set(keys) - {"age"} if "age" in keys else {"overrides"} if "text" in keys else {"sha256"}
        assert {problem.split(":")[0] for problem in caught.value.problems} == {f"policy.{key}" for key in named}


PUBLISHED = "Rules.\n" + "\n".join(NAMES) + "\n<image>"  # as the published policy ends (seed page 1.3)


@pytest.mark.parametrize("end", ["", "\n"], ids=["as published", "an editor's last line break"])
def test_guard02_both_published_hashes_of_a_text_are_accepted_and_no_other(tmp_path: Path, end: str) -> None:
    path = tmp_path / "official.txt"
    path.write_text(PUBLISHED + end)
    texts = (PUBLISHED, PUBLISHED.replace("<image>", ""), PUBLISHED.removesuffix("\n<image>"), PUBLISHED + end)
    for text in texts:
        digest = hashlib.sha256(text.encode()).hexdigest()
        policy = PolicyConfig(text=str(path), sha256=digest).build()
        assert policy.text == PUBLISHED.removesuffix("\n<image>")
        assert digest in policy.words
    path.write_text("Other rules.\n" + "\n".join(NAMES))
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ConfigError, match=rf"policy\.sha256: expected {digest}, found .*{found}"):
        PolicyConfig(text=str(path), sha256=digest)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"overrides": {"O11": "exempt"}}, "policy: default: 'O11' is no category"),
        ({"overrides": {"O1": "exemt"}}, "policy: default: category O1: 'exemt' is no variant"),
        ({"keys": ["reason"]}, "policy: default: 'reason' is no key of an answer; did you mean"),
        ({"keys": ["category"]}, "policy: default: an answer needs 'rating'"),
        ({"age": 14}, "policy: age-14: age 14 is not rated; choose one of 3, 7"),
        ({"taxonomy": "defualt"}, "'defualt' is not packaged"),
    ],
)
def test_guard02_a_typo_is_found_before_anything_is_written(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "jobs" / "configs" / "tiny"
    root = f"run.root={tmp_path}"
    with pytest.raises(ConfigError, match=message):
        load(AnnotateConfig, shipped / "annotate_images.yaml", [root, f"policy={json.dumps(keys)}"])
    with pytest.raises(ConfigError, match=message):
        load(ServingConfig, shipped / "serve_guard.yaml", [f"service.policies={json.dumps({'default': keys})}"])
    assert list(tmp_path.iterdir()) == []


def test_guard02_the_test_sets_policy_is_checked_as_early(tmp_path: Path) -> None:
    path = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "guard_evaluate.yaml"
    with pytest.raises(ConfigError, match="guard: tiny: 'reason' is no key of an answer"):
        load(GuardConfig, path, ["guard.keys=[reason]"])
    with pytest.raises(ConfigError, match="'tyni' is not packaged"):
        load(GuardConfig, path, ["guard.taxonomy=tyni"])
