"""What an exporter needs of an architecture that finds items for users."""

from __future__ import annotations

import abc

from torch import Tensor, nn


class Retriever(nn.Module, abc.ABC):
    """A model whose user vectors are compared with fixed item vectors by dot product.

    Attributes:
        user_tower: Called with user rows (B,) int64 and history rows (B, L) int64, left-padded with 0, newest last;
            returns (B, D) float32. Row 0 is the unknown user and the padding of a history.
    """

    user_tower: nn.Module

    @abc.abstractmethod
    def item_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue, (n_items, D) float32, in the order of `items.parquet`."""
