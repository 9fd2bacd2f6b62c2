"""Rankers: what they say of a candidate depends on the user, the history and the candidate, and on nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from fuserec.export.judging import Questions
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import Axis, Part
from fuserec.models.ranker import Ranker, RankerConfig, parse_tasks
from fuserec.models.registry import ARCHITECTURES, build_module

NOTHING = Questions("nothing", [], np.empty(0, dtype=np.int64), lambda number, output: output.astype(np.int64))
NAMES = ["ranker-mlp", "ranker-attention", "ranker-dcn"]
CONFIG = RankerConfig(
    n_users=5, n_items=30, dim=16, max_history=20, n_genres=3, n_words=7, n_years=4, hidden=8, cross_rank=4
)
FLOAT32 = {"atol": 1e-5, "rtol": 0.0}


def built(name: str, config: RankerConfig = CONFIG) -> Ranker:
    torch.manual_seed(0)
    model = ARCHITECTURES[name].module_type(config)
    assert isinstance(model, Ranker)
    # What starts from zero would hide mistakes behind it.
    for parameter in model.rank_tower.parameters():
        if not bool(parameter.any()):
            torch.nn.init.normal_(parameter)
    model.rank_tower.item_features.words.random_(0, config.n_words + 1)
    model.rank_tower.rating_mean.fill_(3.5)
    model.rank_tower.rating_scale.fill_(0.7)
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Ranker:
    return built(request.param)


def padded(history: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(history, (width - history.shape[1], 0))


@pytest.mark.parametrize("history", [[4, 9, 1], [7], [0]], ids=["three", "one", "empty"])
@torch.no_grad()
def test_padding_changes_nothing(model: Ranker, history: list[int]) -> None:
    user, short, candidates = torch.tensor([2]), torch.tensor([history]), torch.tensor([[1, 5, 9, 30]])
    want = model.rank_tower(user, short, candidates)
    for width in (len(history) + 1, CONFIG.max_history):
        torch.testing.assert_close(model.rank_tower(user, padded(short, width), candidates), want, **FLOAT32)


@torch.no_grad()
def test_other_candidates_change_nothing(model: Ranker) -> None:
    user, history = torch.tensor([2, 0]), torch.tensor([[4, 9, 1], [0, 0, 8]])
    together = model.rank_tower(user, history, torch.tensor([[3, 12, 0], [12, 12, 7]]))
    assert together.shape == (2, 3, 2)
    torch.testing.assert_close(together[1, 0], together[1, 1])
    alone = model.rank_tower(user, history, torch.tensor([[12], [7]]))
    torch.testing.assert_close(torch.stack([together[0, 1], together[1, 2]]), alone[:, 0], **FLOAT32)


@torch.no_grad()
def test_a_batch_equals_its_rows_one_by_one(model: Ranker) -> None:
    parts = torch.tensor([0, 3, 5]), torch.tensor([[0, 0, 1], [2, 3, 4], [0, 0, 0]]), torch.randint(1, 31, (3, 6))
    rows = [model.rank_tower(*(part[i : i + 1] for part in parts)) for i in range(3)]
    torch.testing.assert_close(model.rank_tower(*parts), torch.cat(rows), **FLOAT32)


@torch.no_grad()
def test_user_history_its_order_and_candidate_all_matter(model: Ranker) -> None:
    def score(user: int, history: list[int], candidate: int) -> torch.Tensor:
        scores: torch.Tensor = model.rank_tower(
            torch.tensor([user]), torch.tensor([history]), torch.tensor([[candidate]])
        )
        return scores[0, 0]

    base = score(1, [1, 2, 3], 9)
    for other in (score(2, [1, 2, 3], 9), score(1, [2, 1, 3], 9), score(1, [5, 2, 3], 9), score(1, [1, 2, 3], 10)):
        assert bool(((base - other).abs() > 1e-4).all()), f"{base} and {other} are alike in a head"


@torch.no_grad()
def test_candidates_shared_by_all_users_score_as_when_repeated(model: Ranker) -> None:
    """Training and evaluation score a catalogue at once, with one row of items for all users."""
    tower, user = model.rank_tower, torch.tensor([1, 2])
    history, rows = torch.tensor([[0, 2, 3], [4, 5, 6]]), torch.tensor([[7, 8, 9, 10]])
    items, features = tower.describe(rows)
    past, _ = tower.describe(history)
    shared = tower.score(tower.user_tower(user, history), items, features, past, history != 0)
    torch.testing.assert_close(shared, tower(user, history, rows.expand(2, 4)), **FLOAT32)


def test_the_rating_starts_from_the_mean() -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES["ranker-mlp"].module_type(CONFIG).eval()
    model.rank_tower.rating_mean.fill_(3.5)
    with torch.no_grad():
        said = model.rank_tower(torch.tensor([1]), torch.tensor([[1, 2]]), torch.tensor([[3, 4]]))[..., 1]
    torch.testing.assert_close(said, torch.full((1, 2), 3.5))


@torch.no_grad()
def test_it_is_a_retriever_of_unit_vectors(model: Ranker) -> None:
    users = model.user_tower(torch.tensor([1, 0]), torch.tensor([[1, 2, 3], [0, 0, 4]]))
    for vectors in (users, model.item_vectors()):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)), **FLOAT32)
    positions = model.positions(torch.tensor([1]), torch.tensor([[1, 2, 3]]))
    torch.testing.assert_close(positions[0, -1], users[0], **FLOAT32)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_can_be_saved(name: str, tmp_path: Path) -> None:
    """safetensors refuses a tensor that goes by two names."""
    save_file(built(name).state_dict(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_onnx_takes_any_batch_length_and_number_of_candidates(name: str, tmp_path: Path) -> None:
    model = built(name)
    batch, length, count = Axis("B", 1, 2, 64), Axis("L", 1, 20, 20), Axis("C", 1, 200, 512)
    inputs = {"user": (batch,), "history": (batch, length), "candidates": (batch, count)}
    part = Part("ranker", model.rank_tower, inputs, "scores", "", [], [], NOTHING, max_history=20)
    export_graph(part, tmp_path / "rank.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "rank.onnx"), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for sizes in ((1, 1, 1), (3, 20, 200), (7, 2, 3)):
        feed = {
            "user": rng.integers(0, 6, sizes[0]),
            "history": rng.integers(1, 31, sizes[:2]),
            "candidates": rng.integers(0, 31, (sizes[0], sizes[2])),
        }
        (came,) = session.run(None, feed)
        with torch.no_grad():
            want = model.rank_tower(*map(torch.from_numpy, feed.values()))
        np.testing.assert_allclose(came, want.numpy(), atol=1e-4, err_msg=f"sizes {sizes}")


@pytest.mark.parametrize(
    ("tasks", "heads"),
    [("next-item,click", ("click",)), ("rating, click", ("click", "rating")), ("rating", ("rating",))],
)
def test_heads_are_the_trained_tasks(tasks: str, heads: tuple[str, ...]) -> None:
    assert built("ranker-mlp", dataclasses.replace(CONFIG, tasks=tasks)).heads == heads


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("click,buy", "tasks names 'buy'; expected some of next-item, click, rating"),
        ("", "tasks names ''"),
        ("click,click", "expected each name once"),
        ("next-item", "expected click or rating among them"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(tasks: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tasks(tasks)


@pytest.mark.parametrize(
    ("field", "value"), [("hidden", 0), ("n_crosses", 0), ("cross_rank", 0), ("temperature", 0.0), ("n_heads", 3)]
)
def test_impossible_sizes_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


def test_the_config_survives_json() -> None:
    arguments = json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert build_module("ranker-dcn", arguments).config == CONFIG
