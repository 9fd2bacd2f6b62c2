"""Which tensors of an architecture have an entry for each item, user, word, genre or year bucket.

With that said, weights can be moved into a model of the same architecture over another catalogue and other users
(`fuserec.train.transplant`). What is not said depends on no vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Vocabulary = Literal["items", "users", "genres", "words", "years"]


@dataclass(frozen=True)
class Entries:
    """How a tensor is laid out along the axis that grows with a vocabulary.

    Attributes:
        of: the vocabulary.
        axis: the axis of the tensor.
        leading: entries before that of the first member, such as padding or "unknown". What follows the last member,
            such as a mask, needs no mention.
    """

    of: Vocabulary
    axis: int = 0
    leading: int = 1


class Computed:
    """Marks a tensor that is computed from the data, whatever was learned before."""


COMPUTED: Final = Computed()
