"""Which column of a user's own file plays which part: as told, or guessed from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fuserec.errors import DataError

_USER: Final = (
    "user userid uid username useremail customer customerid customeremail client clientid visitor visitorid "
    "member memberid account accountid email session sessionid"
)
_ITEM: Final = (
    "item itemid iid product productid sku article articleid movie movieid track trackid song songid news newsid"
)


@dataclass(frozen=True)
class Role:
    """A part that a column can play.

    Attributes:
        names: what such columns are called, lower case and without punctuation, likeliest first.
        required: whether a file without one is refused.
    """

    names: tuple[str, ...]
    required: bool = False


def _role(names: str, *, required: bool = False) -> Role:
    return Role(tuple(names.split()), required)


INTERACTION_ROLES: Final = {
    "user": _role(_USER, required=True),
    "item": _role(f"{_ITEM} asin video videoid game gameid book bookid", required=True),
    "time": _role(
        "timestamp time ts eventtime eventtimestamp datetime date createdat created orderdate purchasedat",
        required=True,
    ),
    "rating": _role("rating stars score"),
}
ITEM_ROLES: Final = {
    "item": _role(f"{_ITEM} asin video videoid game gameid book bookid id", required=True),
    "title": _role("title name itemname productname producttitle itemtitle headline"),
    "text": _role("text description desc body content summary plot abstract"),
    "category": _role("category categories genre genres tags tag department class"),
    "year": _role("year releaseyear releasedate published"),
}
USER_ROLES: Final = {"user": _role(f"{_USER} id", required=True)}


def choose_columns(
    path: Path, found: Sequence[str], roles: Mapping[str, Role], told: Mapping[str, str]
) -> dict[str, str]:
    """Return the column of each role that has one.

    Args:
        path: the file, for messages.
        found: the names of its columns.
        roles: what to look for.
        told: column by role, where the user said; an empty name says that there is none.

    Raises:
        DataError: if a required role finds no column, or a column that was told is not there.
    """
    chosen: dict[str, str] = {}
    for role, wanted in roles.items():
        if role in told:
            name = told[role] or None
            if name is not None and name not in found:
                raise DataError(f"{path}: no column {name!r} (--{role}-column); found {', '.join(found)}")
        else:
            name = _guess([column for column in found if column not in {*chosen.values(), *told.values()}], wanted)
        if name is not None:
            chosen[role] = name
        elif wanted.required:
            raise DataError(f"{path}: no column is named like the {role}; found {', '.join(found)}; "
                            f"give --{role}-column NAME")  # fmt: skip
    return chosen


def _guess(found: Sequence[str], role: Role) -> str | None:
    plain = {re.sub(r"[\W_]+", "", column).lower(): column for column in reversed(found)}  # the first of a name wins
    return next((plain[name] for name in role.names if name in plain), None)
