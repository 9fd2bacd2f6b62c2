"""What `fuserec evaluate` and `fuserec explain` show a person, from the same documents that `--json` prints."""

from __future__ import annotations

from typing import Any, Final

from fuserec.catalogue import Catalogue
from fuserec.terminal import out, print_table, printable, sign

BAR: Final = 16


def evaluation(document: dict[str, Any]) -> None:
    """Show the report of one recommender, and how it compares with another."""
    side = f"{document['recommender']} ({document['route']})"
    out.print(f"{side}: {document['split']}, {document['n_users']:,} users; {document['protocol']}")
    if document["ignored"]:
        out.print(f"{document['ignored']:,} items of the histories are unknown to the recommender", style="yellow")
    if document["n_repeats"]:
        repeats = f"{document['n_repeats']:,} users took an item that they had before"
        out.print(f"{repeats}: torch ranks it, bundles and servers never show it", style="yellow")
    _metrics(document["metrics"])
    baseline = ", ".join(f"{name} {value:.4f}" for name, value in document["baselines"]["popularity"].items())
    out.print(f"the most popular items for everybody: {baseline}")
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


def explanation(document: dict[str, Any], catalogue: Catalogue | None) -> None:
    """Show what each item of the history adds to the score, the one that matters most first."""
    item = document["item_id"]
    title = f"{item} {printable(catalogue.title(item))}" if catalogue else f"item {item}"
    out.print(f"{title}: score {document['score']:.4f}, without the history {document['baseline']:.4f}")
    if not document["history"]:
        out.print("no history is known to explain it by", style="yellow")
        return
    raises, lowers = sign("█", "#"), sign("▒", "-")
    history = sorted(document["history"], key=lambda line: -abs(line["contribution"]))
    longest = max(abs(line["contribution"]) for line in history)
    if longest == 0.0:
        out.print("the history makes no difference to this score", style="yellow")
        return
    rows = []
    for line in history:
        value = line["contribution"]
        bar = (raises if value > 0 else lowers) * round(BAR * abs(value) / longest)
        about = [catalogue.title(line["item_id"])] if catalogue else []
        rows.append((line["item_id"], f"{value:+.4f}", bar, *about))
    print_table(("item", "contribution", "", *(["title"] if catalogue else [])), rows)
    out.print(f"{document['method']}; {raises} raises the score, {lowers} lowers it", style="dim")
    if catalogue is None:
        out.print("no titles: give --items REPOSITORY or items.parquet", style="dim")


def _metrics(metrics: dict[str, Any]) -> None:
    names = list(dict.fromkeys(name.partition("@")[0] for name in metrics))
    ks = list(dict.fromkeys(name.partition("@")[2] for name in metrics))
    rows = [(name, *(_estimate(metrics[f"{name}@{k}"]) for k in ks)) for name in names]
    print_table(("", *(f"@{k}" for k in ks)), rows)


def _exposure(exposure: dict[str, Any]) -> None:
    rows = []
    for group in exposure["groups"]:
        shares = [group[f"share_of_{what}"] for what in ("catalogue", "interactions", "exposure")]
        name = f"{group['group']} (to {group['cut']:.0%})"
        rows.append((name, f"{group['n_items']:,}", *(f"{share:.1%}" for share in shares)))
    places = f"of the places @{exposure['k']}"
    print_table(("by popularity", "items", "of the catalogue", "of interactions", places), rows)
    out.print(f"Gini coefficient of exposure {exposure['gini']:.4f} (0: every item alike, 1: one item only)")


def _user_group(grouping: dict[str, Any]) -> None:
    names = list(grouping["gap"])
    rows = []
    for group in grouping["groups"]:
        n_users = f"{group['n_users']:,}" + (" (few)" if group["small"] else "")
        rows.append((group["group"], n_users, *(_estimate(group[name]) for name in names)))
    print_table((f"by {grouping['by']}", "users", *names), rows)
    for name, gap in grouping["gap"].items():
        if gap is not None:
            out.print(f"{name}: {gap['best']} above {gap['worst']} by {_estimate(gap)}")


def _difference(document: dict[str, Any]) -> None:
    other = document["against"]
    out.print(f"A is {document['recommender']} ({document['route']}), B is {other['recommender']} ({other['route']})")
    rows = []
    for name, difference in document["difference"].items():
        values = (side["metrics"][name]["value"] for side in (document, other))
        is_clear = difference["low"] > 0 or difference["high"] < 0
        rows.append((name, *(f"{value:.4f}" for value in values), _estimate(difference) + (" *" if is_clear else "")))
    print_table(("", "A", "B", "A - B"), rows)
    out.print("* zero is outside the interval of the paired differences")


def _estimate(estimate: dict[str, Any]) -> str:
    value = f"{estimate['value']:.4f}"
    return f"{value} [{estimate['low']:.4f}, {estimate['high']:.4f}]" if "low" in estimate else value
