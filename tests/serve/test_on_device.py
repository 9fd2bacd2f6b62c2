"""The pipeline on a GPU answers as the pipeline on the CPU: its kernels run in Triton's interpreter here."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from numpy.typing import NDArray

from fuserec.contract import NO_ID
from fuserec.errors import DeviceError, DeviceLost
from fuserec.kernels import ItemIndex
from fuserec.rules import Rules
from fuserec.serve.device import Device
from fuserec.serve.faults import device_fault
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.query import Query
from fuserec.serve.recall import Recall
from fuserec.serve.texts import TextStage
from fuserec.serve.users import NO_IDS, Ids

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are compiled, as there is a CUDA device")
INTERPRETED = Device("interpret", "a test")
UNKNOWN = 10**12


@pytest.fixture(scope="module")
def on_cpu(bundle: Path) -> Pipeline:
    return Pipeline.open(bundle)


@pytest.fixture(scope="module")
def on_gpu(bundle: Path) -> Pipeline:
    return Pipeline.open(bundle, INTERPRETED)


@pytest.fixture(scope="module")
def items(bundle: Path) -> Ids:
    ids: Ids = pl.read_parquet(bundle / "items.parquet")["item_id"].to_numpy()
    return ids


@pytest.fixture(scope="module")
def users(bundle: Path) -> list[int]:
    ids: list[int] = pl.read_parquet(bundle / "users.parquet")["user_id"].to_list()
    return ids


def assert_same(gpu: Sequence[Answer], cpu: Sequence[Answer]) -> None:
    assert len(gpu) == len(cpu)
    for place, (mine, expected) in enumerate(zip(gpu, cpu, strict=True)):
        np.testing.assert_array_equal(mine.item_ids, expected.item_ids, err_msg=f"ids of query {place}")
        np.testing.assert_allclose(mine.scores, expected.scores, rtol=1e-5, atol=1e-6, err_msg=f"scores of {place}")
        assert (mine.fallback, mine.ignored, mine.version) == (expected.fallback, expected.ignored, expected.version)


def drawn(
    rng: np.random.Generator, items: Ids, users: list[int], n: int, ks: Sequence[int] = (1, 7, 40, 299, 300, 400)
) -> list[Query]:
    """Known users, unknown ones and nobody; histories and exclusions with ids that nobody knows; any of some k."""
    strange = np.array([NO_ID, 4, UNKNOWN])
    return [
        Query(
            int(rng.choice([*users, UNKNOWN, NO_ID])),
            np.concatenate([rng.choice(items, rng.integers(0, 30)), strange[: rng.integers(0, 3)]]),
            np.concatenate([rng.choice(items, rng.integers(0, 60)), strange[: rng.integers(0, 3)]]),
            int(rng.choice(ks)),
            bool(rng.integers(0, 2)),
        )
        for _ in range(n)
    ]


def test_known_users_before_and_after_their_vectors_are_kept(
    on_gpu: Pipeline, on_cpu: Pipeline, users: list[int]
) -> None:
    queries = [Query(user, NO_IDS, NO_IDS, 10) for user in users[:6]]
    expected = on_cpu.recommend(queries)
    for _ in range(2):
        assert_same(on_gpu.recommend(queries), expected)
    # One of them at a time, and together with some who are not kept yet.
    assert_same([on_gpu.recommend([query])[0] for query in queries[:1]], expected[:1])
    mixed = [Query(user, NO_IDS, NO_IDS, 3 + row % 5) for row, user in enumerate(users[3:9])]
    assert_same(on_gpu.recommend(mixed), on_cpu.recommend(mixed))


def test_a_place_that_changes_hands(bundle: Path, users: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for fewer users than there are, one takes the place of another: on the device, too."""
    from fuserec.serve import recall
    from fuserec.serve.remembered import UserVectors

    monkeypatch.setattr(recall, "UserVectors", lambda n, dim, room: UserVectors(n, dim, room, most_bytes=4 * dim * 3))
    small = Pipeline.open(bundle, INTERPRETED)
    plain = Pipeline.open(bundle)
    for user in [users[0], users[3], users[0], users[1], users[3], users[3]]:
        query = [Query(user, NO_IDS, NO_IDS, 5)]
        assert_same(small.recommend(query), plain.recommend(query))


def test_batch_of_all_kinds(on_gpu: Pipeline, on_cpu: Pipeline, items: Ids, users: list[int]) -> None:
    queries = drawn(np.random.default_rng(0), items, users, 7, ks=(1, 7, 40))
    assert_same(on_gpu.recommend(queries), on_cpu.recommend(queries))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_large_batches_of_all_kinds(
    on_gpu: Pipeline, on_cpu: Pipeline, items: Ids, users: list[int], seed: int
) -> None:
    queries = drawn(np.random.default_rng(seed), items, users, 24)
    assert_same(on_gpu.recommend(queries), on_cpu.recommend(queries))


