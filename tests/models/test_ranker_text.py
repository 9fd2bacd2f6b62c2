"""The cross-encoder: what it says of a candidate depends on the texts, and on neither padding nor other candidates."""

import json

import numpy as np
import onnxruntime as ort
import pytest
import torch

from fuserec.export.judging import Questions
from fuserec.export.onnx_graph import export_graph
from fuserec.export.parts import Axis, Part
from fuserec.models.ranker_text import TextRanker, TextRankerConfig
from fuserec.models.ranking_model import RankingModel
from tests.conftest import TINY_ENCODER

N_ITEMS = 9
NOTHING = Questions("nothing", [], np.empty(0, dtype=np.int64), lambda number, output: output.astype(np.int64))


@pytest.fixture
def model() -> TextRanker:
    torch.manual_seed(0)
    config = TextRankerConfig(
        n_items=N_ITEMS, encoder=TINY_ENCODER, first_token=1, max_history=3, max_tokens=4, tasks="click,rating"
    )
    model = TextRanker(config).eval()
    lengths = torch.arange(N_ITEMS) % 3 + 2
    words = torch.randint(3, 400, (N_ITEMS, 4))
    model.rank_tower.tokens[1:] = torch.where(torch.arange(4) < lengths[:, None], words, 0)
    model.rank_tower.rating_mean.fill_(3.5)
    return model


USER = torch.tensor([0, 0])
HISTORY = torch.tensor([[0, 0, 1, 2], [3, 4, 5, 6]])
CANDIDATES = torch.tensor([[7, 8, 1], [9, 2, 3]])


@torch.no_grad()
def test_padding_and_the_past_beyond_the_history_make_no_difference(model: TextRanker) -> None:
    said = model.rank_tower(USER, HISTORY, CANDIDATES)
    assert said.shape == (2, 3, 2)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), HISTORY], dim=1)
    torch.testing.assert_close(model.rank_tower(USER, padded, CANDIDATES), said)
    torch.testing.assert_close(model.rank_tower(USER, HISTORY[:, 1:], CANDIDATES), said)
    short = model.rank_tower(USER[:1], HISTORY[:1, 2:], CANDIDATES[:1])
    torch.testing.assert_close(short, said[:1])
    assert not torch.allclose(model.rank_tower(USER, HISTORY[:, 2:], CANDIDATES)[1], said[1]), "the history is not read"


@torch.no_grad()
def test_candidates_do_not_depend_on_one_another(model: TextRanker) -> None:
    said = model.rank_tower(USER, HISTORY, CANDIDATES)
    alone = torch.cat([model.rank_tower(USER, HISTORY, CANDIDATES[:, [place]]) for place in range(3)], dim=1)
    torch.testing.assert_close(alone, said, atol=1e-5, rtol=0)
    assert said[0, :, 0].unique().numel() == 3, "all candidates are told the same"


@torch.no_grad()
def test_what_is_packed_is_what_is_served(model: TextRanker) -> None:
    candidates = torch.cat([CANDIDATES, torch.zeros(2, 1, dtype=torch.int64)], dim=1)
    packed = model.rank_tower.packed(HISTORY, candidates)
    said = model.rank_tower(USER, HISTORY, candidates)
    torch.testing.assert_close(packed[:, :3], said[:, :3], atol=1e-5, rtol=0)
    assert bool(said.isfinite().all())
    nothing = torch.zeros(2, 2, dtype=torch.int64)
    torch.testing.assert_close(
        model.rank_tower.packed(nothing, CANDIDATES), model.rank_tower(USER, nothing, CANDIDATES), atol=1e-5, rtol=0
    )


def test_the_graph_says_what_the_module_says(model: TextRanker, tmp_path) -> None:
    assert isinstance(model, RankingModel)
    batch, length, count = Axis("B", 1, 1, 8), Axis("L", 1, 3, 3), Axis("C", 1, 8, 50)
    inputs = {"user": (batch,), "history": (batch, length), "candidates": (batch, count)}
    export_graph(Part("ranker", model.rank_tower, inputs, "scores", "", [], [], NOTHING, 3), tmp_path / "ranker.onnx")
    generator = np.random.default_rng(0)
    session = ort.InferenceSession(tmp_path / "ranker.onnx")
    for b, n, c in [(1, 1, 1), (3, 2, 5), (2, 3, 1)]:
        feed = {
            "user": np.zeros(b, np.int64),
            "history": generator.integers(0, N_ITEMS + 1, (b, n)),
            "candidates": generator.integers(1, N_ITEMS + 1, (b, c)),
        }
        with torch.no_grad():
            want = model.rank_tower(*map(torch.from_numpy, feed.values()))
        got = session.run(None, feed)[0]
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5, err_msg=f"B = {b}, L = {n}, C = {c}")


def test_an_encoder_without_segments_is_read_too() -> None:
    encoder = json.dumps(json.loads(TINY_ENCODER) | {"type_vocab_size": 1})
    model = TextRanker(TextRankerConfig(n_items=3, encoder=encoder, first_token=1, max_history=2, max_tokens=4)).eval()
    model.rank_tower.tokens[1:] = 5
    said = model.rank_tower(USER[:1], torch.tensor([[1, 2]]), torch.tensor([[3]]))
    assert said.shape == (1, 1, 2) and model.heads == ("click",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "next-item"}, "tasks is 'next-item'; expected click and rating"),
        ({"tasks": "click,click"}, "each once"),
        ({"max_tokens": 1}, "max_tokens is 1"),
        ({"max_history": 20}, "is 85; expected at most 32"),
        ({"encoder": "{}"}, "model_type"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRankerConfig(
            **{"n_items": 3, "encoder": TINY_ENCODER, "first_token": 1, "max_tokens": 4, "max_history": 5} | options
        )
