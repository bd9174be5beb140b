"""The taxonomy and the policy builder: names, variants, overrides, refusals, country and age policies."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from rlhf.errors import ConfigError, PolicyError
from rlhf.guard.policy import Policy, age_policy, build_policy, file_hashes, load_policy
from rlhf.guard.policy_config import PolicyConfig
from rlhf.guard.taxonomy import VARIANTS, packaged, taxonomy

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


def test_guard01_a_taxonomy_of_ones_own_names_every_mistake(tmp_path: Path) -> None:
    content = yaml.safe_load(packaged("default").read_text())
    content["categories"][0].pop("banned")
    content["categories"][1]["bans"] = ["x"]
    content["categories"][3]["id"] = "O3"
    content["categories"][4]["id"] = "NA"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        taxonomy(str(path))
    message = str(caught.value)
    assert "category O1: 'banned' is missing or empty" in message
    assert "category O2: unknown key 'bans'" in message
    assert "category 'O3' occurs twice" in message
    assert "category 'NA' occurs twice" in message
    assert str(path) in message
    with pytest.raises(ConfigError, match=r"packaged are ages, default, eu, tiny"):
        taxonomy("defualt")


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
    assert file_hashes(path) == {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sha256_without_image_tag": hashlib.sha256(text.replace("<image>", "").encode()).hexdigest(),
    }
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
    """Taxonomy with overrides, an official text whose hash is checked, or an age; never two of them."""
    built = PolicyConfig(taxonomy="eu", overrides={"O10": "sensitive"}).build()
    assert (built.name, built.overrides) == ("eu", {"O10": "sensitive"})
    assert PolicyConfig(age=7).build() == age_policy(7).policy
    path = tmp_path / "official.txt"
    path.write_text("Rules.\n" + "\n".join(NAMES) + "\n<image>\n")
    digest = hashlib.sha256(("Rules.\n" + "\n".join(NAMES)).encode()).hexdigest()
    assert PolicyConfig(text=str(path), sha256=digest).build().sha256 == digest
    for published in (path.read_bytes(), path.read_bytes().replace(b"<image>", b"")):
        known = hashlib.sha256(published).hexdigest()
        assert PolicyConfig(text=str(path), sha256=known).build().sha256 == digest
    path.write_text("Other rules.\n" + "\n".join(NAMES))
    with pytest.raises(ConfigError, match=f"expected {digest}"):
        PolicyConfig(text=str(path), sha256=digest).build()
    for keys in ({"age": 7, "text": "x"}, {"text": "x", "overrides": {"O1": "exempt"}}, {"sha256": digest}):
        with pytest.raises(ConfigError, match=r"policy\."):
            PolicyConfig.model_validate(keys)
