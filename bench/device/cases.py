"""What the differential run asks: tables that are hard in one way each, and questions of every form over them.

A `Plan` holds what the compiler of the kernels sees (width, form of the query, filters), so that each is compiled
once and answers many tables, batches and k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from fuserec.kernels import Bag, ItemIndex, Lookup

Floats = npt.NDArray[np.float32]
Kind = Literal["dense", "lookup", "bag", "weighted"]
Dtype = Literal["float32", "float16", "bfloat16"]
Way = Literal["host", "device", "rows on host", "known"]
Filters = Literal["none", "exclude", "set", "allow", "allow_each", "both", "nearly_all"]

KS: Final = (10, 1, 100, 2, 1000, 16, 4096, 17, 128, 129, 1024)
BATCHES: Final = (1, 3, 16, 17, 64, 65, 300)


@dataclass(frozen=True)
class Plan:
    """One way to ask.

    Attributes:
        rows: Items of its tables.
        dim: Their width.
        kind: Form of the queries.
        filters: What is left out.
        metric: Of the index.
        codes: Of the index.
        dtype: What holds every entry of the items.
        way: How the search is asked; see `ways.py`.
        queries: How many queries it is asked with, about.
        tables: Kinds of tables, names of `TABLES`; all of them when empty.
        repeats: How often a search is repeated where that is tried.
        interpreted: In a rehearsal it is asked of the interpreted kernels, which take seconds a search.
    """

    rows: int
    dim: int
    kind: Kind = "dense"
    filters: Filters = "none"
    metric: Literal["dot", "cosine"] = "dot"
    codes: Literal["int8", "none"] = "int8"
    dtype: Dtype = "float32"
    way: Way = "host"
    queries: int = 30_000
    tables: tuple[str, ...] = ()
    repeats: int = 10
    interpreted: bool = False

    @property
    def name(self) -> str:
        """As rows of the results name it."""
        rest = [self.metric, self.dtype, self.codes, self.kind, self.filters, self.way]
        return f"{self.rows}x{self.dim} " + " ".join(rest)


_REHEARSED_WAYS: Final[tuple[tuple[Kind, Way], ...]] = (
    ("dense", "device"),
    ("dense", "rows on host"),
    ("lookup", "known"),
)


def full_plans() -> list[Plan]:
    """Return those of the run on a device: a million queries in all."""
    return [
        Plan(20_011, 64),
        Plan(20_011, 128, filters="exclude"),
        Plan(100_003, 128, queries=40_000),
        Plan(100_003, 100, "lookup", "exclude"),
        Plan(1_000_003, 64, queries=8_000),
        Plan(1_000_003, 64, filters="exclude", queries=8_000),
        Plan(20_011, 768),
        Plan(20_011, 768, filters="both", queries=20_000),
        Plan(5_003, 1024, dtype="float16"),
        Plan(5_003, 4096, queries=4_000),
        Plan(20_011, 256, "lookup"),
        Plan(20_011, 64, "bag", metric="cosine"),
        Plan(20_011, 128, "weighted", "exclude", metric="cosine"),
        Plan(20_011, 128, "bag", "allow"),
        Plan(4_093, 65, filters="allow_each"),
        Plan(4_093, 17, filters="both"),
        Plan(20_011, 128, filters="set", dtype="float16"),
        Plan(4_093, 128, filters="nearly_all"),
        Plan(20_011, 128, codes="none", queries=20_000),
        Plan(20_011, 64, filters="both", codes="none", dtype="float16", queries=20_000),
        Plan(127, 64, filters="exclude"),
        Plan(129, 16, queries=40_000),
        Plan(33, 3, filters="exclude", queries=40_000),
        Plan(1, 1, queries=10_000),
        Plan(20_011, 128, filters="exclude", way="device"),
        Plan(20_011, 64, filters="both", metric="cosine", way="device"),
        Plan(20_011, 128, filters="exclude", way="rows on host"),
        Plan(20_011, 128, dtype="bfloat16", way="rows on host", queries=20_000),
        Plan(20_011, 128, "lookup", "exclude", way="known"),
        Plan(20_011, 64, metric="cosine", queries=350_000),
        Plan(4_093, 128, "lookup", queries=100_000),
    ]


def rehearsal_plans() -> list[Plan]:
    """Return a few small ones that take the same ways."""
    return [
        Plan(70, 17, filters="exclude", queries=4, tables=("integers", "equal"), repeats=2, interpreted=True),
        *(
            Plan(40, 16, kind, "exclude", way=way, queries=2, tables=("normal",), repeats=1, interpreted=True)
            for kind, way in _REHEARSED_WAYS
        ),
        Plan(203, 16, filters="exclude", queries=60),
        Plan(64, 33, "bag", "both", "cosine", queries=40),
        Plan(70, 8, "lookup", "allow_each", codes="none", queries=40),
        Plan(31, 5, "weighted", "nearly_all", queries=20),
    ]


@dataclass(frozen=True, eq=False)
class Question:
    """One search.

    Attributes:
        query: As `ItemIndex.search` takes it.
        k: How many items are asked for.
        exclude: As `ItemIndex.search` takes it.
        allow: Likewise.
        kept: (B, N) or (N,) bool: what the filters leave of the items; None for all.
    """

    query: Any
    k: int
    exclude: Any
    allow: Any
    kept: npt.NDArray[np.bool_] | None

    @property
    def batch(self) -> int:
        """Number of queries."""
        if isinstance(self.query, Bag):
            return len(self.query.offsets) - 1
        return len(self.query.ids) if isinstance(self.query, Lookup) else len(self.query)


def indices(plan: Plan, seed: int) -> Iterator[tuple[str, ItemIndex]]:
    """Yield a table of every kind with its name; ids are scattered, so that a row taken for an id shows."""
    for at, (name, make) in enumerate(TABLES.items()):
        if plan.tables and name not in plan.tables:
            continue
        rng = np.random.default_rng((seed, at))
        rows = make(rng, plan.rows, plan.dim)
        if plan.dtype == "float16":
            rows = np.clip(rows, -6e4, 6e4).astype(np.float16).astype(np.float32)
        if plan.dtype == "bfloat16":
            rows = (rows.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        if plan.metric == "cosine":
            rows[(rows == 0).all(1), 0] = 1.0
        ids = np.sort(rng.choice(3 * plan.rows, plan.rows, replace=False)) + 1000
        yield name, ItemIndex.build(rows, rng.permutation(ids), metric=plan.metric, codes=plan.codes)


def questions(plan: Plan, index: ItemIndex, queries: int, seed: int, largest: int = 1024) -> Iterator[Question]:
    """Yield searches over one table until about so many queries are asked; every batch size and k comes by turns."""
    rng = np.random.default_rng(seed)
    # The scores of a batch are held in float64.
    largest = max(1, min(largest, (1 << 28) // index.rows))
    asked, turn = 0, 0
    while asked < queries:
        batch = min(largest, BATCHES[turn % len(BATCHES)] if turn % 2 else largest, queries - asked)
        k = KS[(turn + seed) % len(KS)]
        yield _question(plan, index, batch, k, rng)
        asked += batch
        turn += 1


def _question(plan: Plan, index: ItemIndex, batch: int, k: int, rng: np.random.Generator) -> Question:
    query = _query(plan, index, batch, rng)
    exclude, allow, kept = _filters(plan, index, batch, rng)
    return Question(query, k, exclude, allow, kept)


def _query(plan: Plan, index: ItemIndex, batch: int, rng: np.random.Generator) -> Any:
    """Return queries of this plan's form: some are items, some are random, some small integers."""
    size = max(batch, 64) if plan.kind != "dense" else batch
    # No score may come near the end of float32, or the search refuses the query: sum |q| max |e| stays below it.
    scale = np.float32(min(1.0, 1e36 / (max(index.max_abs, 1e-30) * index.dim * 8)))
    table = _normal(rng, size, index.dim) * scale
    table[::3] = rng.integers(-3, 4, table[::3].shape).astype(np.float32) * scale
    like = index.embeddings[rng.integers(0, index.rows, len(table[1::3]))]
    peak = max(index.max_abs, 1e-30)
    table[1::3] = (like / np.float32(peak)) * scale
    table[(np.abs(table).max(1) < 1e-6 * scale), 0] = scale  # cosine takes no zero query
    if plan.kind == "dense":
        return table
    if plan.kind == "lookup":
        return Lookup(table, rng.integers(0, size, batch))
    lengths = rng.integers(1 if plan.metric == "cosine" else 0, 12, batch)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ids = rng.integers(0, size, offsets[-1])
    if plan.metric == "cosine":  # a bag must not sum to nothing: the same row over and over does not
        ids = np.repeat(rng.integers(0, size, batch), lengths)
    weights = rng.integers(1, 5, offsets[-1]).astype(np.float32) / 4 if plan.kind == "weighted" else None
    return Bag(table, ids, offsets, weights)


