"""The towers: unit vectors, blind to padding, total on unknown users and empty histories, exportable."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.models.retriever import ITEM_CHUNK
from fuserec.models.two_tower import TwoTower, TwoTowerConfig

CONFIG = TwoTowerConfig(n_users=5, n_items=30, dim=16, max_history=50, n_genres=3, n_words=7, n_years=4)
FLOAT32 = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def model() -> TwoTower:
    torch.manual_seed(0)
    model = TwoTower(CONFIG)
    # Trained biases are not zero; a fresh one would hide a mistake in the distances.
    for block in model.user_tower.blocks:
        torch.nn.init.normal_(block.attention.distance_bias.weight)
    model.item_features.words.random_(0, CONFIG.n_words + 1)
    return model.eval()


def padded(history: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(history, (width - history.shape[1], 0))


@settings(deadline=None, max_examples=30)
@given(
    history=st.lists(st.integers(1, CONFIG.n_items), min_size=1, max_size=20),
    width=st.integers(0, 30),
    user=st.integers(0, CONFIG.n_users),
)
@torch.no_grad()
def test_padding_changes_nothing(model: TwoTower, history: list[int], width: int, user: int) -> None:
    users, short = torch.tensor([user]), torch.tensor([history])
    long = padded(short, len(history) + width)
    torch.testing.assert_close(model.user_tower(users, short), model.user_tower(users, long), **FLOAT32)


@torch.no_grad()
def test_five_items_padded_to_the_limit(model: TwoTower) -> None:
    users, short = torch.tensor([1, 0]), torch.tensor([[1, 2, 3, 4, 5], [0, 0, 9, 8, 7]])
    torch.testing.assert_close(
        model.user_tower(users, short), model.user_tower(users, padded(short, CONFIG.max_history)), **FLOAT32
    )


@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(model: TwoTower) -> None:
    users, histories = torch.tensor([0, 3, 5]), torch.tensor([[0, 0, 1], [2, 3, 4], [0, 0, 0]])
    rows = [model.user_tower(users[i : i + 1], histories[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(model.user_tower(users, histories), torch.cat(rows), **FLOAT32)


@torch.no_grad()
def test_every_position_equals_its_prefix_alone(model: TwoTower) -> None:
    users, history = torch.tensor([2]), torch.tensor([[4, 9, 1, 30, 7]])
    at_once = model.user_tower.all_positions(users, history)[0]
    alone = [model.user_tower(users, history[:, : n + 1])[0] for n in range(history.shape[1])]
    torch.testing.assert_close(at_once, torch.stack(alone), **FLOAT32)


@pytest.mark.parametrize("user", [0, 5], ids=["unknown-user", "known-user"])
@pytest.mark.parametrize("length", [1, 50])
@torch.no_grad()
def test_an_empty_history_gives_a_unit_vector(model: TwoTower, user: int, length: int) -> None:
    vector = model.user_tower(torch.tensor([user]), torch.zeros(1, length, dtype=torch.int64))
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(1), **FLOAT32)


@torch.no_grad()
def test_order_user_and_history_all_matter(model: TwoTower) -> None:
    def encode(user: int, history: list[int]) -> torch.Tensor:
        return model.user_tower(torch.tensor([user]), torch.tensor([history]))

    base = encode(1, [1, 2, 3])
    for other in (encode(1, [2, 1, 3]), encode(2, [1, 2, 3]), encode(1, [9, 2, 3])):
        assert not torch.allclose(base, other, atol=1e-3)


def test_item_vectors_are_unit_and_follow_the_rows(model: TwoTower) -> None:
    vectors = model.item_vectors()
    assert vectors.shape == (CONFIG.n_items, CONFIG.dim)
    assert vectors.dtype == torch.float32
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(CONFIG.n_items), **FLOAT32)
    with torch.no_grad():
        torch.testing.assert_close(vectors[6:7], model.encode_items(torch.tensor([7])), **FLOAT32)


def test_item_vectors_leave_the_mode_alone_and_ignore_dropout() -> None:
    model = TwoTower(dataclasses.replace(CONFIG, dropout=0.9)).train()
    torch.testing.assert_close(model.item_vectors(), model.item_vectors(), **FLOAT32)
    assert model.training


def test_a_catalogue_larger_than_a_chunk() -> None:
    model = TwoTower(TwoTowerConfig(n_users=1, n_items=ITEM_CHUNK + 1, dim=2, n_heads=1))
    assert model.item_vectors().shape == (ITEM_CHUNK + 1, 2)


def test_item_features_travel_in_the_state_dict(model: TwoTower) -> None:
    names = {name for name in model.state_dict() if name.startswith("item_features.")}
    assert names == {"item_features.genres", "item_features.words", "item_features.years"}


def test_no_features_at_all() -> None:
    model = TwoTower(TwoTowerConfig(n_users=0, n_items=3, dim=4))
    assert bool(model.item_vectors().isfinite().all())


def test_gradients_are_finite_on_rows_of_padding() -> None:
    model = TwoTower(CONFIG).train()
    vectors = model.user_tower.all_positions(torch.tensor([1, 2]), torch.tensor([[0, 0, 0], [0, 3, 4]]))
    vectors.sum().backward()
    gradients = [p.grad for p in model.user_tower.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)


def test_torch_export_takes_any_batch_and_length(model: TwoTower) -> None:
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=1, max=50)
    example = (torch.zeros(2, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    program = torch.export.export(model.user_tower, example, dynamic_shapes=({0: batch}, {0: batch, 1: length}))
    users, history = torch.tensor([1, 2, 0]), torch.randint(0, CONFIG.n_items, (3, 50))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(users, history), model.user_tower(users, history), **FLOAT32)


def test_the_config_survives_json() -> None:
    assert TwoTowerConfig(**json.loads(json.dumps(dataclasses.asdict(CONFIG)))) == CONFIG


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_items", 0), ("dim", 0), ("max_history", 0), ("n_users", -1), ("dropout", 1.0), ("user_dropout", -0.1),
     ("n_heads", 3)],
)  # fmt: skip
def test_impossible_sizes_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}.*expected|expected.*{field}"):
        dataclasses.replace(CONFIG, **{field: value})
