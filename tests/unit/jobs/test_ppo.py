"""What the PPO job reads before it starts anything: prompts to train on, to report and to choose a checkpoint by."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.before_after import show
from jobs.ppo_spa_vl import read_inputs, run
from rlhf.checkpoint import RunFolder
from rlhf.config import load
from rlhf.data.processor import Processor
from rlhf.data.synthetic import WorldSizes, write_world
from rlhf.errors import ConfigError, DataError, PromptTooLongError
from rlhf.online_config import OnlineConfig
from tests.fakes import tiny_model, tiny_reward_model

CONSTRAINED = Path(__file__).parents[3] / "jobs" / "configs" / "tiny" / "ppo_constrained.yaml"


def config_of(folder: Path, *overrides: str) -> OnlineConfig:
    files = {"train": "pairs_train.json", "evaluation": "test.json", "validation": "validation.json"}
    policy, scorer = (
        f"{{path: {folder}/{name}, dtype: float32, template: llava_hf, max_length: 256}}"
        for name in ("policy", "reward")
    )
    return load(
        OnlineConfig,
        CONSTRAINED,
        [
            f"model={policy}",
            f"critic.model={scorer}",
            f"reward={{kind: mixture, rewards: [{{name: r, weight: 1.0, reward: {{kind: learned, model: {scorer}}}}}], "
            "costs: [{name: over_refusal, reward: {kind: refusal}}]}",
            *(f"data.{key}={folder}/world/{name}" for key, name in files.items()),
            f"data.image_root={folder}/world/images",
            *overrides,
        ],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    write_world(folder / "world", 0, WorldSizes(12, 4, 8, 4, 8, 3, test_prompts=4, validation_prompts=5))
    tiny_model(folder / "policy")
    tiny_reward_model(folder / "reward")
    return folder


def test_who_waits_for_the_end_of_a_run_is_told_what_to_look_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"step": step, "score/invalid/g[0]/guard_answer": 0.3, "response/length": 40 - step} for step in range(30)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert show(tmp_path) == {}
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("look into: ")]
    assert [line.split(": ")[1] for line in told] == [
        "30.0% of g[0]/guard_answer's verdicts are invalid (30.0% of the last ones)",
        "answers shrank from 36 to 14 tokens",  # 40 - 3.5 and 40 - 25.5
    ]


def test_all_three_sets_of_prompts_are_read_and_checked(folder: Path, tmp_path: Path) -> None:
    inputs = read_inputs(config_of(folder), tmp_path)
    assert len(inputs.prompts) == 24
    assert Counter(prompt.kind for prompt in inputs.evaluation) == {"harmful": 4, "biometric": 4, "benign": 4}
    assert Counter(prompt.kind for prompt in inputs.validation) == {"harmful": 5, "biometric": 5, "benign": 5}
    assert all(prompt.answer for prompt in inputs.validation if prompt.kind == "benign")


def test_a_guard_that_has_no_room_for_the_longest_question_and_its_answer_is_refused_before_anything_starts(
    folder: Path, tmp_path: Path
) -> None:
    def with_guard(context: int) -> OnlineConfig:
        guard = (
            f"{{kind: guard, model: {{path: {folder}/policy, dtype: float32, template: llava_hf, max_length: 512}}, "
            f"rollout: {{max_length: {context}}}, policy: {{taxonomy: tiny}}, decoding: {{max_new_tokens: 8}}}}"
        )
        return config_of(
            folder, f"reward={{kind: mixture, rewards: [{{name: g, weight: 1.0, reward: {guard}}}]}}", "constraints=[]"
        )

    assert len(read_inputs(with_guard(512), tmp_path).prompts) == 24
    with pytest.raises(PromptTooLongError, match=r"no room for 32 new tokens in a context of 256"):  # 24 and 8
        read_inputs(with_guard(256), tmp_path)


def prompt_file(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Overrides that make these rows the training data; their image is `a.png`."""
    Image.new("RGB", (20, 30)).save(folder / "a.png")
    (folder / "easy.json").write_text(json.dumps(rows))
    (folder / "train.json").write_text(json.dumps({"easy": "easy.json"}))
    unseen = [f"data.{key}=null" for key in ("evaluation", "validation")]
    data = [f"data.train={folder}/train.json", "data.keywords=[easy]", f"data.image_root={folder}"]
    return [*data, *unseen, "selection=null", "sampling.max_new_tokens=16", "rollout.max_length=128"]