def test_a_row_alone_and_in_a_batch(on_gpu: Pipeline, items: Ids, users: list[int]) -> None:
    queries = drawn(np.random.default_rng(7), items, users, 2, ks=(5, 30))
    together = on_gpu.recommend(queries)
    for query, answer in zip(queries, together, strict=True):
        assert_same(on_gpu.recommend([query]), [answer])


def test_allow_lists(on_gpu: Pipeline, on_cpu: Pipeline, items: Ids, users: list[int]) -> None:
    rng = np.random.default_rng(1)
    allows = [rng.choice(items, size) for size in (1, 290)] + [np.array([UNKNOWN])]
    queries = [
        Query(user, NO_IDS, rng.choice(items, 20), 12, allow=allow) for user in users[:2] for allow in allows
    ] + drawn(rng, items, users, 2, ks=(3, 12))
    assert_same(on_gpu.recommend(queries), on_cpu.recommend(queries))


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param(Rules(boosts={"Even": 0.3}), id="boosts", marks=pytest.mark.slow),
        pytest.param(Rules(caps={"*": 2}), id="caps", marks=pytest.mark.slow),
        pytest.param(Rules(caps={"Odd": 3}, boosts={"Odd": 5.0}, diversity=0.4), id="all"),
        pytest.param(Rules(diversity=0.9), id="diversity", marks=pytest.mark.slow),
    ],
)
def test_rules(on_gpu: Pipeline, on_cpu: Pipeline, items: Ids, users: list[int], rules: Rules) -> None:
    rng = np.random.default_rng(2)
    queries = [
        Query(user, NO_IDS, rng.choice(items, 10), k, rules=rules) for user, k in zip(users, (1, 10, 60), strict=False)
    ]
    assert_same(on_gpu.recommend(queries), on_cpu.recommend(queries))


def test_everything_excluded_and_nothing_asked(on_gpu: Pipeline, on_cpu: Pipeline, items: Ids) -> None:
    queries = [Query(5, NO_IDS, items, 3), Query(5, NO_IDS, items[:-2], 400)]
    assert_same(on_gpu.recommend(queries), on_cpu.recommend(queries))
    assert on_gpu.recommend([]) == []


def test_search_and_scores_of_vectors(on_gpu: Pipeline, on_cpu: Pipeline, items: Ids) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((3, on_cpu.dim), dtype=np.float32)
    exclude = [rng.choice(items, size) for size in (0, 7, 299)]
    for k in (1, 400):
        mine, expected = on_gpu.search(vectors, k, exclude), on_cpu.search(vectors, k, exclude)
        np.testing.assert_array_equal(mine.ids, expected.ids)
        np.testing.assert_allclose(mine.scores, expected.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(on_gpu.scores(vectors, int(items[3])), on_cpu.scores(vectors, int(items[3])))


class Texts:
    """A vector of its own for each text, in place of an encoder."""

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = [np.random.default_rng(len(text)).standard_normal(self._dim) for text in texts]
        return np.array(vectors, dtype=np.float32)


def test_texts(bundle: Path, monkeypatch: pytest.MonkeyPatch, on_cpu: Pipeline) -> None:
    monkeypatch.setattr(TextStage, "open", lambda *_: Texts(on_cpu.dim))
    queries = [
        Query(NO_ID, NO_IDS, NO_IDS, 5, text="three"),
        Query(5, NO_IDS, NO_IDS, 5),
        Query(8, NO_IDS, NO_IDS, 9, text="a dozen"),
    ]
    gpu, cpu = Pipeline.open(bundle, INTERPRETED), Pipeline.open(bundle)
    for _ in range(2):
        assert_same(gpu.recommend(queries), cpu.recommend(queries))


def test_rows_on_the_host(bundle: Path, on_cpu: Pipeline, items: Ids, users: list[int]) -> None:
    pipeline = Pipeline.open(bundle, Device("interpret", "a test", rows="host"))
    queries = drawn(np.random.default_rng(5), items, users, 3, ks=(1, 20))
    assert_same(pipeline.recommend(queries), on_cpu.recommend(queries))
    assert pipeline._recall._index.on_device("interpret").rows_on == "host"


@pytest.mark.parametrize("kind", ["cpu", "interpret"])
def test_the_search_is_where_it_was_decided(bundle: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Not where torch, which an engine may have imported, sees a device: that was inferred before."""
    from fuserec.kernels.search import op

    def infer(backend: str) -> str:
        assert backend != "auto", "the backend is inferred"
        return backend

    monkeypatch.setattr(op, "resolve", infer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pipeline = Pipeline.open(bundle, Device(kind, "a test"))  # type: ignore[arg-type]
    pipeline.warm_up()
    pipeline.warm_up_scores()
    item = int(pipeline.recommend([Query(5, NO_IDS, NO_IDS, 3)])[0].item_ids[0])
    pipeline.recommend([Query(5, NO_IDS, NO_IDS, 3, allow=np.array([item]), rules=Rules(diversity=0.5))])
    vectors = pipeline.encode([Query(5, NO_IDS, NO_IDS, 1)]).vectors
    pipeline.scores(vectors, item)
    pipeline.search(vectors, 3, [NO_IDS])


class Searches:
    """Notes the shapes of searches in the place of one."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, int, bool]] = []

    def search(self, lists: Ids, rows: Ids, k: int, also: Sequence[Ids] | None = None) -> None:
        assert len(lists) == len(rows) and lists.dtype == rows.dtype == np.int64
        self.shapes.append((len(rows), k, also is not None))

    def refresh(self, rows: Ids) -> None:
        assert not self.shapes, "a vector was written after a search of it"


def test_a_gpu_is_warmed_in_every_shape_of_most_calls(bundle: Path) -> None:
    recall = Pipeline.open(bundle, INTERPRETED)._recall
    recall.__dict__["_known"] = searches = Searches()
    recall.warm_up_shapes()
    sizes = (1, 2, 4, 8, 16, 32, 64)
    assert searches.shapes == [(size, k, also) for size in sizes for k in (10, 100) for also in (False, True)]


class AcceleratorError(RuntimeError):
    """What torch raises for an error of CUDA is called so."""


class OutOfMemoryError(RuntimeError):
    """And this where memory runs out."""


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        Exception("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure ; GPU=0"),
    ],
    ids=["torch", "older torch", "Triton", "ONNX Runtime"],
)
def test_lost_device_is_told_from_other_faults(error: Exception) -> None:
    fault = device_fault(error)
    assert isinstance(fault, DeviceLost) and str(error).splitlines()[0] in str(fault)


