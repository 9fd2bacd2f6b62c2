"""What training and the exporter need of an architecture that finds items for users."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor, nn

from fuserec.models.entries import Computed, Entries

PADDING: Final = 0
ITEM_CHUNK: Final = 8192


def unit_vectors(x: Tensor) -> Tensor:
    """Divide vectors (..., D) by their lengths: `torch.nn.functional.normalize` without the tensor it makes of these.

    The numbers are the same; of a graph it is three operators less, and a request pays for each.
    """
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / length.clamp(min=1e-12)


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
        entries: By name in the state dict, the tensors that depend on a vocabulary.
    """

    entries: ClassVar[Mapping[str, Entries | Computed]] = {}
    config: RetrieverConfig
    user_tower: nn.Module

    @abc.abstractmethod
    def encode_items(self, rows: Tensor) -> Tensor:
        """Encode items given by row: (N,) int64 in 1..n_items -> (N, D) float32."""

    def positions(self, user: Tensor, history: Tensor) -> Tensor:
        """Encode every prefix of each history: (B,), (B, L) int64 -> (B, L, D) float32.

        Position p is what `user_tower` says of the history up to and with p. This way is slow and right for
        every tower; towers that see each position's past alone do it at once.
        """
        length = history.shape[1]
        prefixes = [nn.functional.pad(history[:, : end + 1], (length - end - 1, 0)) for end in range(length)]
        return torch.stack([self.user_tower(user, prefix) for prefix in prefixes], dim=1)

    def catalogue(self) -> Tensor:
        """Encode all items at once, (n_items, D) float32, in the order of `items.parquet`."""
        return self.encode_items(torch.arange(1, self.config.n_items + 1, device=self.device))

    def refresh(self) -> None:  # noqa: B027  (most models store nothing of the kind)
        """Compute anew what is stored beside the weights and follows from them."""

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Return what `catalogue` does, in chunks, without gradients and with dropout off."""
        was_training = self.training
        self.eval()
        rows = torch.arange(1, self.config.n_items + 1, device=self.device)
        vectors = torch.cat([self.encode_items(chunk) for chunk in torch.split(rows, ITEM_CHUNK)])
        self.train(was_training)
        return vectors

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
