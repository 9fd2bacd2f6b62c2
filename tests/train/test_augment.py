"""Augmented windows keep what they must, and never show a position its own target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fuserec.train.augment import CROP_SHARE, augment
from fuserec.train.windows import WindowBatch

LENGTH = 12


def batch() -> WindowBatch:
    """Windows of the sequence 1, 2, 3, ...: full ones, padded on the left and on the right, and of one item."""
    starts, ends = [1, 1, 3, 5, 1, 12, 1], [12, 12, 12, 12, 7, 12, 1]
    column = torch.arange(1, LENGTH + 1)
    history = torch.stack([column.where((column >= s) & (column <= e), 0) for s, e in zip(starts, ends, strict=True)])
    return WindowBatch(torch.arange(1, 8), history, torch.where(history != 0, history + 1, 0))


def changed(seed: int, **options: float) -> WindowBatch:
    torch.manual_seed(seed)
    return augment(batch(), **{"crop": 0.0, "reorder": 0.0, "mask": 0.0} | options)


def rows(one: Tensor) -> list[list[int]]:
    return [[value for value in row if value] for row in one.tolist()]


def test_nothing_happens_unless_asked_for() -> None:
    before = torch.get_rng_state()
    same = augment(batch(), crop=0.0, reorder=0.0, mask=0.0)
    assert torch.equal(same.history, batch().history) and torch.equal(same.target, batch().target)
    assert torch.equal(before, torch.get_rng_state())


def test_a_crop_is_a_run_of_the_window_with_its_targets() -> None:
    places = set()
    for seed in range(20):
        found = changed(seed, crop=1.0)
        for before, after in zip(rows(batch().history), rows(found.history), strict=True):
            assert after == list(range(after[0], after[-1] + 1))
            assert len(after) == -(-len(before) * CROP_SHARE // 1)
            places.add((len(before), after[0]))
        assert torch.equal(found.target, torch.where(found.history != 0, batch().target, 0))
    # A window of 12 keeps 8: there are five places to begin, and all of them come up.
    assert {first for length, first in places if length == 12} == {1, 2, 3, 4, 5}


def test_a_shuffle_moves_items_and_tells_no_position_its_target() -> None:
    moved = 0
    for seed in range(50):
        found = changed(seed, reorder=1.0)
        for before, after in zip(rows(batch().history), rows(found.history), strict=True):
            assert sorted(after) == before
            moved += before != after
        assert torch.equal(found.history != 0, batch().history != 0)
        for history, target in zip(found.history.tolist(), found.target.tolist(), strict=True):
            for position, wanted in enumerate(target):
                if wanted:
                    seen = [value for value in history[: position + 1] if value]
                    assert wanted == max(seen) + 1, "the target follows all that is before it"
        # Three of twelve are shuffled; the last of them keeps its target.
        assert int((found.target[0] != 0).sum()) == LENGTH - 2
    assert moved > 100


def test_masked_items_read_as_padding_and_targets_have_something_to_go_by() -> None:
    share = []
    for seed in range(50):
        found = changed(seed, mask=0.3)
        kept = found.history != 0
        assert torch.equal(found.history, torch.where(kept, batch().history, 0))
        anything = kept.cumsum(dim=1) > 0
        assert torch.equal(found.target, torch.where(anything, batch().target, 0))
        share.append(1.0 - float(kept.sum() / (batch().history != 0).sum()))
    assert sum(share) / len(share) == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", ["crop", "reorder"])
def test_a_window_is_changed_with_the_probability_asked_for(name: str) -> None:
    window = batch().history[:1].expand(2000, LENGTH)
    torch.manual_seed(0)
    found = augment(
        WindowBatch(torch.arange(2000), window, window + 1), **{"crop": 0.0, "reorder": 0.0, "mask": 0.0, name: 0.25}
    )
    changed_share = (found.history != window).any(dim=1).double().mean()
    # A shuffle of three leaves them in place one time in six.
    assert float(changed_share) == pytest.approx(0.25 * (5 / 6 if name == "reorder" else 1.0), abs=0.03)
