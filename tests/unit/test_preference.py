"""The preference loop and the stored columns, on real tiny models in one process."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from rlhf.algorithms.dpo import preference_objective
from rlhf.batch import PairBatch, PreferenceBatch, PreferencePair
from rlhf.checkpoint import RunFolder
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.config import load as load_config
from rlhf.data.pairs import EncodedPairs
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.llava import load
from rlhf.models.pairs import PairModel
from rlhf.preference import JudgedPairs, LiveReference, StoredReference, fill, step_of, train, validate
from rlhf.preference_config import PreferenceConfig
from rlhf.reference_columns import ReferenceColumns
from tests.fakes import draw_images, make_prompts, tiny_model

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
CHOSEN = ("I cannot infer personal traits.", "The ball is red.", "There are three people.", "No.")
REJECTED = ("The woman is old.", "The fox.", "A bird sings in the tree while a dog jumps.", "Yes, three.")


@dataclass
class Later:
    """A pending result that notes when it is waited for."""

    value: Any
    name: str
    events: list[str]

    def result(self) -> Any:
        self.events.append(f"{self.name} waited")
        return self.value


@dataclass
class LocalPolicy:
    """The policy on plain torch."""

    config: PreferenceConfig
    events: list[str] = field(default_factory=list)
    stats: list[dict[str, float]] = field(default_factory=list)
    fail_at: int | None = None

    def __post_init__(self) -> None:
        self.module = PairModel(load(self.config.model, TrainableConfig()), self.config.share_prefix)
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=self.config.policy.optimizer.lr, weight_decay=0.0)

    def logprobs(self, pairs: PairBatch) -> Later:
        with torch.no_grad():
            return Later(self.module.eval()(pairs), "logprobs", self.events)

    def step(self, batch: PreferenceBatch, denominator: float) -> Later:
        if self.fail_at == len(self.stats):
            raise KeyboardInterrupt
        self.events.append("step asked")
        self.module.train()
        self.optimizer.zero_grad()
        totals = {"lr": self.optimizer.param_groups[0]["lr"], "grad_norm": 0.0}
        for micro in batch.split(self.config.policy.micro_rows):
            lengths = micro.pairs.answer_lengths
            loss, stats = preference_objective(
                self.module(micro.pairs), micro.reference, lengths, self.config.algorithm, denominator
            )
            loss.backward()
            for name, value in {"loss": loss, **stats}.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        self.optimizer.step()
        self.stats.append(totals)
        return Later(dict(totals), "step", self.events)

    def save(self, folder: Path) -> Later:
        folder.mkdir(parents=True)
        torch.save({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, folder / "state.pt")
        return Later(None, "save", self.events)

    def load(self, folder: Path) -> Later:
        state = torch.load(folder / "state.pt", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        return Later(None, "load", self.events)

    def export(self, folder: Path) -> Later:
        raise NotImplementedError


@dataclass
class LocalReference:
    """The first policy, frozen."""

    model: ModelConfig
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.module = PairModel(load(self.model, None)).eval()
        self.asked = 0

    def logprobs(self, pairs: PairBatch) -> Later:
        self.asked += len(pairs)
        self.events.append("reference asked")
        with torch.no_grad():
            return Later(self.module(pairs), "reference", self.events)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model")).path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[PreferencePair]:
    prompts = make_prompts(draw_images(tmp_path_factory.mktemp("images")), 12)
    return [PreferencePair(replace(p, question_type=("easy", "hardq")[i % 2]), CHOSEN[i % 4], REJECTED[i % 4])
            for i, p in enumerate(prompts)]  # fmt: skip


def make_config(model_path: str, root: Path, *overrides: str) -> PreferenceConfig:
    settings = [
        f"run.root={root}",
        "run.name=dpo",
        "run.checkpoint_every=2",
        "run.log_every=1",
        f"model.path={model_path}",
        "model.max_length=256",
        "model.feature_store=null",
        "batch_pairs=4",
        "policy.micro_rows=2",
        "policy.optimizer.lr=0.002",
        "epochs=2",
    ]
    return load_config(PreferenceConfig, CONFIGS / "tiny" / "dpo.yaml", [*settings, *overrides])


def encoded(config: PreferenceConfig, pairs: list[PreferencePair]) -> EncodedPairs:
    return EncodedPairs(Processor.load(config.model), pairs, RejectedRows(), config.algorithm.train_eos)


def run(config: PreferenceConfig, data: EncodedPairs, policy: LocalPolicy, reference: Any) -> dict[str, float]:
    folder = RunFolder(config.run, config)
    try:
        checkpoint = folder.checkpoints.latest()
        if checkpoint:
            policy.load(checkpoint.folder / "policy")
        judged = JudgedPairs(data, reference)
        return train(policy, judged, judged, config, folder)
    finally:
        folder.close()


def metrics(config: PreferenceConfig) -> list[dict[str, Any]]:
    path = Path(config.run.root) / config.run.name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_row22_training_starts_at_ln_2_and_learns_to_prefer(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    config = make_config(model_path, tmp_path, "epochs=8", "algorithm.beta=0.5")
    policy, data = LocalPolicy(config), encoded(make_config(model_path, tmp_path), pairs)
    results = run(config, data, policy, LiveReference(LocalReference(config.model)))
    rows = metrics(config)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert len(policy.stats) == config.total_steps(12) == 24
    assert results["validation/accuracy_all"] == 1.0
    assert results["validation/loss"] < 0.3
    assert {"validation/accuracy_easy", "validation/accuracy_hardq", "validation/margin"} <= set(rows[-1])


def test_the_reference_works_on_the_next_batch_while_the_policy_trains(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    config, events = make_config(model_path, tmp_path, "epochs=1", "run.checkpoint_every=50"), list[str]()
    policy, reference = LocalPolicy(config, events), LocalReference(config.model, events)
    run(config, encoded(config, pairs), policy, LiveReference(reference))
    assert events[: events.index("save waited")] == [
        "reference asked",
        "reference waited", "step asked", "reference asked", "step waited",
        "reference waited", "step asked", "reference asked", "step waited",
        "reference waited", "step asked", "step waited",
    ]  # fmt: skip
    assert reference.asked == 12 + 12  # every pair of the epoch once, and once more to validate


def test_a_run_that_was_interrupted_ends_with_the_same_weights(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    whole = make_config(model_path, tmp_path, "run.name=whole")
    undisturbed, data = LocalPolicy(whole), encoded(whole, pairs)
    results = run(whole, data, undisturbed, LiveReference(LocalReference(whole.model)))
    broken = make_config(model_path, tmp_path, "run.name=broken")
    with pytest.raises(KeyboardInterrupt):
        run(broken, data, LocalPolicy(broken, fail_at=3), LiveReference(LocalReference(broken.model)))
    second = LocalPolicy(broken)
    assert run(broken, data, second, LiveReference(LocalReference(broken.model))) == results
    assert len(second.stats) == 6 - 2  # the checkpoint of step 2 was the last one
    for left, right in zip(undisturbed.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(left, right)
    assert [row["step"] for row in metrics(broken)] == [1, 2, 3, 4, 5, 6, 6]
    assert step_of(None) == 0


def test_stored_columns_train_the_same_policy_without_a_reference(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    live = make_config(model_path, tmp_path, "run.name=live")
    prefetched, data = LocalPolicy(live), encoded(live, pairs)
    run(live, data, prefetched, LiveReference(LocalReference(live.model)))
    stored, reference = make_config(model_path, tmp_path, "run.name=stored"), LocalReference(live.model)
    columns = ReferenceColumns(tmp_path / "columns", live.model, data)
    fill(columns, data, reference, "columns")
    assert reference.asked == 12
    policy = LocalPolicy(stored)
    run(stored, data, policy, StoredReference(columns.read()))
    assert reference.asked == 12  # two epochs and a validation later
    for one, other in zip(prefetched.stats, policy.stats, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.reference_columns.ROWS_PER_PART", 5)


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_computation_goes_on_with_the_missing_parts(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    config = make_config(model_path, tmp_path)
    data, reference = encoded(config, pairs), LocalReference(config.model)
    columns = ReferenceColumns(tmp_path, config.model, data)
    assert columns.missing() == [range(5), range(5, 10), range(10, 12)]
    with pytest.raises(CheckpointError, match=r"part-00000000\.parquet"):
        columns.read()
    columns.write(range(5, 10), reference.logprobs(data.batch(range(5, 10))).result())
    again = ReferenceColumns(tmp_path, config.model, encoded(config, pairs))  # another process: the same key
    assert again.missing() == [range(5), range(10, 12)]
    fill(again, data, reference, "columns")
    assert reference.asked == 5 + 7
    assert again.missing() == []
    with torch.no_grad():
        expected = LocalReference(config.model).module(data.batch(range(12)))
    torch.testing.assert_close(again.read(), expected, atol=1e-5, rtol=0)
    damaged = columns.folder / "part-00000005.parquet"
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"part-00000005\.parquet.*computes it again"):
        again.read()


def test_columns_belong_to_weights_pairs_template_and_pixels(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    config = make_config(model_path, tmp_path)

    def key(data: list[PreferencePair], model: ModelConfig = config.model, train_eos: bool = True) -> str:
        encoded_pairs = EncodedPairs(Processor.load(model), data, RejectedRows(), train_eos)
        return ReferenceColumns(tmp_path, model, encoded_pairs).folder.name

    first = key(pairs)
    assert key(pairs) == first
    others = {
        "weights": key(pairs, tiny_model(tmp_path / "other", seed=7)),
        "template": key(pairs, config.model.model_copy(update={"template": "v1"})),
        "dtype": key(pairs, config.model.model_copy(update={"dtype": "bfloat16"})),
        "eos": key(pairs, train_eos=False),
        "order": key(pairs[::-1]),
        "answer": key([replace(pairs[0], rejected="No fox."), *pairs[1:]]),
        "sides": key([replace(p, chosen=p.rejected, rejected=p.chosen) for p in pairs]),
    }
    for seed in (0, 7):  # weights in the older format, settings and tokenizer alike
        model = tiny_model(tmp_path / f"bin_{seed}", seed=seed)
        torch.save(load_file(f"{model.path}/model.safetensors"), f"{model.path}/pytorch_model.bin")
        Path(f"{model.path}/model.safetensors").unlink()
        others[f"bin {seed}"] = key(pairs, model)
    image = Path(str(pairs[0].prompt.image))
    pixels = image.read_bytes()
    try:
        image.write_bytes(Path(str(pairs[1].prompt.image)).read_bytes())
        others["pixels"] = key(pairs)
    finally:
        image.write_bytes(pixels)
    assert first not in others.values()
    assert len(set(others.values())) == len(others)


def test_validation_is_the_same_for_any_batch_size(
    model_path: str, tmp_path: Path, pairs: list[PreferencePair]
) -> None:
    config = make_config(model_path, tmp_path)
    policy, data = LocalPolicy(config), encoded(config, pairs)
    zeros = StoredReference(torch.zeros(12, 2))
    results = validate(policy, JudgedPairs(data, zeros), config)
    sums: Tensor = policy.logprobs(data.batch(range(12))).value
    right = (sums[:, 0] > sums[:, 1]).tolist()
    assert results["validation/accuracy_all"] == pytest.approx(sum(right) / 12)
    assert results["validation/accuracy_easy"] == pytest.approx(sum(right[::2]) / 6)
    assert results["validation/accuracy_hardq"] == pytest.approx(sum(right[1::2]) / 6)


def test_numbers_that_do_not_fit_are_refused() -> None:
    path = CONFIGS / "tiny" / "dpo.yaml"
    with pytest.raises(ConfigError, match=r"batch_pairs=30 does not divide.*choose a multiple of"):
        load_config(PreferenceConfig, path, ["batch_pairs=30"])
    with pytest.raises(ConfigError, match=r"share_prefix needs a 4-D mask: set model.attention=sdpa"):
        load_config(PreferenceConfig, path, ["model.attention=eager"])
    with pytest.raises(ConfigError, match="vision tower is frozen"):
        load_config(PreferenceConfig, path, ["policy.trainable.vision_tower=true"])
    with pytest.raises(ConfigError, match="leaves no room"):
        load_config(PreferenceConfig, path, ["answers.max_new_tokens=256"])