@pytest.mark.parametrize(
    "error",
    [OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), RuntimeError("CUDA error: out of memory")],
)
def test_no_memory_left_is_no_lost_device(error: Exception) -> None:
    fault = device_fault(error)
    assert isinstance(fault, DeviceError) and not isinstance(fault, DeviceLost)


@pytest.mark.parametrize("error", [ValueError("a text came"), RuntimeError("shapes differ"), KeyError("CUDA")])
def test_other_faults_stay_what_they_are(error: Exception) -> None:
    assert device_fault(error) is None


def test_process_ends_once_it_has_answered() -> None:
    """It takes no call until then, and runs nothing on its way out that could ask the device."""
    code = """
import atexit, threading
from fuserec.serve.faults import Departure

departure = Departure()
departure.hold()
atexit.register(print, "tidied up", flush=True)
departure.begin()
print("answered", flush=True)
departure.hold()
print("took another call", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (os.EX_TEMPFAIL, "answered\n"), done.stderr


def test_a_lost_device_is_a_typed_error(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.open(bundle, INTERPRETED)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Recall, "search_kept", fail)
    monkeypatch.setattr(Recall, "search", fail)
    with pytest.raises(DeviceLost, match="illegal memory access") as lost:
        pipeline.recommend([Query(5, NO_IDS, NO_IDS, 3)])
    assert isinstance(lost.value.__cause__, RuntimeError)
    monkeypatch.setattr(ItemIndex, "search", fail)
    with pytest.raises(DeviceLost):
        pipeline.search(np.ones((1, pipeline.dim), np.float32), 1, [NO_IDS])


def ask_in_child(pipeline: Pipeline, pipe: Connection) -> None:
    try:
        pipeline.recommend([Query(5, NO_IDS, NO_IDS, 3)])
    except DeviceError as error:
        pipe.send(str(error))
    else:
        pipe.send("answered")


@pytest.mark.parametrize(("kind", "said"), [("interpret", "CUDA does not survive a fork"), ("cpu", "answered")])
def test_fork_after_the_device_was_opened(bundle: Path, kind: str, said: str) -> None:
    pipeline = Pipeline.open(bundle, Device(kind, "a test"))  # type: ignore[arg-type]
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    child = context.Process(target=ask_in_child, args=(pipeline, theirs))
    child.start()
    try:
        assert mine.poll(60), "the child did not answer"
        assert said in mine.recv()
    finally:
        child.kill()
        child.join()
