"""What Qwen2-VL and Qwen2.5-VL have of their own: images of any size, windows, positions in three dimensions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rlhf.batch import PreferencePair
from rlhf.config import ModelConfig, TrainableConfig
from rlhf.data.pairs import EncodedPairs
from rlhf.data.processor import Processor
from rlhf.data.rejected import RejectedRows
from rlhf.errors import ConfigError, ImageError
from rlhf.models.heads import PolicyModel
from rlhf.models.llava import VisionLanguage, load
from rlhf.models.pairs import PairModel
from rlhf.models.tiny import TinyKind
from tests.fakes import draw_images, make_prompts, tiny_model
from tests.unit.models.test_pairs import ANSWERS, gradients

KINDS: tuple[TinyKind, ...] = ("qwen2_vl", "qwen2_5_vl")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    return {kind: tiny_model(tmp_path_factory.mktemp(kind), kind=kind) for kind in KINDS}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of 9, 9, 6, 6 and 8 tokens; the last is a strip of one row."""
    folder = tmp_path_factory.mktemp("shapes")
    paths = draw_images(folder)
    Image.open(paths[1]).resize((128, 16)).save(folder / "strip.png")
    return [*paths, str(folder / "strip.png")]


def strong(config: ModelConfig, trainable: TrainableConfig | None = None) -> VisionLanguage:
    """With weights so large that every position and patch matters."""
    backbone = load(config, trainable)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sorted(backbone.named_state().items()):
            if tensor.dim() > 1 and "lm_head" not in name:
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return backbone