def _filters(plan: Plan, index: ItemIndex, batch: int, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Return `exclude`, `allow`, and what both leave."""
    rows, kept = index.rows, None
    exclude: Any = None
    allow: Any = None
    if plan.filters in ("allow", "both"):
        allow = rng.random(rows) < 0.5
        kept = allow
    if plan.filters == "allow_each":
        allow = rng.random((batch, rows)) < rng.random((batch, 1))
        kept = allow
    if plan.filters == "set":
        out = rng.integers(0, rows, max(1, rows // 7))
        exclude = {int(index.ids[row]) for row in out}
        kept = np.ones(rows, np.bool_)
        kept[out] = False
    if plan.filters in ("exclude", "both", "nearly_all"):
        most = rows if plan.filters == "nearly_all" else min(rows, 300)
        lengths = rng.integers(0, most + 1, batch)
        if plan.filters == "nearly_all":
            lengths[::2] = np.maximum(rows - rng.integers(0, 3, len(lengths[::2])), 0)
        kept = np.broadcast_to(True if kept is None else kept, (batch, rows)).copy()
        exclude = []
        for b, length in enumerate(lengths):
            # The best may be among them: those that follow one another in the table as well as any.
            first = rng.integers(0, rows)
            out = np.arange(first, first + length) % rows if b % 2 else rng.permutation(rows)[:length]
            kept[b, out] = False
            exclude.append(index.ids[out])
    return exclude, allow, kept


def _normal(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return rng.standard_normal((rows, dim), dtype=np.float32)


def _integers(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return rng.integers(-3, 4, (rows, dim)).astype(np.float32)


def _few_distinct(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    distinct: Floats = _normal(rng, 1 + rows // 50, dim)
    return np.take(distinct, rng.integers(0, 1 + rows // 50, rows), axis=0)


def _equal(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return np.repeat(_normal(rng, 1, dim), rows, axis=0)


def _clustered(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    centres = _normal(rng, 1 + rows // 1000, dim)[rng.integers(0, 1 + rows // 1000, rows)]
    near: Floats = centres + np.float32(1e-3) * _normal(rng, rows, dim)
    return near


def _spread(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return _normal(rng, rows, dim) * (2.0 ** rng.integers(-40, 40, (rows, 1))).astype(np.float32)


def _huge(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return _normal(rng, rows, dim) * np.float32(1e18)


def _tiny(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return _normal(rng, rows, dim) * (10.0 ** rng.integers(-42, -30, (rows, 1))).astype(np.float32)


def _sparse(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return np.where(rng.random((rows, dim)) < 0.05, _normal(rng, rows, dim), np.float32(0))


def _negative(rng: np.random.Generator, rows: int, dim: int) -> Floats:
    return -np.abs(_normal(rng, rows, dim)) - np.float32(1)


TABLES: Final[dict[str, Callable[[np.random.Generator, int, int], Floats]]] = {
    "normal": _normal,
    "integers": _integers,
    "few distinct": _few_distinct,
    "equal": _equal,
    "clustered": _clustered,
    "spread": _spread,
    "huge": _huge,
    "tiny": _tiny,
    "sparse": _sparse,
    "negative": _negative,
}
