"""Rules give what looking at every item would give: compared with a slow, obvious reference, and by what must hold."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuserec.contract import NO_ID
from fuserec.errors import BundleError
from fuserec.kernels import ItemIndex, TopK
from fuserec.manifest import Manifest
from fuserec.rules import ANY, Rules
from fuserec.serve.engines import Engine, Tensors
from fuserec.serve.pipeline import Answer, Pipeline
from fuserec.serve.popularity import Popularity
from fuserec.serve.query import Query
from fuserec.serve.ranking import RankStage
from fuserec.serve.recall import Among, Batch, Recall
from fuserec.serve.reranking import Reranker
from fuserec.serve.stores import Categories, UserStore, read_items
from fuserec.serve.users import NO_IDS, Users

N_ITEMS, DIM, N_USERS = 600, 8, 40
GENRES = ["Drama", "Comedy", "War", "Noir", "Western"]
rng = np.random.default_rng(11)
ITEM_IDS = rng.permutation(np.arange(N_ITEMS) * 3 + 10)
VECTORS = rng.standard_normal((N_ITEMS, DIM)).astype(np.float32)
COUNTS = rng.integers(0, 50, N_ITEMS)
# Unequal: the first is in half of the items, the last in one of fifty; some items have none.
SETS = [
    [name for name, share in zip(GENRES, (0.5, 0.3, 0.2, 0.1, 0.02), strict=True) if rng.random() < share]
    for _ in range(N_ITEMS)
]
USER_IDS = np.arange(N_USERS) + 5
USER_VECTORS = rng.standard_normal((N_USERS + 1, DIM)).astype(np.float32)
GENRES_OF = {int(item): names for item, names in zip(ITEM_IDS, SETS, strict=True)}
ROW_OF = {int(item): row for row, item in enumerate(ITEM_IDS)}
DIRECTIONS = VECTORS / np.linalg.norm(VECTORS.astype(np.float64), axis=1, keepdims=True)
COSINES = (DIRECTIONS @ DIRECTIONS.T).tolist()
UNKNOWN = 10**12


class TableTower(Engine):
    """A user tower that looks the vector up."""

    def run(self, inputs: Tensors) -> Tensors:
        return {"user_vector": USER_VECTORS[inputs["user"]]}


class RowRanker(Engine):
    """A ranker whose opinion is a number made of the rows of user and item."""

    def run(self, inputs: Tensors) -> Tensors:
        mixed = (inputs["user"][:, None] * 7919 + inputs["candidates"] * 104_729) % 1009
        return {"scores": np.repeat(mixed[..., None] / 1009, 2, axis=-1).astype(np.float32)}


def build(ranker: bool = False) -> Pipeline:
    stored = UserStore(USER_IDS, ITEM_IDS[: 2 * N_USERS], np.arange(N_USERS + 1) * 2)
    return Pipeline(
        TableTower(),
        ItemIndex.build(VECTORS, ITEM_IDS),
        Popularity(ITEM_IDS, COUNTS),
        Users(ITEM_IDS, stored),
        max_history=5,
        reranker=Reranker(RankStage(RowRanker(), ["click"], 5), 30, 0.5) if ranker else None,
        categories=Categories(ITEM_IDS, pl.Series(SETS, dtype=pl.List(pl.String))),
        version=4,
    )


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build()


def ask(pipeline: Pipeline, query: Query) -> Answer:
    [answer] = pipeline.recommend([query])
    return answer


def reference(everything: Answer, rules: Rules, k: int) -> list[int]:
    """Return the ids that the rules make of all items in their order: sorted, looped over, and picked one by one."""
    items = [int(item) for item in everything.item_ids if item != NO_ID]
    base = dict(zip(items, everything.scores.astype(np.float64).tolist(), strict=False))
    boosted = {item: base[item] + sum(rules.boosts.get(name, 0.0) for name in GENRES_OF[item]) for item in items}
    order = sorted(items, key=lambda item: -boosted[item])  # stable, as ties are to be
    cap_of = {name: rules.caps.get(name, rules.caps.get(ANY, math.inf)) for name in GENRES}

    def fits(item: int, chosen: list[int]) -> bool:
        counts = Counter(name for other in chosen for name in GENRES_OF[other])
        return all(counts[name] < cap_of[name] for name in GENRES_OF[item])

    order = [item for item in order if fits(item, [])]
    chosen: list[int] = []
    if rules.diversity:
        pool = order[: min(max(10 * k, 200), 2_000)]
        low, high = boosted[pool[-1]] if pool else 0.0, boosted[pool[0]] if pool else 0.0

        def marginal(item: int) -> float:
            relevance = (boosted[item] - low) / (high - low) if high > low else 0.0
            likeness = max((cosine(item, other) for other in chosen), default=0.0)
            return (1 - rules.diversity) * relevance - rules.diversity * likeness

        while len(chosen) < k and (left := [item for item in pool if item not in chosen and fits(item, chosen)]):
            chosen.append(max(left, key=marginal))
    for item in order:
        if len(chosen) < k and item not in chosen and fits(item, chosen):
            chosen.append(item)
    return chosen


def cosine(one: int, other: int) -> float:
    return COSINES[ROW_OF[one]][ROW_OF[other]]


RULES = [
    pytest.param(Rules(boosts={"Noir": 0.7, "Drama": -0.4}), id="boosts"),
    pytest.param(Rules(boosts={"Western": 1e30}), id="one category first"),
    pytest.param(Rules(boosts={"Drama": -1e30, "Comedy": -1e30}), id="two categories last"),
    pytest.param(Rules(caps={"Drama": 2, "Comedy": 1}), id="caps"),
    pytest.param(Rules(caps={ANY: 1}), id="each category once"),
    pytest.param(Rules(caps={ANY: 0, "Western": 3}), id="one category or none"),
    pytest.param(Rules(diversity=0.5), id="diversity"),
    pytest.param(Rules(diversity=1.0), id="nothing but diversity"),
    pytest.param(Rules({"War": 0.5}, {"War": 3, "Drama": 4}, 0.3), id="all three"),
    pytest.param(Rules({"War": 50.0}, {ANY: 1}, 0.7), id="caps that empty the pool"),
]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("ranked", [False, True], ids=["retrieved", "reranked"])
@pytest.mark.parametrize("k", [1, 10, 33])
def test_equals_the_reference(rules: Rules, ranked: bool, k: int) -> None:
    pipeline = build(ranked)
    exclude = ITEM_IDS[:: N_ITEMS // 20]
    for user in (5, 17, UNKNOWN):
        answer = ask(pipeline, Query(user, NO_IDS, exclude, k, rules=rules))
        want = reference(ask(pipeline, Query(user, NO_IDS, exclude, N_ITEMS)), rules, k)
        assert answer.item_ids.tolist() == want + [NO_ID] * (k - len(want)), f"user {user}"
        assert np.isneginf(answer.scores[len(want) :]).all()
        assert answer.fallback == (user == UNKNOWN) and answer.version == 4


def hostile(kind: str) -> tuple[np.ndarray, list[list[str]]]:
    """Vectors and categories that make it hard to know a list from few items."""
    hard = np.random.default_rng(3)
    vectors = hard.standard_normal((N_ITEMS, DIM)).astype(np.float32)
    sets = [[f"c{number}"] for number in hard.integers(0, 12, N_ITEMS)]
    if kind == "all score alike":
        vectors[:] = 1.0
    elif kind == "few scores":
        vectors = np.repeat(vectors[:4], N_ITEMS // 4, axis=0)
    elif kind == "alike in a category":
        centres = 4 * hard.standard_normal((12, DIM))
        vectors += centres[[int(names[0][1:]) for names in sets]].astype(np.float32)
    elif kind == "one category":
        sets = [["c0"] for _ in sets]
    elif kind == "a category each":
        sets = [[f"c{row}"] for row in range(N_ITEMS)]
    return vectors, sets


HOSTILE_RULES = {
    "caps": Rules(caps={ANY: 2}),
    "a cap": Rules(caps={"c0": 1}),
    "a huge cap": Rules(caps={"c0": 10**30}),
    "nothing may come": Rules(caps={ANY: 0}),
    "boosts beyond scores": Rules({"c0": 1e6, "c1": -1e6, "c2": 1e7, "c3": 1e-6}),
    "a boost each": Rules({f"c{number}": 0.1 * number**1.5 for number in range(99)}),
    "last of all": Rules({f"c{number}": -1e30 for number in range(99)}),
    "diversity": Rules(diversity=0.5),
    "diversity alone": Rules(diversity=1.0),
    "everything": Rules({"c1": 3.0, "c4": -2.0}, {ANY: 4, "c1": 1}, 0.4),
}


@pytest.mark.parametrize(
    "kind", ["all score alike", "few scores", "alike in a category", "one category", "a category each"]
)
@pytest.mark.parametrize("rules", HOSTILE_RULES)
def test_hostile_catalogues_give_the_reference_too(kind: str, rules: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, sets = hostile(kind)
    monkeypatch.setitem(globals(), "VECTORS", vectors)
    monkeypatch.setitem(globals(), "SETS", sets)
    monkeypatch.setitem(globals(), "GENRES_OF", {int(item): names for item, names in zip(ITEM_IDS, sets, strict=True)})
    monkeypatch.setitem(globals(), "GENRES", sorted({names[0] for names in sets}))
    directions = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    monkeypatch.setitem(globals(), "COSINES", np.round(directions @ directions.T, 12).tolist())
    pipeline, rule = build(), HOSTILE_RULES[rules]
    everything = {user: ask(pipeline, Query(user, NO_IDS, NO_IDS, N_ITEMS)) for user in (5, UNKNOWN)}
    asked = [(user, k) for user in (5, UNKNOWN) for k in (1, 7, 40)]
    asked += [(5, N_ITEMS - 3)] if kind == "few scores" and not rule.diversity else []
    answers = pipeline.recommend([Query(user, NO_IDS, NO_IDS, k, rules=rule) for user, k in asked])
    for (user, k), answer in zip(asked, answers, strict=True):
        got = answer.item_ids.tolist()
        if rule.diversity:  # exact duplicates differ in the last bit of a cosine: what is picked must score as well
            assert_diverse(got, everything[user], rule, k)
        else:
            want = reference(everything[user], rule, k)
            assert got == want + [NO_ID] * (k - len(want)), f"user {user}, k {k}"


def assert_diverse(got: list[int], everything: Answer, rules: Rules, k: int) -> None:
    """Hold a diverse list to the reference's categories, and to as good a choice at each step."""
    want = reference(everything, rules, k)
    assert sum(item != NO_ID for item in got) == len(want), "another length"
    caps = {name: rules.caps.get(name, rules.caps.get(ANY, math.inf)) for name in GENRES}
    counts = Counter(name for item in got if item != NO_ID for name in GENRES_OF[item])
    assert all(counts[name] <= caps[name] for name in GENRES)
    alike = [max((cosine(item, other) for other in got[:at]), default=0.0) for at, item in enumerate(got[: len(want)])]
    wanted = [max((cosine(item, other) for other in want[:at]), default=0.0) for at, item in enumerate(want)]
    assert alike == pytest.approx(wanted, abs=1e-6) or got[: len(want)] == want