ROW = {"id": 1, "image": "a.png", "question": "What is it?"}
LONG = " ".join(["word"] * 400)


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        ([ROW], ["easy:1"]),  # files of prompts have no answers
        ([{**ROW, "chosen": LONG, "rejected": ""}], ["easy:1"]),  # nobody looks at them
        ([{"id": 1, "question": "Why?"}, {"id": 2, "question": "How?"}], ["easy:1", "easy:2"]),  # text alone
        ([{**ROW, "question": LONG}, {**ROW, "id": 2}], ["easy:2"]),  # what the length filter took
    ],
)
def test_the_canary_is_of_prompts_that_fit_and_needs_no_answers_in_the_data(
    folder: Path, tmp_path: Path, rows: list[dict[str, Any]], left: list[str]
) -> None:
    overrides = [*prompt_file(tmp_path, rows), "data.max_rejected_share=0.5"]
    inputs = read_inputs(config_of(folder, *overrides), tmp_path)
    assert [prompt.id for prompt in inputs.prompts] == left
    assert [prompt.id for prompt in inputs.canary.prompts] == left
    assert all(inputs.canary.answers)


def test_row33_the_canary_fits_the_engine_where_its_context_is_the_shorter_one(folder: Path, tmp_path: Path) -> None:
    """The longest prompt that the filter lets pass, with its answer and the token that an engine draws behind it."""
    words = 12
    config = config_of(folder, *prompt_file(tmp_path, [{**ROW, "question": " ".join(["word"] * words)}]))
    tokens = len(Processor.load(config.model).prompt_ids(read_inputs(config, tmp_path).prompts[0]))
    rows = [{**ROW, "question": " ".join(["word"] * words)}]
    tight = config_of(folder, *prompt_file(tmp_path, rows), f"rollout.max_length={tokens + 16}")
    canary = read_inputs(tight, tmp_path).canary
    assert int(canary.tokens.lengths.max()) + 1 <= tight.rollout.max_length < tight.model.max_length
    with pytest.raises(DataError, match="leave no room for 16 new tokens"):
        read_inputs(config_of(folder, *prompt_file(tmp_path, rows), f"rollout.max_length={tokens + 15}"), tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        ("{", "not JSON"),
        ("[1]", "expected a flat map from keyword to JSON path"),
    ],
)
@pytest.mark.parametrize("key", ["data.evaluation", "data.validation"])
def test_an_evaluation_map_that_cannot_be_read_is_named_with_its_key(
    folder: Path, tmp_path: Path, key: str, content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "map.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_inputs(config_of(folder, f"{key}={tmp_path}/map.json"), tmp_path)
    assert f"{key}: keyword config {tmp_path}/map.json" in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize("key", ["reward.rewards.0.reward.model", "critic.model"])
def test_a_reward_model_without_a_head_is_refused_by_its_directory(folder: Path, tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}\.path: .*policy has no scalar_head.* run jobs/train_reward_model"):
        read_inputs(config_of(folder, f"{key}.path={folder}/policy"), tmp_path)


@pytest.mark.parametrize("key", ["reward.rewards.0.reward.model", "critic.model"])
def test_row33_a_model_that_could_not_read_the_longest_answer_is_refused(folder: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}\.max_length=64 is less than rollout.max_length=256"):
        config_of(folder, f"{key}.max_length=64")
    config_of(folder, f"{key}.max_length=64", "rollout.max_length=64")


def test_what_was_refused_may_be_mended_under_the_same_name(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    where = f"run.root={tmp_path}/runs"
    with pytest.raises(ConfigError, match="unknown keyword 'esy'"):
        run(config_of(folder, where, "data.keywords=[esy]"))
    with pytest.raises(DataError, match="leave no room"):
        run(config_of(folder, where, "sampling.max_new_tokens=100", "rollout.max_length=110"))
    mended = config_of(folder, where)
    RunFolder(mended.run, mended).close()


def test_a_checkpoint_is_not_chosen_by_what_is_reported(folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied.json"
    copied.write_text((folder / "world" / "test.json").read_text().replace("test/", f"{folder}/world/test/"))
    with pytest.raises(DataError, match=r"12 of its prompts are in data.evaluation too"):
        read_inputs(config_of(folder, f"data.validation={copied}"), tmp_path)
