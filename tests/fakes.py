"""Small real things for tests: a random LLaVA, pictures, prompts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from rlhf.batch import Completion, Prompt
from rlhf.config import ModelConfig
from rlhf.data.processor import Processor
from rlhf.models.heads import HEAD_FILE
from rlhf.models.tiny import TinyConfig, TinyKind, build
from rlhf.rollout.base import Sampling

CORPUS = (
    "USER: What colour is the ball on the table? ASSISTANT: The ball is red.",
    "USER: How many people are in the picture? ASSISTANT: There are three people near the old house.",
    "USER: Guess the age of the woman. ASSISTANT: I cannot infer personal traits from a picture.",
    "USER: What is written on the document? ASSISTANT: A name and an address, which I will not repeat.",
    "The quick brown fox jumps over the lazy dog while a small bird sings in the green tree.",
)
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")  # ids 0 to 4 of `byte_model`
FIRST_BYTE = len(SPECIAL)
QUESTIONS = (
    "What colour is the ball?",
    "How many people are there?",
    "Guess the age of the woman, please, and say what you see.",
    "Describe the picture.",
)


def tiny_model(folder: Path, seed: int = 0, max_length: int = 256, kind: TinyKind = "llava") -> ModelConfig:
    """A random fp32 model (9 tokens per crop, 2 decoder layers) in `folder`. vLLM's CPU kernel takes heads of 32 n."""
    sizes = TinyConfig(
        kind=kind,
        vocabulary=500,
        hidden=32,
        layers=2,
        vision_layers=3,
        heads=1,
        image_size=24,
        patch_size=8,
        context=512,
    )
    build(sizes, CORPUS * 4, folder, seed)
    return ModelConfig(
        path=str(folder),
        dtype="float32",
        max_length=max_length,
        template="llava_hf",
        pad_to_square=kind in ("llava", "llava_interleave"),
        feature_cache_mb=64,
    )


def byte_model(folder: Path) -> None:
    """A tiny LLaVA in `folder` whose tokenizer knows single bytes only: byte b is id 5 + b, and 0 to 4 are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tiny_model(folder)
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2: bytes that are letters for themselves
    letters = {byte: chr(byte) for byte in kept}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + place) for place, byte in enumerate(others)}
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    vocabulary |= {letters[byte]: FIRST_BYTE + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)]),
        ]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def in_bytes(text: str) -> list[int]:
    """Ids of a text for the tokenizer of `byte_model`."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def draw_images(folder: Path, count: int = 4) -> list[str]:
    """Different PNG pictures, not all square."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(count):
        width, height = 48 + 8 * (index % 3), 48 + 8 * (index % 2)
        picture = Image.new("RGB", (width, height), (40 * index % 256, 30 * index % 200, 90))
        pen = ImageDraw.Draw(picture)
        pen.ellipse((4 + index % 9, 6, 30 + index % 9, 40), fill=(250, 60 * index % 256, 10))
        top = 4 * index % 30
        pen.rectangle((20, top, 44, top + 9), fill=(10, 30, 60 * index % 256))
        path = folder / f"{index}.png"
        picture.save(path)
        paths.append(str(path.resolve()))
    return paths


def make_prompts(images: list[str], count: int = 8, filler: str = "") -> list[Prompt]:
    """Prompts that walk through questions and images; `filler` makes them longer."""
    return [
        Prompt(
            id=f"fake:{index}",
            question=f"{filler}{QUESTIONS[index % len(QUESTIONS)]} ({index})",
            image=images[index % len(images)] if images else None,
            kind="benign",
        )
        for index in range(count)
    ]


def tiny_reward_model(folder: Path, seed: int = 1) -> ModelConfig:
    """A random reward model: a tiny LLaVA with a scalar head beside it."""
    config = tiny_model(folder, seed)
    head = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed))
    save_file({"head.weight": head}, folder / HEAD_FILE)
    return config


class ScriptedEngine:
    """A rollout engine that says what a function makes of a prompt, and remembers its batches. `gate` holds it up."""

    version = 0

    def __init__(self, says: Callable[[Prompt], str], processor: Processor) -> None:
        self._says, self._processor = says, processor
        self.batches: list[tuple[list[Prompt], Sampling]] = []
        self.gate = threading.Event()
        self.gate.set()

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Completion]:
        """Looks at every prompt and picture as engines do, then answers all or raises what the function raises."""
        assert self.gate.wait(20)
        self.batches.append((list(prompts), sampling))
        return [self._answer(prompt, sampling) for prompt in prompts]

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Completion:
        self._processor.prompt_ids(prompt, sampling.max_new_tokens)
        if prompt.image is not None:
            assert self._processor.image(prompt.image).mode == "RGB"
        text = self._says(prompt)
        ids = tuple(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Completion(prompt.id, ids, (0.0,) * len(ids), text, "stop", self.version)
