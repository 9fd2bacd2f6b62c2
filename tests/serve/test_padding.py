"""What a row is padded to depends on that row alone, so that no answer depends on who else is in the batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.contract import NO_ID
from fuserec.export import ExportConfig, Gate, export_checkpoint
from fuserec.manifest import Manifest
from fuserec.serve.padding import SHORTEST, batches
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.ranking import RankQuery, RankStage
from fuserec.serve.users import NO_IDS, Users

Exported = Callable[[str], Path]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 200), st.integers(1, 64))
def test_each_row_is_in_one_batch_of_a_width_of_its_own(lengths: list[int], longest: int, limit: int) -> None:
    rows_of: dict[int, int] = {}
    for width, rows in batches(lengths, longest, limit):
        assert 1 <= len(rows) <= limit
        for row in rows.tolist():
            assert row not in rows_of, f"row {row} came twice"
            rows_of[row] = width
    assert sorted(rows_of) == list(range(len(lengths)))
    for row, width in rows_of.items():
        [(alone, _)] = batches([lengths[row]], longest, limit)
        assert width == alone, "the width of a row depends on others"
        assert min(lengths[row], longest) <= width <= longest
        assert width <= max(SHORTEST, 2 * lengths[row])


@pytest.fixture
def exported(
    untrained: Callable[[str, Path], None], trace_once: Callable[[], AbstractContextManager[None]], tmp_path: Path
) -> Exported:
    """Return what exports an architecture."""

    def export(architecture: str) -> Path:
        untrained(architecture, tmp_path / "checkpoint")
        config = ExportConfig("fp32", ("cpu",), gate=Gate(accept_loss=True))
        with trace_once():
            export_checkpoint(tmp_path / "checkpoint", tmp_path / "repository", config)
        return tmp_path / "repository"

    return export


# In int8 nothing would show. A lookup, sums, attention and a transformer: all that sums over positions.
@pytest.mark.parametrize("architecture", ["mf", "sasrec", "text"])
def test_float32_answers_are_bit_equal_in_any_batch(architecture: str, exported: Exported) -> None:
    bundle = exported(architecture) / "recommend" / "1"
    pipeline = Pipeline.open(bundle)
    rng = np.random.default_rng(2)
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    queries = [
        Query(
            5 if place % 3 == 0 else NO_ID,
            rng.choice(items, length),
            NO_IDS,
            10,
            text=" ".join(["item"] * (place % 12)) if pipeline.reads_text else "",
        )
        for place, length in enumerate(rng.integers(0, 60, 90).tolist())
    ]
    alone = [pipeline.recommend([query])[0] for query in queries]
    for size in (2, 7, 90):
        together = [answer for at in range(0, 90, size) for answer in pipeline.recommend(queries[at : at + size])]
        wrong = [
            place
            for place, (one, other) in enumerate(zip(alone, together, strict=True))
            if one.scores.tobytes() != other.scores.tobytes() or one.item_ids.tobytes() != other.item_ids.tobytes()
        ]
        assert not wrong, f"in batches of {size} rows {wrong} are not what they are alone"


def test_float32_ranks_are_bit_equal_in_any_batch(exported: Exported) -> None:
    bundle = exported("ranker-mlp") / "rank" / "1"
    manifest = Manifest.read(bundle)
    stage, users = RankStage.open(bundle, manifest), Users.load(bundle, manifest)
    assert stage is not None
    rng = np.random.default_rng(3)
    items = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    queries = [
        RankQuery(5 + 3 * place, rng.choice(items, place % 50), rng.choice(items, 1 + place % 60, replace=False))
        for place in range(100)
    ]
    alone = [stage.rank([query], users)[0] for query in queries]
    for size in (2, 8, 100):
        together = [answer for at in range(0, 100, size) for answer in stage.rank(queries[at : at + size], users)]
        wrong = [
            place
            for place, (one, other) in enumerate(zip(alone, together, strict=True))
            if one.scores.tobytes() != other.scores.tobytes()
        ]
        assert not wrong, f"in batches of {size} rows {wrong} are not what they are alone"