def transformers_model(backbone: VisionLanguage, config: ModelConfig) -> Any:
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(config.path, dtype=torch.float32).eval()
    model.load_state_dict(backbone.named_state(), strict=False)
    return model


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_row29_positions_and_states_are_those_of_transformers(
    models: dict[str, ModelConfig], images: list[str], kind: TinyKind
) -> None:
    """All rows in one padded batch of transformers' own forward; other positions give other states."""
    backbone = strong(models[kind]).eval()
    processor, model = backbone.processor, transformers_model(backbone, models[kind])
    prompts = make_prompts(images, len(images))
    prompts.append(replace(prompts[0], id="text", image=None))
    batch = processor.collate([processor.encode(prompt, "The ball is red.") for prompt in prompts])
    places = batch.input_ids == processor.image_id
    shown = [path for path in batch.images if path is not None]
    inputs = [processor.model_inputs(path) for path in shown]
    pixels, grids = (torch.cat([one[name] for one in inputs]) for name in ("pixel_values", "image_grid_thw"))
    about: dict[str, Tensor] = {"attention_mask": batch.attention_mask, "mm_token_type_ids": places.int()}
    sizes = [None if path is None else processor.image_size(path) for path in batch.images]
    ours, real = processor.family.positions(None, places, sizes), batch.attention_mask.bool()
    theirs, _ = model.model.get_rope_index(batch.input_ids, image_grid_thw=grids, **about)
    assert ours is not None
    assert torch.equal(ours[:, real], theirs[:, real])
    expected = model.model(batch.input_ids, pixel_values=pixels, image_grid_thw=grids, **about).last_hidden_state
    torch.testing.assert_close(backbone.hidden(batch)[real], expected[real], atol=1e-4, rtol=0)
    flat = torch.arange(places.shape[1]).expand(3, *places.shape)
    other = model.model(batch.input_ids, pixel_values=pixels, image_grid_thw=grids, position_ids=flat, **about)
    assert (other.last_hidden_state - expected)[real].abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prefix_has_the_numbers_of_separate_rows(
    models: dict[str, ModelConfig], images: list[str], kind: TinyKind
) -> None:
    """Sums and gradients; text goes on behind the image in three dimensions, whichever branch it is in."""
    prompts = make_prompts(images, 4)
    prompts[1] = replace(prompts[1], image=None)
    pairs = [PreferencePair(prompt, *answers) for prompt, answers in zip(prompts, ANSWERS, strict=True)]
    batch = EncodedPairs(Processor.load(models[kind]), pairs, RejectedRows()).batch(range(4))
    weights = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
    apart, shared = (PairModel(strong(models[kind], TrainableConfig()), share) for share in (False, True))
    with torch.no_grad():
        torch.testing.assert_close(shared.eval()(batch), apart.eval()(batch), atol=1e-4, rtol=1e-5)
    one, two = gradients(apart, batch, weights), gradients(shared, batch, weights)
    assert one.keys() == two.keys()
    assert any("visual.merger" in name for name in one)
    for name, gradient in two.items():
        scale = max(1.0, float(one[name].abs().max()))
        assert float((gradient - one[name]).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_placeholders_of_any_size(models: dict[str, ModelConfig], kind: TinyKind) -> None:
    from transformers import AutoProcessor

    processor, family = AutoProcessor.from_pretrained(models[kind].path), Processor.load(models[kind]).family
    sides = (3, 16, 25, 47, 60, 101, 400)
    for height in sides:
        for width in sides:
            inputs = processor(text="<|image_pad|>", images=Image.new("RGB", (width, height)), return_tensors="pt")
            count = int((inputs["input_ids"] == processor.image_token_id).sum())
            assert family.image_tokens((height, width)) == count, (height, width)


def test_a_strip_that_cannot_be_shown_is_an_error_of_its_file(models: dict[str, ModelConfig], tmp_path: Path) -> None:
    Image.new("RGB", (402, 2)).save(tmp_path / "line.png")
    (prompt,) = make_prompts([str(tmp_path / "line.png")], 1)
    with pytest.raises(ImageError, match="line.png: absolute aspect ratio must be smaller than 200"):
        Processor.load(models["qwen2_5_vl"]).prompt_ids(prompt)


def test_squares_and_other_patches_are_refused(models: dict[str, ModelConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.pad_to_square: Qwen2_5_VL.*set it to false"):
        Processor.load(models["qwen2_5_vl"].model_copy(update={"pad_to_square": True}))
    config = tiny_model(tmp_path, kind="qwen2_5_vl")
    content = json.loads((tmp_path / "processor_config.json").read_text())
    content["image_processor"]["merge_size"] = 1
    (tmp_path / "processor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"sizes of \(8, 1, 2\), the tower \(8, 2, 2\)"):
        Processor.load(config)


def test_a_batch_without_images_moves_the_merger_alone(models: dict[str, ModelConfig], images: list[str]) -> None:
    """Every rank needs a gradient of everything that learns, tower or not."""
    prompts = [replace(make_prompts(images, 1)[0], image=None)]
    for trainable in (TrainableConfig(), TrainableConfig(vision_tower=True)):
        model = PolicyModel(load(models["qwen2_5_vl"], trainable)).train()
        model(model.backbone.processor.join(prompts, [[9, 10]]))[0].sum().backward()
        learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert all(parameter.grad is not None for parameter in learning.values())
        assert any("visual.merger" in name for name in learning)
        assert any("visual.blocks" in name for name in learning) == trainable.vision_tower


def test_features_on_disk_are_before_the_merger(
    models: dict[str, ModelConfig], images: list[str], tmp_path: Path
) -> None:
    """So a merger that has learned meets the same ones; [tokens, patches of one, width]."""
    config = models["qwen2_5_vl"].model_copy(update={"feature_store": str(tmp_path)})
    first, second = load(config, None).tower, load(config, TrainableConfig()).tower
    assert first is not None
    assert second is not None
    shapes = [tuple(first.features([path]).shape) for path in images]
    assert shapes == [(9, 4, 32), (9, 4, 32), (6, 4, 32), (6, 4, 32), (8, 4, 32)]
    assert torch.equal(second.features(images), first.features(images))
    assert (first.forwards, second.forwards) == (len(images), 0)
