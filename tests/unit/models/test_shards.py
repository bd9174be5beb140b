"""Weights in shards of either format, and the digest that stands for a whole directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config import ModelConfig
from rlhf.models.shards import directory_digest


def as_bin(folder: Path) -> None:
    """The same weights in the older format."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "config.json", "chat_template.jinja", "tokenizer.json"])
def test_every_file_that_decides_what_a_model_computes_is_in_its_digest(
    tiny: ModelConfig, tmp_path: Path, name: str
) -> None:
    one, other = (Path(shutil.copytree(tiny.path, tmp_path / copy)) for copy in ("one", "other"))
    for folder in (one, other):
        as_bin(folder)
    assert directory_digest(one) == directory_digest(other)
    content = bytearray((other / name).read_bytes())
    content[len(content) // 2] ^= 1
    (other / name).write_bytes(content)
    assert directory_digest(one) != directory_digest(other)


def test_notes_beside_a_model_and_what_lies_in_folders_are_no_part_of_it(tiny: ModelConfig, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.path, tmp_path / "model"))
    before = directory_digest(folder)
    (folder / "README.md").write_text("trained with SafeVL")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    assert directory_digest(folder) == before
