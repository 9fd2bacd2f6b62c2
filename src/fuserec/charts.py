"""The picture of an evaluation: exposure by popularity group, and metrics by user group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fuserec.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALE, MIDDLE, STRONG = "#b8c4d6", "#7b8fae", "#c8552b"
ROW_INCHES: Final = 0.32


def check_plot(path: Path) -> None:
    """Raise unless a picture can be drawn into such a file, before anything is measured.

    Raises:
        UsageError: matplotlib is not installed or does not know the format.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install matplotlib") from None
    if path.suffix[1:] not in Figure().canvas.get_supported_filetypes():
        raise UsageError(f"--plot came as {path}; expected a name that ends with .png, .svg or .pdf")


def draw_report(document: dict[str, Any], path: Path) -> None:
    """Draw the document of `fuserec evaluate` into a file, whose ending says in which format."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.6 + ROW_INCHES * max(8, _n_rows(document))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    _draw_exposure(left, document["exposure"])
    _draw_user_groups(right, document)
    figure.suptitle(f"{document['recommender']} ({document['route']}), {document['n_users']:,} users")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _n_rows(document: dict[str, Any]) -> int:
    return sum(1 + len(grouping["groups"]) for grouping in document["user_groups"])


def _draw_exposure(axes: Axes, exposure: dict[str, Any]) -> None:
    groups = exposure["groups"]
    shares = (("catalogue", PALE), ("interactions", MIDDLE), ("exposure", STRONG))
    for offset, (what, color) in enumerate(shares):
        heights = [group[f"share_of_{what}"] for group in groups]
        label = f"places in the lists @{exposure['k']}" if what == "exposure" else what
        bars = axes.bar(np.arange(len(groups)) + 0.27 * (offset - 1), heights, 0.25, color=color, label=label)
        axes.bar_label(bars, [f"{height:.0%}" for height in heights], fontsize=8)
    axes.set_xticks(range(len(groups)), [f"{group['group']}\n{group['n_items']:,} items" for group in groups])
    axes.set_ylabel("share")
    axes.set_title(f"exposure by popularity, Gini {exposure['gini']:.2f}", fontsize=10)
    axes.set_ylim(top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_user_groups(axes: Axes, document: dict[str, Any]) -> None:
    """One row a group with its interval; a line marks the mean of all users."""
    metric = next(iter(document["user_groups"][0]["gap"]))
    ticks, labels, row = [], [], 0
    for grouping in document["user_groups"]:
        ticks.append(row)
        labels.append(grouping["by"])
        for group in grouping["groups"]:
            row += 1
            value = group[metric]
            axes.plot([value["low"], value["high"]], [row, row], color=MIDDLE, linewidth=2)
            axes.plot(value["value"], row, "o", color=STRONG, markerfacecolor="white" if group["small"] else STRONG)
            ticks.append(row)
            labels.append(f"{group['group']}  ({group['n_users']:,})")
        row += 1
    axes.axvline(document["metrics"][metric]["value"], color=PALE, zorder=0)
    axes.set_yticks(ticks, labels, fontsize=8)
    for label, text in zip(axes.get_yticklabels(), labels, strict=True):
        if not text.endswith(")"):
            label.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(row - 0.3, -0.7)
    axes.set_xlim(left=0)
    axes.set_title(f"{metric} by user group (users), 95 % intervals; hollow: few users", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
