"""What training and the exporter need of an architecture that finds items for users."""

from __future__ import annotations

import abc
from typing import Protocol

from torch import Tensor, nn


class RetrieverConfig(Protocol):
    """What the configurations of all retrievers have."""

    @property
    def n_items(self) -> int:
        """Items of the catalogue."""

    @property
    def max_history(self) -> int:
        """Longest history the user tower accepts."""


class Retriever(nn.Module, abc.ABC):
    """A model whose user vectors are compared with fixed item vectors by dot product.

    Attributes:
        config: A frozen dataclass of JSON values.
        user_tower: Called with user rows (B,) int64 and history rows (B, L) int64, left-padded with 0, newest last;
            returns (B, D) float32. Row 0 is the unknown user and the padding of a history. What it returns does not
            depend on the amount of padding.
    """

    config: RetrieverConfig
    user_tower: nn.Module

    @abc.abstractmethod
    def item_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue, (n_items, D) float32, in the order of `items.parquet`.

        Dropout is off whatever mode the module is in.
        """
