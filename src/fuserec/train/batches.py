"""What a loader of training batches has to be: repeatable from a state, and to be shared among processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


class Batches(Protocol):
    """Iterated once an epoch; yields tuples of tensors whose first dimension is the example.

    Attributes:
        generator: the one source of chance. A loader keeps no other state between epochs, so that putting the
            generator back repeats an epoch.
    """

    generator: np.random.Generator

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of one epoch."""


class Shard:
    """The part of every batch that one of several processes trains on.

    All processes draw the same batches from equal generators, and process `rank` takes the examples rank,
    rank + world_size, ...: an epoch has the same number of steps on all of them, and the batches together are those of
    one process. Where a batch has fewer examples than there are processes, some examples are taken twice.
    """

    def __init__(self, batches: Batches, rank: int, world_size: int) -> None:
        self.batches = batches
        self.rank = rank
        self.world_size = world_size

    @property
    def generator(self) -> np.random.Generator:
        """As of `Batches`."""
        return self.batches.generator

    @generator.setter
    def generator(self, generator: np.random.Generator) -> None:
        self.batches.generator = generator

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield apply_to_collection(batch, Tensor, self._part)

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor[self.rank % tensor.shape[0] :: self.world_size]
