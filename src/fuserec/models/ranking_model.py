"""What the exporter needs of a model that scores candidates."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from fuserec.models.retriever import RetrieverConfig


@runtime_checkable
class RankingModel(Protocol):
    """A model whose `rank_tower` scores a user's candidates.

    Attributes:
        config: sizes.
        rank_tower: called with user rows (B,), history rows (B, L), left-padded with 0, and candidate rows (B, C), all
            int64; returns (B, C, 2) float32: the logit of a click, and the rating in the units of the data. Neither the
            amount of padding nor the other candidates make a difference.
    """

    config: RetrieverConfig
    rank_tower: nn.Module

    @property
    def heads(self) -> tuple[str, ...]:
        """Which of `click` and `rating` were trained."""
