"""What `fuserec evaluate` shows a person, from the same document that `--json` prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from fuserec.display import out


def evaluation(document: dict[str, Any]) -> None:
    """Show the report of one recommender, and how it compares with another."""
    side = f"{document['recommender']} ({document['route']})"
    out.print(f"{side}: {document['split']}, {document['n_users']:,} users; {document['protocol']}")
    if document["ignored"]:
        out.print(f"{document['ignored']:,} items of the histories are unknown to the recommender", style="yellow")
    _metrics(document["metrics"])
    _exposure(document["exposure"])
    for grouping in document["user_groups"]:
        _user_group(grouping)
    if left_out := document["columns_left_out"]:
        out.print(f"too many values to group users by: {', '.join(left_out)}", style="dim")
    if "against" in document:
        _difference(document)
    drawn = document["bootstrap"]
    out.print(f"in brackets: {drawn['confidence']:.0%} bootstrap interval over users, {drawn['resamples']:,} resamples",
              style="dim")  # fmt: skip


def _metrics(metrics: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name.partition("@")[0] for name in metrics))
    ks = list(dict.fromkeys(name.partition("@")[2] for name in metrics))
    table = Table("", *(f"@{k}" for k in ks))
    for name in names:
        table.add_row(name, *(_estimate(metrics[f"{name}@{k}"]) for k in ks))
    out.print(table)


def _exposure(exposure: dict[str, Any]) -> None:
    table = Table("popularity", "items", "of the catalogue", "of interactions", f"of the places @{exposure['k']}")
    for group in exposure["groups"]:
        shares = [group[f"share_of_{what}"] for what in ("catalogue", "interactions", "exposure")]
        table.add_row(group["group"], f"{group['n_items']:,}", *(f"{share:.1%}" for share in shares))
    out.print(table)
    out.print(f"Gini coefficient of exposure {exposure['gini']:.4f} (0: every item alike, 1: one item only)")


def _user_group(grouping: dict[str, Any]) -> None:
    names = list(grouping["gap"])
    table = Table(f"by {grouping['by']}", "users", *names)
    for group in grouping["groups"]:
        n_users = f"{group['n_users']:,}" + (" (few)" if group["small"] else "")
        table.add_row(group["group"], n_users, *(_estimate(group[name]) for name in names))
    out.print(table)
    for name, gap in grouping["gap"].items():
        if gap is not None:
            out.print(f"{name}: {gap['best']} above {gap['worst']} by {_estimate(gap)}")


def _difference(document: dict[str, Any]) -> None:
    other = document["against"]
    table = Table("", f"{document['recommender']}", f"{other['recommender']} ({other['route']})", "difference")
    for name, difference in document["difference"].items():
        values = (side["metrics"][name]["value"] for side in (document, other))
        is_clear = difference["low"] > 0 or difference["high"] < 0
        table.add_row(name, *(f"{value:.4f}" for value in values), _estimate(difference) + (" *" if is_clear else ""))
    out.print(table)
    out.print("* zero is outside the interval of the paired differences")


def _estimate(estimate: dict[str, Any]) -> str:
    value = f"{estimate['value']:.4f}"
    return f"{value} \\[{estimate['low']:.4f}, {estimate['high']:.4f}]" if "low" in estimate else value
