"""The bench of the service: all contenders answer alike, and its rows make sense on the real server."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from bench.serving import __main__ as serving
from bench.serving.contenders import NO_OP, OURS, OURS_HTTP
from bench.serving.measure import Row
from bench.serving.repositories import large_repository
from bench.serving.rival_app import Rival
from bench.serving.targets import targets
from bench.serving.workload import Workload
from fuserec.contract import NO_ID
from fuserec.kernels import ItemIndex
from fuserec.manifest import Manifest, bundle_folder
from fuserec.serve.pipeline import Pipeline
from fuserec.serve.query import Query
from fuserec.serve.users import NO_IDS

N_LARGE = 2_000
RIVAL = "rival 2x1"


@pytest.fixture(scope="module")
def work(
    checkpoint_folder: Path,
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder of a bench with the repository of the small catalogue."""
    from bench.serving.repositories import small_repository

    folder = tmp_path_factory.mktemp("bench")
    with trace_once():
        small_repository(checkpoint_folder, folder / "small")
    return folder


@pytest.fixture(scope="module")
def large(work: Path) -> Path:
    return large_repository(bundle_folder(work / "small"), work / f"large-{N_LARGE}", N_LARGE)


def test_large_catalogue_keeps_the_small_one(work: Path, large: Path) -> None:
    small = bundle_folder(work / "small")
    manifest = Manifest.read(large)
    manifest.verify(large.parents[1])
    trained, index = (ItemIndex.load(bundle / "index.safetensors") for bundle in (small, large))
    assert index.rows == manifest.n_items == N_LARGE
    np.testing.assert_array_equal(index.ids[: trained.rows], trained.ids)
    np.testing.assert_array_equal(index.embeddings[: trained.rows], trained.embeddings)
    lengths = np.linalg.norm(index.embeddings, axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-5)
    nearest = (index.embeddings[trained.rows :] @ trained.embeddings.T).max(axis=1)
    assert 0.8 < np.median(nearest) < 0.99, "new items are neither copies nor strangers"
    items, users = pl.read_parquet(large / "items.parquet"), pl.read_parquet(large / "users.parquet")
    assert items["item_id"].to_list() == index.ids.tolist()
    assert items["count"][trained.rows :].sum() == 0
    assert users.equals(pl.read_parquet(small / "users.parquet"))


def test_large_catalogue_is_made_once(work: Path, large: Path) -> None:
    before = (large / "index.safetensors").stat().st_mtime_ns
    assert large_repository(bundle_folder(work / "small"), large.parents[1], N_LARGE) == large
    assert (large / "index.safetensors").stat().st_mtime_ns == before


def test_large_catalogue_must_be_larger(work: Path) -> None:
    with pytest.raises(ValueError, match="n_items came as 300, expected more than the 300"):
        large_repository(bundle_folder(work / "small"), work / "never", 300)


def test_rival_does_the_same_work(checkpoint_folder: Path, large: Path) -> None:
    pipeline, rival = Pipeline.open(large), Rival(checkpoint_folder, large / "index.safetensors")
    users = pl.read_parquet(large / "users.parquet")
    asked = [(call.user_id, call.history, ()) for call in Workload(calls=60).draw(users)]
    known = users["history"][0].to_list()
    asked += [(NO_ID, (), ()), (NO_ID, tuple(known[:3]), ()), (NO_ID, (99,), tuple(known)), (7_777, (99, known[0]), ())]
    for user, history, exclude in asked:
        ids = np.array(history, dtype=np.int64), np.array(exclude, dtype=np.int64)
        (want,) = pipeline.recommend([Query(user, *ids, 10)])
        got = rival.recommend({"user_id": user, "history": list(history), "exclude": list(exclude), "k": 10})
        assert got["item_ids"].tolist() == want.item_ids.tolist(), (user, history)
        np.testing.assert_allclose(got["scores"], want.scores, atol=1e-5)
        assert got["fallback"] == want.fallback
    assert pipeline.recommend([Query(NO_ID, NO_IDS, NO_IDS, 1)])[0].fallback, "the fallback was among them"


@pytest.fixture(scope="module")
def quick(checkpoint_folder: Path, work: Path, large: Path) -> Iterator[tuple[list[Row], Path]]:
    """The rows of a quick run over the large catalogue, and the folder of its files."""
    options = ["--quick", "--catalogues", "large", "--large-items", str(N_LARGE), "--seconds", "0.4"]
    files = ["--csv", str(work / "rows.csv"), "--plot", str(work / "rows.png")]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: printed.append(" ".join(map(str, values))))
        folders = ["--checkpoint", str(checkpoint_folder), "--folder", str(work)]
        assert serving.main([*options, *files, *folders, "--json"]) == 0
    yield json.loads("\n".join(printed))["rows"], work


@pytest.mark.serving
def test_rows_of_a_run_make_sense(quick: tuple[list[Row], Path]) -> None:
    rows, _ = quick
    loads = [(row["load"], row["concurrency"], row["share_pct"]) for row in rows]
    assert loads == [load for load in (("closed", 1, None), ("closed", 8, None), ("open", None, 70)) for _ in range(4)]
    assert {row["contender"] for row in rows} == {OURS, OURS_HTTP, NO_OP, RIVAL}
    for row in rows:
        assert row["errors"] == 0, row["what"]
        assert row["answered"] > 0 and row["items"] == N_LARGE
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"] + 0.05
        assert 0 < row["generator_cores"] < 2 and 0 <= row["server_cores"] < 4
    for row in rows:
        if row["contender"] == RIVAL:
            assert row["batch"] is None
        elif row["concurrency"] == 1:
            assert row["batch"] == 1
        elif row["concurrency"] == 8 and row["contender"] == OURS:
            assert 1 < row["batch"] <= 8, "histories of unequal length share batches"


@pytest.mark.serving
def test_run_writes_its_files_and_leaves_no_noop_in_the_manifest(quick: tuple[list[Row], Path]) -> None:
    rows, work = quick
    with (work / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["contender"] for row in written] == [row["contender"] for row in rows]
    assert (work / "rows.png").read_bytes().startswith(b"\x89PNG")
    bundle = bundle_folder(work / f"large-{N_LARGE}")
    Manifest.read(bundle).verify(bundle.parents[1])


@pytest.mark.serving
def test_targets_of_a_run(quick: tuple[list[Row], Path]) -> None:
    found = {target.what: target for target in targets(quick[0])}
    assert set(found) == {
        f"large: saturated throughput, over that of {RIVAL}",
        "large: p99 at 70 % of saturation, over p50",
    }


def test_missing_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a folder; expected a checkpoint"):
        serving.main(["--quick", "--checkpoint", str(tmp_path / "none"), "--folder", str(tmp_path)])
