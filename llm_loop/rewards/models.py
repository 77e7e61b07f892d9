"""Owns the reward models: MiniLM with a small adapter and head that this repository ships.

``sentiment-valence`` labels duels; it was trained on VADER's human ratings.  ``tweet-judge`` only evaluates; it was
trained on other people's labels.  Both measure sentiment, not quality or helpfulness, and share MiniLM's weights, so
the judge is a check on the labeller, not a proof.  Figures: ``docs/reward_model.md``.  Knows nothing of policies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from bandits.core.errors import InputError, unknown
from llm_loop.data import assets

LABELLER = "sentiment-valence"
JUDGE = "tweet-judge"
WEIGHTS = Path(__file__).parent / "weights"
RECORD = WEIGHTS / "models.json"
"""What ships: each model's sha256 and its measured figures, written by the training script."""

LONGEST = 64
"""Tokens of a text that are read; the rest is cut off."""
SPECIAL = 2
"""Of these, the tokenizer's own: one at either end."""
ROWS = 64
"""Completions in one pass of ``score``."""


class LowRank(nn.Module):
    """A frozen linear map plus a trained one of low rank: ``x Wᵀ + b + (x Aᵀ) Bᵀ`` (Hu et al. 2021, α/r in B)."""

    def __init__(self, linear: nn.Linear, A: Float[Tensor, "rank inputs"]) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(A)
        self.B = nn.Parameter(torch.zeros(linear.out_features, len(A)))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        mapped: Tensor = self.linear(x) + x @ self.A.T @ self.B.T
        return mapped


@dataclass(frozen=True)
class Encoder:
    """MiniLM: texts to the mean of their tokens' last hidden states, 384 numbers a text."""

    model: BertModel
    tokenizer: Tokenizer

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return token ids, at most ``LONGEST`` a text; an empty text has the two special tokens."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens the texts have, those that are cut off included."""
        whole = [(encoding, *encoding.overflowing) for encoding in self.tokenizer.encode_batch(list(texts))]
        return [sum(len(part.ids) - SPECIAL for part in parts) + SPECIAL for parts in whole]

    def __call__(self, ids: Sequence[Sequence[int]]) -> Float[Tensor, "texts features"]:
        """Return one row per text; padding is masked, in the attention and in the mean."""
        device = self.model.embeddings.word_embeddings.weight.device
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=device)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        mask: Int[Tensor, "texts tokens"] = (torch.arange(longest, device=device) < lengths[:, None]).long()
        hidden: Tensor = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
        return (hidden * mask[..., None]).sum(1) / lengths[:, None]

    @torch.no_grad()
    def embeddings(self, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Return one row of length 1 per text, on the CPU, in float64."""
        out = torch.empty(len(texts), self.model.config.hidden_size, dtype=torch.float64)
        for rows, ids in batches(self.tokens(texts), ROWS):
            out[rows] = self(ids).double().cpu()
        return nn.functional.normalize(out, dim=-1)


def load_encoder() -> Encoder:
    """Return MiniLM as it was published, in evaluation mode, without its unused pooler; no random number is drawn."""
    folder = assets.find("minilm")
    with torch.device("meta"):
        model = BertModel(BertConfig.from_json_file(folder / "config.json"), add_pooling_layer=False)
    tensors = load_file(folder / "model.safetensors")
    unused = ("pooler.", "embeddings.position_ids")
    model.load_state_dict({k: v for k, v in tensors.items() if not k.startswith(unused)}, strict=True, assign=True)
    # These two buffers are not among the loaded weights.
    model.embeddings.position_ids = torch.arange(model.config.max_position_embeddings)[None]
    model.embeddings.token_type_ids = torch.zeros_like(model.embeddings.position_ids)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    return Encoder(model.eval().requires_grad_(False), tokenizer)


@dataclass(frozen=True)
class RewardModel:
    """An encoder with a head; scores are in the unit of the labels it learned from."""

    name: str
    encoder: Encoder
    head: nn.Sequential

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> Float[Tensor, " texts"]:
        """Return one score per text, on the CPU, in float32.

        ``sentiment-valence``: expected human rating, −4 to 4 (not clipped).  ``tweet-judge``: expected label, −1 to 1.
        A text scores the same alone and in company, up to float32 rounding (tested to 1e-5).
        """
        scores = torch.empty(len(texts))
        for rows, ids in batches(self.encoder.tokens(texts), ROWS):
            scores[rows] = self.head(self.encoder(ids)).squeeze(-1).float().cpu()
        return scores


def batches(ids: Sequence[list[int]], rows: int) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield batches of equally long texts, as nearly as can be: their places, and their token ids."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        yield places, [ids[place] for place in places]


def new_head(features: int, hidden: int) -> nn.Sequential:
    """Return a head without values: one hidden layer, one output."""
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, 1))


def build(name: str, tensors: dict[str, Tensor], device: str = "cpu") -> RewardModel:
    """Return a reward model from its trained tensors: ``head.*``, and ``PLACE.A``, ``PLACE.B`` of an adapter.

    The adapter's product is added to the frozen weights, so scoring costs what MiniLM alone costs.
    """
    encoder = load_encoder()
    tensors = {key: tensor.float() for key, tensor in tensors.items()}
    for key in tensors:
        if key.endswith(".A"):
            place = key.removesuffix(".A")
            encoder.model.get_submodule(place).weight += tensors[f"{place}.B"] @ tensors[key]
    hidden, features = tensors["head.0.weight"].shape
    head = new_head(features, hidden)
    head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}, assign=True)
    encoder.model.to(device)
    return RewardModel(name, encoder, head.eval().requires_grad_(False).to(device))


def load(name: str, device: str = "cpu") -> RewardModel:
    """Return a shipped reward model: ``sentiment-valence`` (labels) or ``tweet-judge`` (evaluation only).

    Raises ``InputError`` for another name, for weights that are missing or altered, and if MiniLM was not fetched.
    """
    if name not in (LABELLER, JUDGE):
        raise unknown("reward model", name, (LABELLER, JUDGE))
    file = WEIGHTS / f"{name}.safetensors"
    try:
        content = file.read_bytes()
        sha256 = json.loads(RECORD.read_text(encoding="utf-8"))[name]["sha256"]
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; restore it from the repository") from None
    except (ValueError, KeyError):
        raise InputError(f"{RECORD} is damaged; restore it from the repository") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{file} is cut short or altered; restore it from the repository")
    return build(name, load_tensors(content), device)
