from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from rlhf.config import ModelConfig
from rlhf.errors import ImageError
from rlhf.models.features import FrozenTower
from rlhf.models.llava import load


def tower_of(model: ModelConfig, store: Path | None) -> FrozenTower:
    tower = load(model.model_copy(update={"feature_store": str(store) if store else None}), None).tower
    assert tower is not None
    return tower


def test_a_second_process_finds_what_the_first_one_saw(tiny: ModelConfig, pictures: list[str], tmp_path: Path) -> None:
    plain = tower_of(tiny, None).features(pictures)
    first, second = tower_of(tiny, tmp_path), tower_of(tiny, tmp_path)
    assert torch.equal(first.features(pictures), plain)
    assert torch.equal(second.features(pictures), plain)
    assert (first.forwards, second.forwards) == (len(pictures), 0)


def test_another_tower_shares_nothing(tiny: ModelConfig, pictures: list[str], tmp_path: Path) -> None:
    first = tower_of(tiny, tmp_path)
    first.features(pictures[:1])
    weights = next(tensor for tensor in first.state_dict().values() if tensor.is_floating_point())
    weights.add_(0.5)
    other = FrozenTower(first._tower, first._processor)
    other.features(pictures[:1])
    assert other.forwards == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_other_preprocessing_shares_nothing(tiny: ModelConfig, pictures: list[str], tmp_path: Path) -> None:
    tower_of(tiny, tmp_path).features(pictures[:1])
    other = tower_of(tiny.model_copy(update={"pad_to_square": not tiny.pad_to_square}), tmp_path)
    other.features(pictures[:1])
    assert other.forwards == 1


def test_an_image_that_changed_is_encoded_again(tiny: ModelConfig, tmp_path: Path) -> None:
    path = str(tmp_path / "one.png")
    Image.new("RGB", (40, 40), (200, 0, 0)).save(path)
    red = tower_of(tiny, tmp_path / "store").features([path])
    Image.new("RGB", (40, 40), (0, 0, 200)).save(path)
    blue = tower_of(tiny, tmp_path / "store").features([path])
    assert not torch.equal(red, blue)


def test_a_damaged_file_counts_as_absent(tiny: ModelConfig, pictures: list[str], tmp_path: Path) -> None:
    expected = tower_of(tiny, tmp_path).features(pictures[:1])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    again = tower_of(tiny, tmp_path)
    assert torch.equal(again.features(pictures[:1]), expected)
    assert again.forwards == 1
    assert not list(tmp_path.rglob("*.part"))


def test_a_missing_image_is_named(tiny: ModelConfig, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere.png"):
        tower_of(tiny, tmp_path).features([str(tmp_path / "nowhere.png")])


def test_layers_that_nothing_looks_at_do_not_run_but_are_exported(tiny: ModelConfig, pictures: list[str]) -> None:
    tower = tower_of(tiny, None)
    ran: list[int] = []
    layers = tower._tower.encoder.layers  # type: ignore[union-attr]
    for index, layer in enumerate(layers):  # type: ignore[arg-type]
        layer.register_forward_hook(lambda *_, place=index: ran.append(place))
    tower.features(pictures[:1])
    assert ran == [0, 1]  # of three: the features are those of the last but one
    named = [name for name in tower.state_dict() if ".layers." in name]
    assert {name.split(".layers.")[1].split(".")[0] for name in named} == {"0", "1", "2"}
