"""The shipped DPO presets against the seed's numbers, and LoRA that is really on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf.config import LoraConfig, ModelConfig, TrainableConfig, load
from rlhf.errors import ConfigError, ResourceError
from rlhf.models.llava import load as load_model
from rlhf.models.pairs import PairModel
from rlhf.preference_config import PreferenceConfig

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def preset(name: str) -> PreferenceConfig:
    return load(PreferenceConfig, CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("name", ["7b/dpo", "7b/dpo_lora"])
def test_row22_presets_have_the_numbers_of_the_seed(name: str) -> None:
    """Seed section 4."""
    config = preset(name)
    algorithm, optimizer = config.algorithm, config.policy.optimizer
    assert (algorithm.loss, algorithm.beta, algorithm.length_normalised) == ("sigmoid", 0.1, False)
    assert algorithm.label_smoothing == 0.0
    assert (optimizer.schedule, optimizer.warmup_steps, optimizer.max_grad_norm) == ("cosine", 10, 1.0)
    assert optimizer.weight_decay == 0.0
    assert (config.batch_pairs, config.epochs, config.run.seed) == (8, 1.0, 42)
    assert config.total_steps(93_258) == 11_657
    assert (config.model.max_length, config.model.dtype) == (2048, "bfloat16")
    assert algorithm.train_eos  # trap T9: the seed leaves EOS out


def test_row22_full_and_row23_lora_have_their_own_learning_rates() -> None:
    assert preset("7b/dpo").policy.optimizer.lr == 1e-6
    assert preset("7b/dpo").policy.trainable.lora is None
    assert preset("7b/dpo").policy.trainable.language_model


def test_row23_the_lora_preset_has_lora_on() -> None:
    """Trap T7: the seed's LoRA script trained everything at 20 times the learning rate."""
    config = preset("7b/dpo_lora")
    lora = config.policy.trainable.lora
    assert lora is not None
    assert (lora.rank, lora.alpha, lora.dropout, set(lora.targets)) == (256, 512, 0.0, SEVEN)
    assert config.policy.trainable.projector
    assert config.policy.optimizer.lr == 2e-5
    tiny = preset("tiny/dpo_lora").policy.trainable.lora
    assert tiny is not None
    assert (tiny.rank, tiny.alpha) == (16, 32)


@pytest.mark.parametrize("name", ["7b/dpo", "7b/dpo_lora"])
def test_row22_row23_presets_run_on_the_machine_that_they_name(name: str) -> None:
    """One node of 8 GPUs: the reference's columns are computed before the policy starts, answers without both."""
    placement = pytest.importorskip("cluster.placement", reason="needs ray")
    node = [{"CPU": 64.0, "GPU": 8.0}]
    config = load(PreferenceConfig, CONFIGS / f"{name}.yaml", ["data.evaluation=./data/unseen.json"])
    phases = config.phases()
    assert {moment: set(roles) for moment, roles in phases.items()} == {
        "answers": {"rollout"}, "columns": {"reference"}, "training": {"policy"},
    }  # fmt: skip
    for roles in phases.values():
        placement.check(placement.plan(roles), node)
    live = load(PreferenceConfig, CONFIGS / f"{name}.yaml", ["reference.source=prefetch"]).phases()
    assert set(live["training"]) == {"policy", "reference"}
    with pytest.raises(ResourceError, match="16 GPUs are asked for, the cluster has 8"):
        placement.check(placement.plan(live["training"]), node)


@pytest.mark.parametrize("algorithm", ["{loss: simpo, beta: 2.0}", "{reference_free: true}"])
def test_row22_a_loss_without_reference_needs_no_such_role(algorithm: str) -> None:
    tiny = CONFIGS / "tiny" / "dpo.yaml"
    for role in ("roles.reference=null", "roles.reference={ranks: 4}"):  # one that is there is not started
        free = load(PreferenceConfig, tiny, [f"algorithm={algorithm}", role])
        assert set(free.phases()["training"]) == {"policy"}
        assert "columns" not in free.phases()
    with pytest.raises(ConfigError, match=r"roles\.reference is missing"):
        load(PreferenceConfig, tiny, ["roles.reference=null"])


def test_row22_an_engine_of_many_gpus_needs_them() -> None:
    with pytest.raises(
        ConfigError, match=r"answers\.engine\.tensor_parallel=2 needs as many roles\.rollout\.gpus, not 1"
    ):
        load(PreferenceConfig, CONFIGS / "7b" / "dpo.yaml", ["answers.engine.tensor_parallel=2"])


def test_row22_a_role_that_is_alone_is_colocated_with_nobody() -> None:
    shared = ["roles.reference.colocate_with=policy", "roles.rollout.colocate_with=policy"]
    phases = load(PreferenceConfig, CONFIGS / "tiny" / "dpo.yaml", shared).phases()
    assert phases["training"]["reference"].colocate_with == "policy"
    assert phases["answers"]["rollout"].colocate_with is None
    stored = load(PreferenceConfig, CONFIGS / "tiny" / "dpo.yaml", [*shared, "reference.source=columns"]).phases()
    assert stored["columns"]["reference"].colocate_with is None


def test_row23_every_job_has_its_own_run_folder() -> None:
    """Trap T8: both PPO scripts of the seed wrote to the DPO folder."""
    names = []
    for path in sorted(CONFIGS.rglob("*.yaml")):
        line = next((line for line in path.read_text().splitlines() if line.startswith("run: {name: ")), None)
        if line:
            names.append(line.split("name: ")[1].split(",")[0].rstrip("}"))
    assert {"7b/dpo", "7b/dpo_lora", "7b/ppo", "tiny/dpo", "tiny/dpo_lora", "tiny/ppo"} <= set(names)
    assert len(names) == len(set(names))


def test_row23_the_adapters_are_what_learns(tiny: ModelConfig) -> None:
    """Trainable parameters by count: r (in + out) for each of the seven layers of a block, and the projector."""
    rank = 4
    model = PairModel(load_model(tiny, TrainableConfig(lora=LoraConfig(rank=rank, alpha=8))), share_prefix=True)
    text = model.backbone.vlm.config.text_config
    head = text.hidden_size // text.num_attention_heads
    wide, narrow = text.num_attention_heads * head, text.num_key_value_heads * head
    attention = 2 * (text.hidden_size + wide) + 2 * (text.hidden_size + narrow)
    adapters = text.num_hidden_layers * rank * (attention + 3 * (text.hidden_size + text.intermediate_size))
    projector = sum(p.numel() for p in model.backbone.vlm.model.multi_modal_projector.parameters())
    learning = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(learning.values()) == adapters + projector
    assert sum(size for name, size in learning.items() if "lora_" in name) == adapters
    assert 0 < adapters < sum(p.numel() for p in model.parameters()) / 4
