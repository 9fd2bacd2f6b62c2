"""Factors of implicit: real files of version 0.7.3 (see make_implicit.py), and files like them that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.importers.implicit import Rows, import_implicit, read_factors
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.matrix_factorization import MatrixFactorization
from tests.importers.conftest import FILES, DataWriter

REAL = json.loads((FILES / "implicit.json").read_text())
N_USERS, N_ITEMS = 14, 11
# Ids whose order is that of the rows, with gaps.
USERS = [7 + 5 * row for row in range(N_USERS)]
ITEMS = [100 + 3 * row for row in range(N_ITEMS)]
PAIRS = [(USERS[user], ITEMS[item]) for user, item in REAL["pairs"]]


def scores_of(checkpoint: Checkpoint) -> np.ndarray:
    """(users, items) of the checkpoint."""
    module = checkpoint.module()
    assert isinstance(module, MatrixFactorization)
    with torch.no_grad():
        users = torch.arange(1, checkpoint.users.height + 1)
        vectors = module.user_tower(users, torch.zeros(len(users), 1, dtype=torch.int64))
        scores: np.ndarray = (vectors @ module.item_vectors().T).numpy()
    return scores


@pytest.mark.parametrize("name", ["als", "bpr", "logistic"])
def test_scores_are_those_of_implicit(name: str, write_data: DataWriter) -> None:
    checkpoint = import_implicit(FILES / f"implicit-{name}.npz", write_data(PAIRS, ITEMS))
    assert checkpoint.users["user_id"].to_list() == USERS and checkpoint.items["item_id"].to_list() == ITEMS
    answer = REAL["answers"][name]
    found = np.take_along_axis(scores_of(checkpoint), np.array(answer["items"]), axis=1)
    assert np.abs(found - np.array(answer["scores"])).max() < 1e-5
    assert checkpoint.arguments["item_bias"] == (name != "als")
    assert not any(checkpoint.metrics["imported"]["left_out"].values())


@pytest.mark.parametrize("name", ["bpr", "logistic"])
def test_an_unknown_user_without_history_is_shown_what_the_bias_favours(name: str, write_data: DataWriter) -> None:
    path = FILES / f"implicit-{name}.npz"
    module = import_implicit(path, write_data(PAIRS, ITEMS)).module()
    with torch.no_grad():
        vector = module.user_tower(torch.tensor([0]), torch.zeros(1, 3, dtype=torch.int64))
    bias = np.load(path)["item_factors"][:, -1 if name == "bpr" else -2]
    assert np.allclose((vector @ module.item_vectors().T).numpy()[0], bias, atol=1e-6)


@pytest.mark.parametrize("kind", ["txt", "parquet"])
def test_rows_in_any_order_are_found_by_lists_of_ids(kind: str, write_data: DataWriter, tmp_path: Path) -> None:
    by_order = scores_of(import_implicit(FILES / "implicit-als.npz", write_data(PAIRS, ITEMS)))
    rng = np.random.default_rng(0)
    users, items = rng.permutation(USERS), rng.permutation(ITEMS)
    for name, ids in (("users", users), ("items", items)):
        if kind == "txt":
            (tmp_path / f"{name}.txt").write_text("\n".join(map(str, ids)) + "\n")
        else:
            pl.DataFrame({"id": ids}).write_parquet(tmp_path / f"{name}.parquet")
    pairs = [(int(users[user]), int(items[item])) for user, item in REAL["pairs"]]
    checkpoint = import_implicit(
        FILES / "implicit-als.npz",
        write_data(pairs, sorted(ITEMS), "shuffled"),
        users=tmp_path / f"users.{kind}",
        items=tmp_path / f"items.{kind}",
    )
    assert checkpoint.users["user_id"].to_list() == USERS
    assert np.array_equal(scores_of(checkpoint), by_order[np.argsort(users)][:, np.argsort(items)])


def test_ids_that_were_coordinates(write_data: DataWriter) -> None:
    """Users 0 to 13 and items 0 to 10 are rows; item 3 and user 2 are not in the data, item 40 is not in the model."""
    pairs = [(user, item) for user, item in REAL["pairs"] if user != 2 and item != 3] + [(5, 40)]
    data = write_data(pairs, [item for item in range(N_ITEMS) if item != 3] + [40])
    checkpoint = import_implicit(FILES / "implicit-als.npz", data, rows=Rows.IDS)
    assert checkpoint.items["item_id"].to_list() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert 2 not in checkpoint.users["user_id"] and 40 not in checkpoint.users["history"].explode()
    whole = np.load(FILES / "implicit-als.npz")
    expected = whole["user_factors"] @ whole["item_factors"].T
    assert np.allclose(scores_of(checkpoint), np.delete(np.delete(expected, 2, axis=0), 3, axis=1), atol=1e-6), (
        "rows are not ids"
    )
    assert checkpoint.metrics["imported"]["left_out"] == {
        "rows_of_unknown_items": 1,
        "items_without_vector": 1,
        "users_without_vector": 0,
        "interactions": 1,
        "rows_of_unknown_users": 1,
    }


def test_counts_that_differ_are_refused_with_both(write_data: DataWriter) -> None:
    data = write_data([pair for pair in PAIRS if pair[0] != USERS[0]], ITEMS)
    with pytest.raises(
        DataError, match=r"14 rows of user factors; the data has 13 users: which is whom\? Give.*--users"
    ):
        import_implicit(FILES / "implicit-als.npz", data)


def test_a_matrix_of_ids_gets_the_hint(write_data: DataWriter) -> None:
    data = write_data([(user, item) for user, item in REAL["pairs"] if user != 2], range(N_ITEMS))
    with pytest.raises(DataError, match="--row-is-id says that row n is id n"):
        import_implicit(FILES / "implicit-als.npz", data)


def test_lists_of_ids_come_in_pairs_and_of_the_right_length(write_data: DataWriter, tmp_path: Path) -> None:
    data, ids = write_data(PAIRS, ITEMS), tmp_path / "ids.txt"
    ids.write_text("1\n2\n")
    with pytest.raises(UsageError, match="expected both, or none"):
        import_implicit(FILES / "implicit-als.npz", data, users=ids)
    with pytest.raises(DataError, match="has 2 ids for 14 rows of user factors"):
        import_implicit(FILES / "implicit-als.npz", data, users=ids, items=ids)


def test_ids_that_are_texts_are_those_from_before_the_import(write_data: DataWriter, tmp_path: Path) -> None:
    data = write_data(PAIRS, ITEMS)
    for kind, ids in (("user", USERS), ("item", ITEMS)):
        originals = [f"{kind}-{number}" for number in ids]
        pl.DataFrame({f"{kind}_id": ids, "original": originals}).write_parquet(data / f"ids_{kind}s.parquet")
        (tmp_path / f"{kind}.txt").write_text("\n".join(originals))
    listed = {"users": tmp_path / "user.txt", "items": tmp_path / "item.txt"}
    checkpoint = import_implicit(FILES / "implicit-als.npz", data, **listed)
    assert checkpoint.users["user_id"].to_list() == USERS
    (data / "ids_users.parquet").unlink()
    with pytest.raises(DataError, match="user 'user-7' is no number, as the ids in"):
        import_implicit(FILES / "implicit-als.npz", data, **listed)


def fitted(folder: Path, n_users: int = 90, n_items: int = 60) -> tuple[Path, list[tuple[int, int]]]:
    """Write factors that were fitted: each user likes items of one of three kinds; return file and pairs of rows."""
    rng = np.random.default_rng(0)
    users, items = (np.eye(3)[rng.integers(0, 3, n)] + rng.normal(0, 0.1, (n, 3)) for n in (n_users, n_items))
    kinds = users.argmax(axis=1)[:, None] == items.argmax(axis=1)[None]
    pairs = [(user, int(item)) for user in range(n_users) for item in rng.permutation(np.flatnonzero(kinds[user]))[:8]]
    path = folder / "fitted.npz"
    np.savez(path, user_factors=users.astype(np.float32), item_factors=items.astype(np.float32), factors=3)
    return path, pairs


@pytest.mark.parametrize("wrong", ["users", "items", "both"])
def test_factors_in_another_order_are_refused(wrong: str, write_data: DataWriter, tmp_path: Path) -> None:
    path, pairs = fitted(tmp_path)
    users, items = (sorted(range(1, n + 1), key=str) for n in (90, 60))  # 1, 10, 11, ...
    told_users = sorted(users) if wrong == "items" else users
    told_items = sorted(items) if wrong == "users" else items
    data = write_data([(told_users[user], told_items[item]) for user, item in pairs], range(1, 61))
    hint = "the ids sorted as texts fit, with [89].*: give --sorted-as-texts" if wrong == "both" else "--trust-order"
    with pytest.raises(DataError, match=rf"score more than exchanged ones in [345]\d\.\d% of the cases, .*{hint}"):
        import_implicit(path, data)
    assert import_implicit(path, data, trust_order=True).metrics["imported"]["agreement"] < 0.6


def test_factors_in_the_order_of_texts(write_data: DataWriter, tmp_path: Path) -> None:
    path, pairs = fitted(tmp_path)
    users, items = (sorted(range(1, n + 1), key=str) for n in (90, 60))
    data = write_data([(users[user], items[item]) for user, item in pairs], range(1, 61))
    checkpoint = import_implicit(path, data, rows=Rows.TEXTS)
    assert checkpoint.metrics["imported"]["agreement"] > 0.75
    factors = np.load(path)["item_factors"]
    table = checkpoint.state["user_tower.item_embedding.weight"].numpy()
    assert all(np.array_equal(table[number], factors[row]) for row, number in enumerate(items))


def test_popular_items_do_not_hide_a_wrong_order_of_users(write_data: DataWriter, tmp_path: Path) -> None:
    """Known pairs score far more than others here, whoever the user is taken for."""
    path, pairs = fitted(tmp_path)
    factors = dict(np.load(path))
    popular = np.bincount([item for _, item in pairs], minlength=60).astype(np.float32)[:, None]
    factors["item_factors"] = np.hstack([factors["item_factors"], 5 * popular])
    factors["user_factors"] = np.hstack([factors["user_factors"], np.ones((90, 1), np.float32)])
    np.savez(path, **(factors | {"factors": np.int64(4)}))
    assert import_implicit(path, write_data([(user + 1, item + 1) for user, item in pairs], range(1, 61), "right"))
    shuffled = np.random.default_rng(1).permutation(90) + 1
    data = write_data([(int(shuffled[user]), item + 1) for user, item in pairs], range(1, 61))
    with pytest.raises(DataError, match="--trust-order"):
        import_implicit(path, data)


def test_too_few_pairs_are_a_warning(write_data: DataWriter, caplog: pytest.LogCaptureFixture) -> None:
    import_implicit(FILES / "implicit-bpr.npz", write_data(PAIRS, ITEMS))
    assert "61 pairs are too few to tell" in caplog.text


def test_ids_of_other_data_are_refused(write_data: DataWriter, tmp_path: Path) -> None:
    for name, size in (("users", N_USERS), ("items", N_ITEMS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(str(10**6 + row) for row in range(size)))
    with pytest.raises(DataError, match="of 11 items of the model and 11 of the data 0 are the same"):
        import_implicit(
            FILES / "implicit-als.npz",
            write_data(PAIRS, ITEMS),
            users=tmp_path / "users.txt",
            items=tmp_path / "items.txt",
        )


GOOD: dict[str, Any] = {
    "user_factors": np.ones((4, 3), np.float32),
    "item_factors": np.ones((5, 3), np.float32),
    "factors": 3,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_factors": np.ones((5, 4), np.float32)}, "user_factors have 3 columns and item_factors 4"),
        ({"user_factors": np.ones(4, np.float32)}, r"user_factors is float32 \(4,\); expected a float matrix"),
        ({"user_factors": np.ones((4, 3), np.int64)}, "user_factors is int64"),
        ({"user_factors": np.ones((0, 3), np.float32)}, r"user_factors is float32 \(0, 3\)"),
        ({"item_factors": np.full((5, 3), np.nan, np.float32)}, "5 rows of item_factors hold NaN"),
        ({"user_factors": np.full((4, 3), 1e300)}, "4 rows of user_factors hold NaN or infinity"),
        ({"factors": 9}, "3 columns for 9 factors"),
        ({"factors": 3.0}, "factors is float64"),
        ({"factors": 2, "user_factors": np.full((4, 3), 0.5)}, "none of the last 1 columns of user_factors is 1"),
    ],
)
def test_factors_that_are_none(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", **GOOD | change)
    with pytest.raises(CheckpointError, match=message):
        read_factors(tmp_path / "model.npz")


def test_users_without_interactions_have_no_one_either(tmp_path: Path) -> None:
    users = np.ones((4, 3), np.float32)
    users[1] = 0.0  # as BPR of implicit leaves them
    np.savez(tmp_path / "model.npz", **GOOD | {"user_factors": users, "factors": 2})
    assert read_factors(tmp_path / "model.npz").item_bias