ids_of_any_kind = st.lists(st.sampled_from([*ITEM_IDS.tolist(), UNKNOWN, NO_ID]), max_size=60)
any_rules = st.builds(
    Rules,
    st.dictionaries(st.sampled_from([*GENRES, "Nowhere"]), st.floats(-5, 5), max_size=3),
    st.dictionaries(st.sampled_from([*GENRES, "Nowhere", ANY]), st.integers(0, 6), max_size=3),
    st.sampled_from([0.0, 0.0, 0.4, 1.0]),
)
any_query = st.builds(
    lambda user, history, exclude, k, allow, rules: Query(
        user, np.array(history, np.int64), np.array(exclude, np.int64), k, allow=np.array(allow, np.int64), rules=rules
    ),
    st.sampled_from([*USER_IDS.tolist(), UNKNOWN, NO_ID]),
    ids_of_any_kind,
    ids_of_any_kind,
    st.integers(1, 40),
    st.one_of(st.just([]), ids_of_any_kind),
    st.one_of(st.just(Rules()), any_rules),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(queries=st.lists(any_query, min_size=1, max_size=6))
def test_what_holds_for_every_answer(queries: list[Query]) -> None:
    pipeline = build()
    for query, answer in zip(queries, pipeline.recommend(queries), strict=True):
        listed = [int(item) for item in answer.item_ids if item != NO_ID]
        alone = ask(pipeline, query)
        assert alone.item_ids.tobytes() == answer.item_ids.tobytes(), "other rows changed the answer"
        assert alone.scores.tobytes() == answer.scores.tobytes(), "other rows changed the scores"
        assert len(answer.item_ids) == query.k and len(set(listed)) == len(listed)
        forbidden = {*query.exclude.tolist(), *query.history.tolist()}
        if query.user_id in USER_IDS:
            at = 2 * (query.user_id - 5)
            forbidden |= set(ITEM_IDS[at : at + 2].tolist())
        assert not forbidden & set(listed), "an item came back that must not"
        allowed = set(query.allow.tolist()) if len(query.allow) else set(ITEM_IDS.tolist())
        assert set(listed) <= allowed, "an item came back that was not allowed"
        caps = query.rules.caps
        counts = Counter(name for item in listed for name in GENRES_OF[item])
        limits = {name: caps.get(name, caps.get(ANY, math.inf)) for name in GENRES}
        assert all(counts[name] <= limits[name] for name in GENRES), f"caps {caps}, came {counts}"
        if len(listed) < query.k:
            rest = (allowed & set(ITEM_IDS.tolist())) - forbidden - set(listed)
            full = {name for name in GENRES if counts[name] >= limits[name]}
            assert all(full & set(GENRES_OF[item]) for item in rest), "there was room for another item"


def test_no_more_is_fetched_than_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = build()
    fetched: list[tuple[int, int]] = []
    search = Recall.search

    def spy(self: Recall, batch: Batch, rows: Sequence[int], k: int, among: Among | None = None) -> TopK:
        fetched.append((len(rows), k))
        return search(self, batch, rows, k, among)

    monkeypatch.setattr(Recall, "search", spy)
    ask(pipeline, Query(5, NO_IDS, NO_IDS, 10, rules=Rules(caps={"Noir": 9})))
    assert fetched == [(1, 37)], "one fetch with some room is enough"
    fetched.clear()
    ask(pipeline, Query(5, NO_IDS, NO_IDS, 10, rules=Rules(boosts={"Western": 1e30})))
    assert len(fetched) == 2 and fetched[1][1] < 37, f"the second is of the few westerns alone, came {fetched}"
    fetched.clear()
    ask(pipeline, Query(5, NO_IDS, NO_IDS, 10, rules=Rules(caps={ANY: 0, "Western": 3})))
    assert len(fetched) == 1, f"categories that may have no item are not fetched, came {fetched}"
    fetched.clear()
    pipeline.recommend([Query(user, NO_IDS, NO_IDS, 10) for user in (5, 6, 7)])
    assert fetched == [(3, 10)], "rows without rules are one search of what was asked"


def test_unknown_categories_and_ids_are_counted_and_change_nothing(pipeline: Pipeline) -> None:
    rules = Rules({"Drama": 0.2, "Nowhere": 9.0}, {"Comedy": 2, "Nowhere": 0, "Never": 0, ANY: 5})
    known = Rules({"Drama": 0.2}, {"Comedy": 2, ANY: 5})
    allow = ITEM_IDS[::2]
    mixed = ask(pipeline, Query(5, NO_IDS, NO_IDS, 9, allow=np.append(allow, [UNKNOWN, NO_ID]), rules=rules))
    clean = ask(pipeline, Query(5, NO_IDS, NO_IDS, 9, allow=allow, rules=known))
    assert (mixed.ignored, clean.ignored) == (3, 0), "Nowhere, Never and one id"
    assert mixed.item_ids.tolist() == clean.item_ids.tolist()


@pytest.mark.parametrize("user", [5, UNKNOWN], ids=["known", "fallback"])
def test_allowing_only_what_is_unknown_leaves_nothing(pipeline: Pipeline, user: int) -> None:
    answer = ask(pipeline, Query(user, NO_IDS, NO_IDS, 3, allow=np.array([UNKNOWN])))
    assert (answer.item_ids.tolist(), answer.ignored) == ([NO_ID] * 3, 1)


def test_allow_in_small_pieces_is_the_same(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = [Query(user, NO_IDS, NO_IDS, 5, allow=ITEM_IDS[user : user + 50]) for user in range(5, 12)]
    whole = pipeline.recommend(queries)
    monkeypatch.setattr("fuserec.serve.recall._MASK_BYTES", 2 * N_ITEMS)
    for one, other in zip(whole, pipeline.recommend(queries), strict=True):
        assert one.item_ids.tolist() == other.item_ids.tolist()


def test_boosted_scores_are_returned(pipeline: Pipeline) -> None:
    everything = ask(pipeline, Query(5, NO_IDS, NO_IDS, N_ITEMS))
    base = dict(zip(everything.item_ids.tolist(), everything.scores.tolist(), strict=True))
    answer = ask(pipeline, Query(5, NO_IDS, NO_IDS, 20, rules=Rules({"War": 0.5, "Noir": 0.25})))
    for item, score in zip(answer.item_ids.tolist(), answer.scores.tolist(), strict=True):
        gain = 0.5 * ("War" in GENRES_OF[item]) + 0.25 * ("Noir" in GENRES_OF[item])
        assert score == np.float32(base[item] + gain)


def test_diverse_lists_are_less_alike(pipeline: Pipeline) -> None:
    def likeness(diversity: float) -> float:
        items = ask(pipeline, Query(9, NO_IDS, NO_IDS, 10, rules=Rules(diversity=diversity))).item_ids.tolist()
        return float(np.mean([cosine(one, other) for one in items for other in items if one < other]))

    levels = [likeness(diversity) for diversity in (0.0, 0.5, 1.0)]
    assert levels[0] > levels[1] > levels[2], levels


def test_a_long_diverse_list_is_refused() -> None:
    with pytest.raises(ValueError, match="k came as 1001 with diversity, expected at most 1000"):
        Query(5, NO_IDS, NO_IDS, 1001, rules=Rules(diversity=0.1))


def test_categories_of_any_shape() -> None:
    sets = pl.Series([["b", "a", "a"], None, [], ["a", "b"], [None, "c"]], dtype=pl.List(pl.String))
    categories = Categories(np.array([9, 8, 7, 6, 5]), sets)
    assert set(categories.numbers) == {"a", "b", "c"} and categories.n_groups == 3
    groups = categories.groups_of(np.array([9, 8, 7, 6, 5, 1]))
    assert groups[0] == groups[3] and groups.tolist()[1:3] == [0, 0] and groups[5] == 0, "unknown ids have none"
    weights = np.zeros(3)
    weights[categories.numbers["b"]] = 2.0
    assert categories.sums(weights)[groups].tolist() == [2.0, 0.0, 0.0, 2.0, 0.0, 0.0]
    with_a = categories.groups_with(categories.numbers["a"]).tolist()
    assert with_a == [groups[0]] and categories.of_group(0).tolist() == []


def test_a_catalogue_without_categories(bundle: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(bundle)
    items = pl.read_parquet(bundle / "items.parquet")
    items.drop("genres").write_parquet(tmp_path / "items.parquet")
    assert len(Categories.of(read_items(tmp_path, manifest))) == 0
    items.with_columns(genres=pl.lit("Drama")).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(BundleError, match="genres String"):
        Categories.of(read_items(tmp_path, manifest))
    assert set(Categories.of(read_items(bundle, manifest)).numbers) == {"Even", "Odd"}
