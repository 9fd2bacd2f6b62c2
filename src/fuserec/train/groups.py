"""Groups of users whose metrics are compared: by how much they consumed, and by what a users table says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from fuserec.train.questions import Questions
from fuserec.train.ragged import IntArray

ACTIVITY: Final = "activity"
UNKNOWN: Final = "unknown"
# A column of more values than this is no category: a postcode, a name.
MAX_GROUPS: Final = 50
_CATEGORICAL: Final = (pl.String, pl.Categorical, pl.Enum, pl.Boolean)


@dataclass(frozen=True)
class Grouping:
    """One way to tell users apart.

    Attributes:
        by: "activity" or the name of a column.
        labels: names of the groups.
        member: (E,) int64 index into `labels`.
    """

    by: str
    labels: Sequence[str]
    member: IntArray


def by_activity(questions: Questions) -> Grouping:
    """Group users into terciles by the length of their history; equal lengths are never parted."""
    lengths = questions.histories.lengths
    cuts = np.unique(np.quantile(lengths, (1 / 3, 2 / 3), method="inverted_cdf"))
    tercile = np.searchsorted(cuts, lengths)
    # Where many are equal, a tercile may be empty.
    present, member = np.unique(tercile, return_inverse=True)
    spans = [lengths[tercile == place] for place in present]
    return Grouping(ACTIVITY, [f"{span.min()} to {span.max()} items" for span in spans], member)


def by_columns(questions: Questions, users: pl.DataFrame | None) -> tuple[list[Grouping], list[str]]:
    """Group users by each categorical column of a users table.

    Args:
        questions: whose users are meant; those whom the table lacks, or of whom it says nothing, are "unknown".
        users: user_id int64, distinct, and any other columns; None where nothing is known of users.

    Returns:
        The groupings, and the categorical columns that were left out because they have more than `MAX_GROUPS` values.
    """
    if users is None:
        return [], []
    asked = pl.DataFrame({"user_id": questions.user_ids}).join(users, on="user_id", how="left", maintain_order="left")
    groupings, left_out = [], []
    for column in asked.columns:
        if column == "user_id" or asked[column].dtype not in _CATEGORICAL:
            continue
        values = asked[column].cast(pl.String).fill_null(UNKNOWN).to_numpy()
        labels, member = np.unique(values.astype(str), return_inverse=True)
        if labels.size > MAX_GROUPS:
            left_out.append(column)
        else:
            groupings.append(Grouping(column, labels.tolist(), member))
    return groupings, left_out
