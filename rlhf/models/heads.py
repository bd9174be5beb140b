"""What a model is asked for: log-probabilities of response tokens, or one scalar per position."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf.batch import TokenBatch
from rlhf.config import ModelConfig, resolve
from rlhf.errors import ConfigError
from rlhf.masking import last_index
from rlhf.models.draws import fresh_draws
from rlhf.models.llava import VisionLanguage

HEAD_FILE = "scalar_head.safetensors"


class PolicyModel(nn.Module):
    """A VLM that gives the log-probability of every response token."""

    def __init__(self, backbone: VisionLanguage) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, tokens: TokenBatch, temperature: float = 1.0, entropy: bool = True) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies, [B, T] float32 each, zero outside `response_mask`.

        Only the hidden states that predict a response token meet the LM head, so prompt positions (image tokens
        above all) never become logits. Entropies are zero without `entropy`, which saves their time.
        """
        hidden = self.backbone.hidden(tokens)  # [B, T, H]
        mask = tokens.response_mask.to(hidden.device)
        targets = tokens.input_ids.to(hidden.device)[mask]  # [N]
        chosen, entropies = self.backbone.vlm.lm_head(_before(hidden, mask), targets, temperature, entropy)  # [N]
        empty = torch.zeros(mask.shape, dtype=torch.float32, device=hidden.device)
        return empty.masked_scatter(mask, chosen), empty.masked_scatter(mask, entropies)


class ScalarModel(nn.Module):
    """A VLM with a bias-free linear head (seed page 2): reward model by its last position, critic by all of them.

    A new head has PyTorch's random start, drawn from the process's seed alone, so that ZeRO stages and ranks begin
    alike; `head_from` is the directory that an earlier one was exported to.
    """

    def __init__(self, backbone: VisionLanguage, head_from: Path | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        # the LM head does not run here, so it must not be trained or waited for; tied to the embeddings it does run
        if not backbone.vlm.config.tie_word_embeddings:
            backbone.vlm.lm_head.requires_grad_(False)
        parameter = next(backbone.vlm.model.language_model.parameters())
        with fresh_draws():
            self.head = nn.Linear(backbone.hidden_size, 1, bias=False, dtype=parameter.dtype)
        if head_from is not None:
            self._load_head(head_from)

    def forward(self, tokens: TokenBatch) -> Tensor:
        """One scalar per position, [B, T] float32."""
        return self.head(self.backbone.hidden(tokens)).squeeze(-1).float()

    def _load_head(self, folder: Path) -> None:
        from safetensors.torch import load_file

        weight = load_file(folder / HEAD_FILE)["head.weight"]
        with torch.no_grad():
            self.head.weight.copy_(weight)


def check_head(model: ModelConfig, key: str = "reward.model") -> None:
    """Raise ConfigError unless `model` (`key` in the configuration) is a directory with a scalar head beside it."""
    path = Path(resolve(model.path))
    if not (path / HEAD_FILE).is_file():
        raise ConfigError(
            [
                f"{key}.path: {path} has no {HEAD_FILE}, so it is no reward model; run jobs/train_reward_model.py "
                "first, and name the folder `model` of its run"
            ]
        )


def scores_of(scalars: Tensor, tokens: TokenBatch) -> Tensor:
    """[B] the scalar at each row's last response token: the score of the whole answer."""
    mask = tokens.response_mask.to(scalars.device)
    return scalars.gather(1, last_index(mask)[:, None]).squeeze(1)


def values_of(scalars: Tensor, tokens: TokenBatch) -> Tensor:
    """[B, T] V(state before token t): the scalars shifted by one, zero outside `response_mask`."""
    shifted = torch.nn.functional.pad(scalars[:, :-1], (1, 0))
    return shifted * tokens.response_mask.to(scalars.device)


def _before(hidden: Tensor, mask: Tensor) -> Tensor:
    """[N, H] hidden states at the positions just before each masked position."""
    return hidden[:, :-1][mask[:, 1:]]
