"""Popularity groups, exposure, concentration and novelty, by hand on catalogues that fit into one's head."""

from __future__ import annotations

import numpy as np
import pytest

from fuserec.contract import NO_ID
from fuserec.errors import DataError
from fuserec.train.data import DataSet
from fuserec.train.evaluation import popularity_baseline
from fuserec.train.exposure import Popularity, exposure_by_group, gini, novelty_of_lists, times_shown
from fuserec.train.questions import Questions, questions_of
from fuserec.train.ragged import Ragged
from fuserec.train.split import leave_one_out


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


# Items 10, 20, ...: 5 of 10 interactions are with 40, the next four are one each with 10, 20, 30 and 50, then 60.
POPULARITY = Popularity(ints(10, 20, 30, 40, 50, 60), ints(1, 1, 1, 5, 1, 1))


def test_groups_are_cut_at_half_and_nine_tenths_of_interactions() -> None:
    assert POPULARITY.group.tolist() == [1, 1, 1, 0, 1, 2]


def test_item_that_crosses_a_cut_belongs_to_the_group_above_it() -> None:
    assert Popularity(ints(1, 2), ints(3, 7)).group.tolist() == [1, 0]
    assert Popularity(ints(1, 2), ints(0, 7)).group.tolist() == [2, 0], "what nobody consumed is tail"


def test_counts_are_of_the_training_part(cyclic: DataSet) -> None:
    split = leave_one_out(cyclic)
    popularity = Popularity.of(split)
    assert popularity.counts.sum() == len(split.train.values) < cyclic.interactions.height
    assert popularity.counts[5] == (split.train.values == 6).sum()


def test_lines_of_items_and_of_nothing() -> None:
    assert POPULARITY.lines(ints(60, NO_ID, 10)[None]).tolist() == [[5, -1, 0]]


def test_ranks_by_popularity() -> None:
    """40 first, then the others by their ids; what a user had is left out, but for the target, and 99 is unknown."""
    histories = Ragged.from_rows([ints(10), ints(40, 10, 10), ints(), ints(99, 60, 50), ints(40)])
    questions = Questions(ints(1, 2, 3, 4, 5), histories, ints(40, 20, 60, 50, 40))
    assert POPULARITY.ranks(questions).tolist() == [1, 1, 6, 5, 1]


def test_the_baseline_of_a_split_is_that_of_its_questions(cyclic: DataSet) -> None:
    split = leave_one_out(cyclic)
    ranks = Popularity.of(split).ranks(questions_of(split, "test"))
    found = popularity_baseline(split)
    assert found["ndcg@10"] == pytest.approx(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())
    assert found["mrr@10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())


@pytest.mark.parametrize("foreign", [15, 5, 70])
def test_items_that_the_data_lacks_are_refused(foreign: int) -> None:
    with pytest.raises(DataError, match=f"1 recommended items are not in the data, such as {foreign}"):
        POPULARITY.lines(ints(10, foreign)[None])


def test_shares_of_each_group() -> None:
    shown = times_shown(ints(3, 3, -1, 5)[None].repeat(2, axis=0), 6)
    assert shown.tolist() == [0, 0, 0, 4, 0, 2]
    head, torso, tail = exposure_by_group(shown, POPULARITY)
    assert (head.n_items, torso.n_items, tail.n_items) == (1, 4, 1)
    assert (head.share_of_interactions, torso.share_of_interactions, tail.share_of_interactions) == (0.5, 0.4, 0.1)
    assert (head.share_of_exposure, torso.share_of_exposure, tail.share_of_exposure) == (4 / 6, 0.0, 2 / 6)
    assert head.share_of_catalogue == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param([3, 3, 3], 0.0, id="equal"),
        pytest.param([0, 0, 0, 8], 0.75, id="one item has all"),
        pytest.param([1, 3], 0.25, id="quarter"),
        pytest.param([0, 0], 0.0, id="nothing shown"),
    ],
)
def test_gini(counts: list[int], expected: float) -> None:
    assert gini(ints(*counts)) == pytest.approx(expected)
    assert gini(ints(*counts[::-1])) == pytest.approx(expected), "the order of items plays no part"


def test_novelty_is_the_mean_self_information_of_what_is_shown() -> None:
    # (counts + 1) / 16: 2/16 is 3 bits, 6/16 is 1.415 bits.
    novelty = novelty_of_lists(ints(0, 3)[None], POPULARITY)
    assert novelty[0] == pytest.approx((3 + np.log2(16 / 6)) / 2)
    assert novelty_of_lists(ints(0, -1)[None], POPULARITY)[0] == pytest.approx(3), "places left empty do not count"
    assert novelty_of_lists(ints(-1, -1)[None], POPULARITY)[0] == 0
