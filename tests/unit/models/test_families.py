"""Architectures other than LLaVA-1.5, on tiny random weights, against transformers' own processors and forwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from rlhf.batch import Example, PreferencePair, Prompt
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.images import image_size, load_image
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.data.template import TEMPLATES
from rlhf.errors import ConfigError
from rlhf.models.architecture import read_architecture
from rlhf.models.families import FAMILIES, family_of
from rlhf.models.heads import PolicyModel, ScalarModel
from rlhf.models.keys import from_hub, to_hub
from rlhf.models.llava import load, save_pretrained
from rlhf.models.tiny import TinyKind
from rlhf.online import OnlineState, iterate
from rlhf.preference import LiveReference
from rlhf.rollout.base import RolloutConfig, Sampling
from rlhf.rollout.hf_engine import HfEngine
from rlhf.rollout.weights import pack
from rlhf.tasks import ImitationTask
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.unit import test_online as online
from tests.unit import test_preference as preference

QWEN_VL: tuple[TinyKind, ...] = ("qwen2_vl", "qwen2_5_vl")
KINDS: tuple[TinyKind, ...] = ("llava_interleave", "llava_next", "llava_onevision", *QWEN_VL)
SECOND: tuple[TinyKind, ...] = ("llava_interleave", "llava_onevision", "qwen2_5_vl")
ANSWERS = ("The ball is red.", "There are three people near the old house.", "No.", "I cannot infer personal traits.")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Four drawings and two strips, which other crops fit."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = draw_images(folder)
    for name, size in (("wide", (90, 20)), ("high", (17, 80))):
        Image.open(paths[1]).resize(size).save(folder / f"{name}.png")
        paths.append(str(folder / f"{name}.png"))
    return paths


def asked(images: list[str]) -> list[Prompt]:
    """One per image, and one of text only."""
    prompts = make_prompts(images, len(images))
    return [*prompts, replace(prompts[0], id="text", image=None)]


def transformers_model(path: str) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def by_transformers(config: ModelConfig, prompt: Prompt, answer: str) -> tuple[list[int], Tensor]:
    """Ids and log-probabilities [tokens - 1] of a whole row by transformers' processor and model alone."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(config.path)
    shown = [{"type": "image"}] if prompt.image else []
    messages = [{"role": "user", "content": [*shown, {"type": "text", "text": prompt.question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    text += TEMPLATES[config.template].answer_space + answer + processor.tokenizer.eos_token
    pictures = {"images": Image.open(prompt.image).convert("RGB")} if prompt.image else {}
    inputs = processor(text=text, return_tensors="pt", **pictures)
    log_p = transformers_model(config.path)(**inputs).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    return ids.tolist(), log_p[:-1].gather(1, ids[1:, None]).squeeze(1)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_row29_tokens_and_logprobs_are_those_of_transformers(
    models: dict[str, ModelConfig], images: list[str], kind: TinyKind
) -> None:
    own = "qwen_vl" if kind in QWEN_VL else "llava_hf"
    config = models[kind].model_copy(update={"pad_to_square": False, "template": own})
    policy = PolicyModel(load(config, None)).eval()
    learning = PolicyModel(load(config, TrainableConfig(vision_tower=True))).eval()
    processor, prompts = policy.backbone.processor, asked(images)
    answers = [ANSWERS[index % len(ANSWERS)] for index in range(len(prompts))]
    batch = processor.collate([processor.encode(p, a) for p, a in zip(prompts, answers, strict=True)])
    logprobs, _ = policy(batch)
    torch.testing.assert_close(learning(batch)[0], logprobs, atol=1e-5, rtol=0)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids, expected = by_transformers(config, prompt, answer)
        assert batch.input_ids[row, : len(ids)].tolist() == ids
        counted = batch.response_mask[row]
        torch.testing.assert_close(
            logprobs[row][counted], expected[counted[1 : len(ids)]], atol=1e-5, rtol=0, msg=str(prompt.image)
        )
    tower = policy.backbone.tower
    assert tower is not None
    assert tower.forwards == len(images)
    policy(batch)
    assert tower.forwards == len(images)


@pytest.mark.parametrize(("kind", "most"), [("llava_next", 99), ("llava_onevision", 4), ("llava_onevision", 9)])
def test_placeholders_and_crops_of_any_size(tmp_path: Path, kind: TinyKind, most: int) -> None:
    """Grids of up to 5 x 5 crops: with at most 4 or 9 crops' worth of tokens they are scaled down."""
    from transformers import AutoConfig, AutoProcessor

    path = tiny_model(tmp_path, kind=kind).path
    grid = [[24 * rows, 24 * columns] for rows in range(1, 6) for columns in range(1, 6)]
    settings: dict[str, Any] = {"image_grid_pinpoints": grid}
    processor = AutoProcessor.from_pretrained(path)
    processor.image_processor.image_grid_pinpoints = grid
    if kind == "llava_onevision":
        settings["vision_aspect_ratio"] = processor.vision_aspect_ratio = f"anyres_max_{most}"
    family: Any = family_of(AutoConfig.from_pretrained(path, **settings))
    sides = (9, 24, 25, 47, 60, 101, 120, 131)
    counts = set()
    for height in sides:
        for width in sides:
            inputs = processor(text="<image>", images=Image.new("RGB", (width, height)), return_tensors="pt")
            count = int((inputs["input_ids"] == processor.image_token_id).sum())
            assert family.image_tokens((height, width)) == count, (height, width)
            assert family.crops((height, width)) == inputs["pixel_values"].shape[1]
            counts.add(count)
    assert len(counts) > 10
    whole, crop = 9 + 15 * (15 + 1), 9  # 5 x 5 crops with a newline per row of tokens
    limit = crop + 1.21 * most * crop + 15
    assert max(counts) == whole if kind == "llava_next" else max(counts) <= limit < whole


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_hubs_names_and_the_same_logits(
    models: dict[str, ModelConfig], images: list[str], tmp_path: Path, kind: TinyKind
) -> None:
    from transformers import AutoModelForImageTextToText

    backbone = load(models[kind], None)
    state = backbone.named_state()
    with torch.no_grad():
        for tensor in state.values():
            tensor.mul_(1.5)
    hub = backbone.family.names
    assert [from_hub(to_hub(name, hub), hub) for name in state] == list(state)
    save_pretrained(backbone.vlm.config, backbone.vlm.generation_config, state, tmp_path)
    backbone.processor.save(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("image_newline" in names) == (kind in ("llava_next", "llava_onevision"))
    assert ("language_model.lm_head.weight" in names) == (kind == "llava_next")  # the others tie it
    last = "visual.blocks.2." if kind in QWEN_VL else "vision_tower.vision_model.encoder.layers.2."
    assert any(name.startswith(last) for name in names)
    back, report = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(back).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    loaded = dict(back.named_parameters())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    exported = PolicyModel(load(models[kind].model_copy(update={"path": str(tmp_path)}), None)).eval()
    batch = exported.backbone.processor.join(asked(images)[:2], [[9, 10, 11], [12]])
    with torch.no_grad():
        assert torch.equal(exported(batch)[0], PolicyModel(backbone).eval()(batch)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_answers_as_transformers_and_takes_tied_weights(
    models: dict[str, ModelConfig], images: list[str], kind: TinyKind
) -> None:
    config = models[kind]
    engine = HfEngine(config, RolloutConfig(engine="transformers", dtype="float32"), Processor.load(config))
    prompts, greedy = asked(images), Sampling(max_new_tokens=6, temperature=0)
    answers = engine.generate(prompts, greedy)
    model, processor = transformers_model(config.path), engine._processor
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([processor.prompt_ids(prompt)])
        pixels = processor.model_inputs(prompt.image) if prompt.image else {}
        if prompt.image and kind in QWEN_VL:
            pixels["mm_token_type_ids"] = (ids == processor.image_id).int()
        out = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, **pixels)[0, ids.shape[1] :]
        assert list(answer.token_ids) == out.tolist()
    policy = PolicyModel(load(config, TrainableConfig())).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (p for p in policy.parameters() if p.requires_grad):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    engine.begin_update(1)
    named = policy.backbone.vlm.named_parameters()
    names = policy.backbone.family.names
    engine.load_bucket(pack([(to_hub(name, names), tensor) for name, tensor in named if tensor.requires_grad]))
    engine.finish_update()
    answers = engine.generate(prompts, greedy)
    batch = processor.join(prompts, [answer.token_ids for answer in answers])
    with torch.no_grad():
        learner = policy(batch)[0][batch.response_mask]
    told = torch.tensor([logprob for answer in answers for logprob in answer.logprobs])
    torch.testing.assert_close(told, learner, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", SECOND)
def test_what_learns(models: dict[str, ModelConfig], images: list[str], kind: TinyKind) -> None:
    """A scalar model has no use for the LM head, but its embeddings learn even if the two are one matrix."""
    model = ScalarModel(load(models[kind], TrainableConfig())).train()
    batch = model.backbone.processor.join(asked(images)[-2:], [[9, 10], [11]])
    model(batch).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.backbone.vlm.named_parameters()}
    assert gradients["model.language_model.embed_tokens.weight"] is not None
    if kind == "llava_onevision":
        newline = gradients["model.image_newline"]
        assert newline is not None
        assert newline.abs().sum() > 0
        frozen = load(models[kind], TrainableConfig(projector=False)).vlm.model
        assert not frozen.image_newline.requires_grad
    text = model.backbone.processor.join(asked(images)[-1:], [[11]])
    model.zero_grad()
    model(text).sum().backward()  # every rank needs a gradient of everything that learns
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", SECOND)
def test_row29_sft_on_a_second_architecture(models: dict[str, ModelConfig], images: list[str], kind: TinyKind) -> None:
    model = PolicyModel(load(models[kind], TrainableConfig())).train()
    examples = [Example(f"e:{i}", image, (("What is it?", ANSWERS[i % 4]),)) for i, image in enumerate(images)]
    rejected = RejectedRows()
    task = ImitationTask(model.backbone.processor, examples, rejected)
    assert (len(task), rejected.count) == (len(images), 0)
    batch = task.batch(range(len(task)))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(model, batch, float(task.count(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("kind", "share"), [("llava_interleave", "false"), ("llava_onevision", "true"), ("qwen2_5_vl", "true")]
)
def test_row29_dpo_on_a_second_architecture(
    models: dict[str, ModelConfig], images: list[str], tmp_path: Path, kind: TinyKind, share: str
) -> None:
    model = models[kind]
    settings = (f"model.pad_to_square={model.pad_to_square}", f"share_prefix={share}", "epochs=5", "algorithm.beta=0.5")
    config = preference.make_config(model.path, tmp_path, *settings)
    prompts = make_prompts(images, 8)
    pairs = [PreferencePair(p, ANSWERS[3], preference.REJECTED[i % 4]) for i, p in enumerate(prompts)]
    policy, data = preference.LocalPolicy(config), preference.encoded(config, pairs)
    reference = preference.LocalReference(config.model)
    results = preference.run(config, data, policy, LiveReference(reference))
    assert preference.metrics(config)[0]["margin"] == pytest.approx(0.0, abs=1e-4)
    assert results["validation/accuracy_all"] == 1.0


@pytest.mark.parametrize("kind", SECOND)
def test_row29_ppo_on_a_second_architecture(
    models: dict[str, ModelConfig], images: list[str], tmp_path: Path, kind: TinyKind
) -> None:
    square = models[kind].pad_to_square
    settings = (f"model.pad_to_square={square}", f"critic.model.pad_to_square={square}")
    config = online.make_config(models[kind].path, tmp_path, *settings)
    roles: Any = online.make_roles(config)
    processor = Processor.load(config.model)
    prompts, state = make_prompts(images, 8), OnlineState(kl_coefficient=0.05)
    before = [parameter.detach().clone() for parameter in roles.policy.module.parameters()]
    for turn in range(2):  # in the second the engine has weights that it was sent
        done = iterate(state, roles, prompts, processor, config)
        state = done.state
        assert done.metrics["rollout/logprob_gap"] < 1e-4, turn
    assert roles.policy.steps[0]["ratio"] == pytest.approx(1.0, abs=1e-5)
    assert roles.rollout.engine.version == 2
    after = roles.policy.module.parameters()
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_an_unknown_architecture_is_named_before_weights_load(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "paligemma", "architectures": ["PaliGemmaForSomething"]}')
    for read in (Processor.load, lambda config: load(config, None)):
        with pytest.raises(ConfigError, match=r"paligemma model \(PaliGemmaForSomething\)") as caught:
            read(ModelConfig(path=str(tmp_path)))
        assert all(name in str(caught.value) for name in FAMILIES)


def test_parts_that_do_not_fit_are_refused_before_weights_load(tmp_path: Path) -> None:
    config = tiny_model(tmp_path, kind="llava_interleave")
    (tmp_path / "model.safetensors").unlink()
    content = json.loads((tmp_path / "config.json").read_text())

    def refused(**changes: Any) -> str:
        (tmp_path / "config.json").write_text(json.dumps(content | changes))
        with pytest.raises(ConfigError) as caught:
            Processor.load(config)
        return str(caught.value)

    assert "leaves 8 tokens of 9 patches" in refused(vision_feature_select_strategy="default")
    tower = {"model_type": "dinov2", "image_size": 24, "patch_size": 8}
    assert "is a dinov2; known towers are clip_vision_model, siglip_vision_model" in refused(vision_config=tower)


def test_squares_are_refused_where_images_are_cropped(models: dict[str, ModelConfig]) -> None:
    with pytest.raises(ConfigError, match=r"model.pad_to_square: LlavaOnevision.*set it to false"):
        Processor.load(models["llava_onevision"].model_copy(update={"pad_to_square": True}))


def test_padding_has_the_image_processors_own_mean(models: dict[str, ModelConfig], tmp_path: Path) -> None:
    """SigLIP's grey, not CLIP's colour: the canvas is 0 after normalising."""
    Image.new("RGB", (48, 12), (200, 10, 10)).save(tmp_path / "strip.png")
    pixels = Processor.load(models["llava_interleave"]).pixels(str(tmp_path / "strip.png"))
    assert pixels[:, :6].abs().max() < 0.01
    assert pixels[:, 12].abs().min() > 0.5


def test_a_prompt_that_begins_with_its_image_keeps_one_placeholder(models: dict[str, ModelConfig]) -> None:
    """Qwen2's tokenizer puts nothing before a text."""
    processor = Processor.load(models["llava_interleave"])
    image = processor.image_id
    assert processor.collapse([image] * 9) == [image]
    assert processor.collapse([image] * 9 + [5, 6]) == [image, 5, 6]
    assert processor.collapse([5, *[image] * 9]) == [5, image]
    assert processor.collapse([5, 5, image, image, 5, image]) == [5, 5, image, 5, image]


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_sizes_are_those_of_the_upright_image(tmp_path: Path, orientation: int | None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(str(tmp_path / "a.jpg")) == load_image(str(tmp_path / "a.jpg")).size[::-1]


def test_sizes_of_the_doctor(models: dict[str, ModelConfig]) -> None:
    assert read_architecture(models["llava_interleave"].path).image_tokens == 9  # no class token to add
    assert read_architecture(models["llava_onevision"].path).image_tokens is None
