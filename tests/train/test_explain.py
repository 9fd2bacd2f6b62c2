"""Contributions are what they are defined to be, for every architecture whose history is a table of items."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from fuserec.train.explain import METHODS, TOLERANCE, explain

SEQUENTIAL = ["sasrec", "gru4rec", "lstm", "conv", "bert4rec"]
UNKNOWN = 10**9


@pytest.fixture(scope="module")
def load(untrained: Callable[[str, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Return a function from an architecture to its untrained checkpoint."""
    loaded: dict[str, Checkpoint] = {}

    def of(name: str) -> Checkpoint:
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name) / "checkpoint"
            untrained(name, folder)
            loaded[name] = Checkpoint.load(folder)
        return loaded[name]

    return of


def score(checkpoint: Checkpoint, user_row: int, rows: list[int], item_row: int) -> float:
    """The score, the slow way."""
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    with torch.no_grad():
        vector = module.user_tower(torch.tensor([user_row]), torch.tensor([rows or [0]]))[0]
        return float(vector @ module.item_vectors()[item_row - 1])


@pytest.mark.parametrize("name", ["two-tower", *SEQUENTIAL])
def test_leave_one_out_is_the_score_without_the_item(name: str, load: Callable[..., Checkpoint]) -> None:
    checkpoint = load(name)
    ids = checkpoint.items["item_id"].to_numpy()
    rows, item, user = [4, 9, 4, 250, 31], 17, 3
    user_id = checkpoint.users["user_id"][user - 1]
    explanation = explain(checkpoint, user_id, ids[np.array(rows) - 1], int(ids[item - 1]), "leave-one-out")
    whole = score(checkpoint, user, rows, item)
    expected = [whole - score(checkpoint, user, rows[:place] + rows[place + 1 :], item) for place in range(len(rows))]
    assert explanation.score == pytest.approx(whole, abs=1e-5)
    assert explanation.baseline == pytest.approx(score(checkpoint, user, [], item), abs=1e-5)
    np.testing.assert_array_equal(explanation.item_ids, ids[np.array(rows) - 1])
    np.testing.assert_allclose(explanation.contributions, expected, atol=2e-5)
    assert np.abs(explanation.contributions).max() > 1e-3


@pytest.mark.parametrize("name", ["two-tower", *SEQUENTIAL])
def test_integrated_gradients_sum_to_score_less_baseline(name: str, load: Callable[..., Checkpoint]) -> None:
    checkpoint = load(name)
    history = checkpoint.items["item_id"].to_numpy()[[3, 8, 99, 250]]
    explanation = explain(checkpoint, None, history, int(history[2]), "integrated-gradients")
    other = explain(checkpoint, None, history, int(history[2]), "leave-one-out")
    assert explanation.score == pytest.approx(other.score, abs=1e-5)
    difference, moved = explanation.score - explanation.baseline, np.abs(explanation.contributions).sum()
    assert explanation.contributions.shape == (4,)
    assert explanation.contributions.sum() == pytest.approx(difference, abs=TOLERANCE * moved)
    assert np.abs(explanation.contributions).max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_matrix_factorization_in_closed_form(method: str, load: Callable[..., Checkpoint]) -> None:
    """A stranger is the mean of their items: by integrated gradients each adds its share of the score."""
    checkpoint = load("mf")
    table = checkpoint.state["user_tower.item_embedding.weight"]
    ids, rows = checkpoint.items["item_id"].to_numpy(), np.array([5, 80, 7])
    explanation = explain(checkpoint, None, ids[rows - 1], int(ids[41]), method)
    products = (table[torch.from_numpy(rows)] @ table[42]).numpy()
    expected = products / 3 if method == "integrated-gradients" else products.mean() - (products.sum() - products) / 2
    np.testing.assert_allclose(explanation.contributions, expected, atol=1e-6)
    assert explanation.baseline == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_stored_history_is_cut_as_the_model_cuts_it(method: str, load: Callable[..., Checkpoint]) -> None:
    checkpoint = load("two-tower")
    user_id, history = max(checkpoint.users.rows(), key=lambda row: len(row[1]))
    explanation = explain(checkpoint, user_id, None, 1000, method)
    assert explanation.item_ids.tolist() == history[-checkpoint.arguments["max_history"] :]
    assert explanation.contributions.dtype == np.float32
    given = explain(checkpoint, user_id, np.array([*history, UNKNOWN]), 1000, method)
    np.testing.assert_array_equal(given.contributions, explanation.contributions)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param((5, None, UNKNOWN, "leave-one-out"), "item 1000000000 is not in the catalogue", id="item"),
        pytest.param((5, None, 1000, "magic"), "expected leave-one-out or integrated-gradients", id="method"),
        pytest.param((None, None, 1000, "leave-one-out"), "no user was named", id="nobody"),
        pytest.param((UNKNOWN, None, 1000, "leave-one-out"), "user 1000000000 is not among", id="user"),
        pytest.param((5, np.array([UNKNOWN]), 1000, "leave-one-out"), "none of 1 items of the history", id="history"),
    ],
)
def test_what_cannot_be_explained(
    arguments: tuple[int | None, np.ndarray | None, int, str], message: str, load: Callable[..., Checkpoint]
) -> None:
    with pytest.raises(UsageError, match=message):
        explain(load("two-tower"), *arguments)


def test_gradients_that_do_not_add_up_are_refused(
    load: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The untrained convolutions jump near zero: few steps do not see it."""
    monkeypatch.setattr("fuserec.train.explain.STEPS", (16,))
    checkpoint = load("conv")
    history = checkpoint.items["item_id"].to_numpy()[[3, 8, 99, 250]]
    with pytest.raises(UsageError, match="by more than 1% after 16 steps"):
        explain(checkpoint, None, history, int(history[2]), "integrated-gradients")


def test_text_towers_have_no_table_to_follow(load: Callable[..., Checkpoint]) -> None:
    checkpoint = load("text")
    with pytest.raises(UsageError, match="expected leave-one-out"):
        explain(checkpoint, None, checkpoint.items["item_id"].to_numpy()[:3], 1000, "integrated-gradients")
    explanation = explain(checkpoint, None, checkpoint.items["item_id"].to_numpy()[:3], 1000, "leave-one-out")
    assert np.isfinite(explanation.contributions).all()
