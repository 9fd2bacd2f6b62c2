"""A cross-encoder: one transformer reads what a user had last and a candidate together, as text.

    [CLS] oldest title [SEP] ... newest title [SEP]   candidate's title [SEP]
    '------------- segment 0: history -----------'   '---- segment 1 -----'

Every candidate is a sequence of its own (Nogueira and Cho 2019): B users with C candidates each cost B * C passes
through the transformer, hundreds of times the work of a ranker over vectors. Few candidates, short titles, a short
history and few layers are what makes it affordable. Items and users have no vectors, so new ones are ranked too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from fuserec.models.checks import check_at_least, check_share
from fuserec.models.retriever import PADDING
from fuserec.models.text_encoder import transformer_config

HEADS: Final = ("click", "rating")


@dataclass(frozen=True)
class TextRankerConfig:
    """Sizes of a cross-encoder; every field is a JSON value.

    Attributes:
        n_items: items of the catalogue; the table of tokens has one row more, for padding.
        encoder: the transformer's configuration, JSON.
        first_token: token that stands before the texts.
        max_history: items of the history that are read, the last ones.
        max_tokens: tokens of a title that are read, the one that ends it included.
        dropout: probability of dropping an activation before the heads while training.
        tasks: what was trained, separated by commas: click, rating.
    """

    n_items: int
    encoder: str
    first_token: int
    max_history: int = 5
    max_tokens: int = 12
    dropout: float = 0.1
    tasks: str = "click"

    def __post_init__(self) -> None:
        check_at_least(self, 1, "n_items", "max_history")
        check_at_least(self, 2, "max_tokens")
        check_at_least(self, 0, "first_token")
        check_share(self, "dropout")
        parse_heads(self.tasks)
        limit = getattr(transformer_config(self.encoder), "max_position_embeddings", self.length)
        if self.length > limit:
            raise ValueError(
                f"(max_history + 1) * max_tokens + 1 is {self.length}; expected at most {limit}, what the encoder reads"
            )

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return 1 + (self.max_history + 1) * self.max_tokens


def parse_heads(tasks: str) -> tuple[str, ...]:
    """Split "click,rating" into the names of heads, in the order of `HEADS`.

    Raises:
        ValueError: if a name is unknown, repeated, or there is none.
    """
    names = [name.strip() for name in tasks.split(",")]
    if not set(names) <= set(HEADS) or len(set(names)) < len(names):
        raise ValueError(f"tasks is {tasks!r}; expected {' and '.join(HEADS)}, one or both, each once")
    return tuple(head for head in HEADS if head in names)


class TextRankTower(nn.Module):
    """Builds the sequences, reads them, and scores.

    Attributes:
        tokens: (n_items + 1, max_tokens) int64, the titles without what stands before them; row 0 is padding.
        rating_mean: () float32, of the training ratings; the rating head starts from it.
        rating_scale: () float32, their standard deviation.
    """

    tokens: Tensor
    rating_mean: Tensor
    rating_scale: Tensor

    def __init__(self, config: TextRankerConfig) -> None:
        from transformers import AutoModel

        super().__init__()
        encoder = transformer_config(config.encoder)
        from_config: Any = AutoModel.from_config  # the library has no types here
        self.transformer: Any = from_config(encoder, attn_implementation="eager")
        self.transformer.pooler = None
        self.pad_id = int(encoder.pad_token_id or 0)
        self.has_segments = getattr(encoder, "type_vocab_size", 0) > 1
        self.first_token = config.first_token
        self.max_history = config.max_history
        self.register_buffer("tokens", torch.full((config.n_items + 1, config.max_tokens), self.pad_id))
        width = 2 * encoder.hidden_size
        self.heads = nn.Sequential(nn.LayerNorm(width), nn.Dropout(config.dropout), nn.Linear(width, len(HEADS)))
        self.register_buffer("rating_mean", torch.tensor(0.0))
        self.register_buffer("rating_scale", torch.tensor(1.0))

    def forward(self, user: Tensor, history: Tensor, candidates: Tensor) -> Tensor:
        """Score candidates.

        Args:
            user: (B,) int64, for the sake of the interface: who it is makes no difference.
            history: (B, L) int64 item rows, left-padded with 0, most recent last; L >= 1.
            candidates: (B, C) int64 item rows; 0 is padding, whose scores mean nothing.

        Returns:
            (B, C, 2) float32: the click logit, and the rating in the units of the data. A candidate's do not depend
            on the other candidates, nor on the amount of padding.
        """
        before, after = self.sequences(history, candidates)
        return self.score(before, after).reshape(*candidates.shape, len(HEADS))

    def packed(self, history: Tensor, candidates: Tensor) -> Tensor:
        """Return what `forward` does, after taking the padding out; graphs cannot, as their sizes are not data."""
        before, after = (_squeeze(tokens, self.pad_id) for tokens in self.sequences(history, candidates))
        return self.score(before, after).reshape(*candidates.shape, len(HEADS))

    def sequences(self, history: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens of each pair, padded anywhere: (B, L), (B, C) -> (B * C, S), (B * C, T) int64."""
        batch, count = candidates.shape
        # As many columns as are read, whatever came: what a sequence looks like must not depend on the padding.
        past = nn.functional.pad(history, (self.max_history, 0), value=PADDING)[:, -self.max_history :]
        before = self.tokens[past].flatten(1)[:, None].expand(batch, count, -1).flatten(0, 1)
        return before, self.tokens[candidates].flatten(0, 1)

    def score(self, before: Tensor, after: Tensor) -> Tensor:
        """Score N pairs of texts: (N, S) and (N, T) int64 tokens, padded anywhere -> (N, 2) float32."""
        first = torch.full_like(after[:, :1], self.first_token)
        tokens = torch.cat([first, before, after], dim=1)
        present = tokens != self.pad_id
        # Positions count what is there: padding in the middle leaves no gap.
        inputs = {"input_ids": tokens, "attention_mask": present.long()}
        inputs["position_ids"] = (present.long().cumsum(dim=1) - 1).clamp(min=0)
        if self.has_segments:
            inputs["token_type_ids"] = torch.cat([torch.zeros_like(first), before * 0, after * 0 + 1], dim=1)
        states = self.transformer(**inputs).last_hidden_state
        split = 1 + before.shape[1]
        history = _mean(states[:, :split], present[:, :split])
        candidate = _mean(states[:, split:], present[:, split:])
        # The product lets the heads see at once how alike the two are, which pretraining has put there.
        heads = self.heads(torch.cat([candidate, history * candidate], dim=1))
        rating = self.rating_mean + self.rating_scale * heads[:, 1]
        return torch.stack([heads[:, 0], rating], dim=1)


class TextRanker(nn.Module):
    """A cross-encoder as the exporter takes it: a `RankingModel`, and no retriever.

    Attributes:
        config: sizes.
        rank_tower: all of it.
    """

    def __init__(self, config: TextRankerConfig) -> None:
        super().__init__()
        self.config = config
        self.rank_tower = TextRankTower(config)

    @property
    def heads(self) -> tuple[str, ...]:
        """Which of `click` and `rating` were trained; the first of them is what candidates are ordered by."""
        return parse_heads(self.config.tasks)


def _squeeze(tokens: Tensor, pad_id: int) -> Tensor:
    """Move padding to the right, and as much of it away as all rows have: (N, S) int64 -> (N, at most S)."""
    missing = tokens == pad_id
    longest = int((~missing).sum(dim=1).max())
    order = missing.long().argsort(dim=1, stable=True)
    return tokens.gather(1, order)[:, :longest]


def _mean(states: Tensor, present: Tensor) -> Tensor:
    """Average what is present: (N, S, H), (N, S) bool -> (N, H)."""
    weights = present[..., None].to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
