"""The report of an evaluation: what each user got, averaged with intervals, and how it is spread over items and users.

With one relevant item a user, at rank r (1 is best), HR@K = recall@K = [r <= K], NDCG@K = [r <= K] / log2(r + 1),
MRR@K = [r <= K] / r, precision@K = [r <= K] / K and F1@K = 2 [r <= K] / (K + 1); what cannot be read off a list of K
items does not count. A report is made of JSON values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl

from fuserec.train.bootstrap import CONFIDENCE, N_RESAMPLES, FloatArray, estimate_gap, estimate_means
from fuserec.train.exposure import Popularity, exposure_by_group, gini, novelty_of_lists, times_shown
from fuserec.train.groups import Grouping, by_activity, by_columns
from fuserec.train.questions import Answers, Questions
from fuserec.train.ragged import IntArray

# Intervals of fewer users than this say little; such groups are marked, and are neither best nor worst.
SMALL_GROUP: Final = 20
COMPARED: Final = ("ndcg", "hr")


def metrics_of_users(ranks: IntArray, k: int) -> dict[str, FloatArray]:
    """Return each metric of each user by its name: (E,) ranks -> (E,) float64."""
    hit = (ranks <= k).astype(np.float64)
    return {
        f"hr@{k}": hit,
        f"ndcg@{k}": hit / np.log2(ranks + 1.0),
        f"mrr@{k}": hit / ranks,
        f"precision@{k}": hit / k,
        f"recall@{k}": hit,
        f"f1@{k}": 2 * hit / (k + 1),
    }


def report(
    questions: Questions, answers: Answers, popularity: Popularity, ks: Sequence[int], users: pl.DataFrame | None
) -> dict[str, Any]:
    """Measure the answers to the questions.

    Args:
        questions: of E users, at least one.
        answers: to them, lists of at least max(ks) items.
        popularity: of the catalogue.
        ks: lengths of the lists that are measured; exposure and groups are of the first.
        users: user_id and what is known of each user, or None.

    Returns:
        n_users, n_repeats, ignored: E; targets that the user already had; items of histories that are unknown.
        metrics: name to value, low and high, the interval over users; coverage has no interval.
        exposure: k, Gini coefficient, and the shares of each popularity group.
        user_groups: for each way to group, the groups and the gap between best and worst.
        baselines: metrics of showing everybody the most popular items, by the name of the baseline, "popularity".
        columns_left_out: columns of users that have too many values to group by.
        bootstrap: how the intervals were made.
    """
    lines = popularity.lines(answers.top)
    per_user = _per_user(answers, lines, popularity, ks)
    metrics: dict[str, Any] = _estimates(per_user)
    n_items = popularity.item_ids.size
    for k in ks:
        shown = times_shown(lines[:, :k], n_items)
        metrics[f"coverage@{k}"] = {"value": np.count_nonzero(shown) / n_items}
    shown = times_shown(lines[:, : ks[0]], n_items)
    groupings, left_out = by_columns(questions, users)
    return {
        "n_users": len(questions),
        "n_repeats": questions.n_repeats,
        "ignored": answers.ignored,
        "metrics": metrics,
        "baselines": {"popularity": _means(popularity.ranks(questions), ks)},
        "exposure": {
            "k": ks[0],
            "gini": gini(shown),
            "groups": [dataclasses.asdict(group) for group in exposure_by_group(shown, popularity)],
        },
        "user_groups": [_compare(grouping, per_user, ks[0]) for grouping in [by_activity(questions), *groupings]],
        "columns_left_out": left_out,
        "bootstrap": {"method": "percentile, over users", "confidence": CONFIDENCE, "resamples": N_RESAMPLES},
    }


def differences(a: Answers, b: Answers, popularity: Popularity, ks: Sequence[int]) -> dict[str, Any]:
    """Estimate by how much the metrics of `a` exceed those of `b`, both being answers to the same questions."""
    of_a, of_b = (_per_user(answers, popularity.lines(answers.top), popularity, ks) for answers in (a, b))
    return _estimates({name: values - of_b[name] for name, values in of_a.items()})


def _means(ranks: IntArray, ks: Sequence[int]) -> dict[str, float]:
    return {name: float(values.mean()) for k in ks for name, values in metrics_of_users(ranks, k).items()}


def _per_user(answers: Answers, lines: IntArray, popularity: Popularity, ks: Sequence[int]) -> dict[str, FloatArray]:
    per_user: dict[str, FloatArray] = {}
    for k in ks:
        per_user |= metrics_of_users(answers.ranks, k)
        per_user[f"novelty@{k}"] = novelty_of_lists(lines[:, :k], popularity)
    return per_user


def _estimates(per_user: dict[str, FloatArray]) -> dict[str, Any]:
    estimates = estimate_means(np.stack(list(per_user.values()), axis=1))
    return {name: dataclasses.asdict(estimate) for name, estimate in zip(per_user, estimates, strict=True)}


def _compare(grouping: Grouping, per_user: dict[str, FloatArray], k: int) -> dict[str, Any]:
    compared = {f"{name}@{k}": per_user[f"{name}@{k}"] for name in COMPARED}
    groups: list[dict[str, Any]] = []
    for place, label in enumerate(grouping.labels):
        members = grouping.member == place
        n_users = int(members.sum())
        values = {name: value[members] for name, value in compared.items()}
        groups.append({"group": label, "n_users": n_users, "small": n_users < SMALL_GROUP, **_estimates(values)})
    gaps = {name: _gap(grouping, groups, name, values) for name, values in compared.items()}
    return {"by": grouping.by, "groups": groups, "gap": gaps}


def _gap(grouping: Grouping, groups: list[dict[str, Any]], name: str, values: FloatArray) -> dict[str, Any] | None:
    """Compare the best with the worst group; None where there are no two groups that are large enough.

    Which is best was seen in the same users, so that of many groups the gap looks wider than it is.
    """
    places = [place for place, group in enumerate(groups) if not group["small"]]
    if len(places) < 2:
        return None
    worst, *_, best = sorted(places, key=lambda place: groups[place][name]["value"])
    estimate = estimate_gap(values[grouping.member == best], values[grouping.member == worst])
    return {"best": groups[best]["group"], "worst": groups[worst]["group"], **dataclasses.asdict(estimate)}
