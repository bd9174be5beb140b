"""Engines load model directories as they are: a configuration that asks for more is refused, wherever an engine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.annotate_images import AnnotateConfig
from jobs.evaluate import EvaluationConfig
from jobs.infer import InferenceConfig
from jobs.moderate_images import ModerateConfig
from jobs.prism import PrismConfig
from rlhf.config import Config, load
from rlhf.errors import ConfigError
from rlhf.online_config import OnlineConfig
from rlhf.preference_config import PreferenceConfig
from rlhf.serving.config import ServingConfig

TINY = Path(__file__).parents[3] / "jobs" / "configs" / "tiny"
ENGINES: list[tuple[type[Config], str, str, str]] = [
    (InferenceConfig, "infer", "model", "model"),
    (EvaluationConfig, "evaluate", "model", "model"),
    (EvaluationConfig, "evaluate", "helpeval.baseline", "helpeval.baseline"),
    (PrismConfig, "safe_prism", "model", "model"),
    (AnnotateConfig, "annotate_images", "model", "model"),
    (ModerateConfig, "moderate_images", "guard.model", "model"),
    (ServingConfig, "serve", "model", "model"),
    (OnlineConfig, "ppo", "model", "model"),
    (OnlineConfig, "ppo_lora", "model", "model"),
    (OnlineConfig, "ppo_guard", "reward.rewards.0.reward.model", "reward.model"),
]


@pytest.mark.parametrize(("schema", "file", "key", "named"), ENGINES)
@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("adapter=./adapter", "direction=merge source=./runs/tiny/[^ ]+ adapter=./adapter target=<new folder>"),
        ("quantise=nf4", "set it to none"),
    ],
)
def test_what_an_engine_would_ignore_is_refused_with_a_remedy(
    schema: type[Config], file: str, key: str, named: str, setting: str, remedy: str
) -> None:
    path = TINY / f"{file}.yaml"
    load(schema, path)
    with pytest.raises(
        ConfigError, match=rf"{named}\.{setting.partition('=')[0]}: engines load whole models.*{remedy}"
    ):
        load(schema, path, [f"{key}.{setting}"])


def test_dpo_may_quantise_what_it_trains_and_adapt_what_no_engine_answers_with() -> None:
    """The engine answers with the whole base before training, and with the merged export after it."""
    path = TINY / "dpo_lora.yaml"
    load(PreferenceConfig, path, ["model.quantise=nf4"])
    load(PreferenceConfig, path, ["model.adapter=./adapter", "data.evaluation=null"])
    with pytest.raises(ConfigError, match=r"model\.adapter: engines load whole models"):
        load(PreferenceConfig, path, ["model.adapter=./adapter"])
