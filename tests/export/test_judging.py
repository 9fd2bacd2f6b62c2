"""NDCG@10, HR@10 and overlap against numbers worked out by hand."""

import math

import numpy as np
import pytest

from fuserec.export.judging import (
    NOBODY,
    K,
    Questions,
    Reference,
    best_candidates,
    judge,
    popular_items,
    popularity_ndcg,
)

RIGHT = np.arange(100, 100 + K)[None, :]


def ranked(*first: int) -> np.ndarray:
    """A list that begins with these items."""
    return np.array([[*first, *range(900, 900 + K - len(first))]])


def test_first_place_is_one_and_a_later_one_less() -> None:
    reference = Reference(ranked(7), ranked(7))
    first, second = judge(ranked(7), reference, np.array([7])), judge(ranked(8, 7), reference, np.array([7]))
    assert (first.ndcg, first.hr, first.loss) == (1.0, 1.0, 0.0)
    assert second.ndcg == pytest.approx(1 / math.log2(3)) and second.hr == 1.0
    assert second.loss == pytest.approx(1 - 1 / math.log2(3))


def test_what_is_not_there_is_a_loss_of_all() -> None:
    quality = judge(ranked(8), Reference(ranked(7), ranked(7)), np.array([7]))
    assert (quality.ndcg, quality.hr, quality.loss) == (0.0, 0.0, 1.0)


def test_errors_are_those_of_means_the_loss_paired() -> None:
    lists = np.concatenate([ranked(7), ranked(7), ranked(8), ranked(8)])
    same = judge(lists, Reference(lists, lists), np.array([7, 7, 7, 7]))
    # Gains 1, 1, 0, 0: the deviation of the sample is sqrt(1/3), of the mean half of that.
    assert same.ndcg_error == pytest.approx(1.96 * math.sqrt(1 / 3) / 2)
    assert same.loss_error == 0.0, "no question changed, so the loss is known to be none"
    before = np.concatenate([ranked(7)] * 4)
    lost = judge(lists, Reference(before, before), np.array([7, 7, 7, 7]))
    assert (lost.loss, lost.loss_error) == (0.5, pytest.approx(1.96 * math.sqrt(1 / 3) / 2))


def test_popular_lists_leave_out_what_was_seen() -> None:
    ids, counts = np.arange(20), np.array([0] * 8 + [5, 9, 5, 7] + [1] * 8)
    nothing, much = np.empty(0, np.int64), np.arange(12)
    lists = popular_items(ids, counts, [nothing, np.array([9, 3]), much])
    assert lists[0].tolist() == [9, 11, 8, 10, 12, 13, 14, 15, 16, 17]
    assert lists[1].tolist() == [11, 8, 10, 12, 13, 14, 15, 16, 17, 18]
    assert lists[2].tolist() == [12, 13, 14, 15, 16, 17, 18, 19, NOBODY, NOBODY]
    asked = Questions("", [], np.array([9, 8, NOBODY]), lambda number, output: output, lists)
    assert popularity_ndcg(asked) == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_overlap_counts_what_stayed_whatever_its_place() -> None:
    shuffled = RIGHT[:, ::-1].copy()
    assert judge(shuffled, Reference(RIGHT, RIGHT), np.array([100])).overlap == 1.0
    shuffled[0, :3] = 1, 2, 3
    assert judge(shuffled, Reference(RIGHT, RIGHT), np.array([100])).overlap == pytest.approx(0.7)


def test_places_that_stayed_empty_are_no_items() -> None:
    short = np.array([[5, 6] + [NOBODY] * 8])
    assert judge(short, Reference(short, short), np.array([5])).overlap == 1.0
    assert judge(RIGHT, Reference(short, short), np.array([5])).overlap == 0.0


def test_where_nothing_is_known_only_the_overlap_is() -> None:
    quality = judge(RIGHT, Reference(RIGHT, RIGHT), np.array([NOBODY]))
    assert (quality.ndcg, quality.hr, quality.loss, quality.overlap) == (None, None, None, 1.0)


def test_a_smaller_model_loses_against_the_original_and_overlaps_with_itself() -> None:
    quality = judge(ranked(8, 7), Reference(float32=ranked(8, 7), original=RIGHT), np.array([100]))
    assert quality.overlap == 1.0 and quality.kept == 0.0 and quality.loss == 1.0


def test_candidates_are_sorted_by_the_score_that_orders_them() -> None:
    feeds = [{"candidates": np.array([[4, 5, 6]])}]
    scores = np.array([[[0.0, 9.0], [2.0, 8.0], [1.0, 7.0]]], dtype=np.float32)
    assert best_candidates(feeds, 0)(0, scores)[0].tolist() == [5, 6, 4] + [NOBODY] * 7
    assert best_candidates(feeds, 1)(0, scores)[0].tolist() == [4, 5, 6] + [NOBODY] * 7
