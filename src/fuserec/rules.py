"""What a caller asks of a list of recommendations beside the best items: caps, boosts, diversity.

Server and client share this one definition; on the wire it is a JSON object. Categories are those of `items.parquet`
(its column `genres`); one that the catalogue does not have changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from fuserec.untrusted.documents import parse_json

MAX_CATEGORIES: Final = 100
MAX_JSON: Final = 20_000  # characters
# Far beyond every score, so that it puts a category first or last; sums of them stay within float32.
MAX_BOOST: Final = 1e30
MAX_DIVERSE_K: Final = 1_000  # what diversity costs grows with k times the pool that it picks from
# Takes the place of a category's name: every category that is not named itself.
ANY: Final = "*"


@dataclass(frozen=True)
class Rules:
    """Rules for one list; they apply in this order: boosts, then caps and diversity while items are picked.

    Attributes:
        boosts: Category to what its items' scores gain (or lose, if negative), on the scale of the scores; an item
            of several boosted categories gains their sum.
        caps: Category to how many of its items may be in the list; `"*"` stands for each category that is not named.
            An item of several categories counts in each, and is passed over once one of them is full.
        diversity: From 0, the best scores, to 1, items as unlike each other as can be: maximal marginal relevance
            (Carbonell and Goldstein, 1998) with lambda = 1 - diversity.

    Raises:
        ValueError: One of them is out of its range; the message says which.
    """

    boosts: Mapping[str, float] = field(default_factory=dict)
    caps: Mapping[str, int] = field(default_factory=dict)
    diversity: float = 0.0

    def __post_init__(self) -> None:
        for name, table in (("boosts", self.boosts), ("caps", self.caps)):
            if not isinstance(table, Mapping) or not all(isinstance(key, str) and key for key in table):
                raise ValueError(f"{name} came as {table!r}, expected categories with a number each")
            if len(table) > MAX_CATEGORIES:
                raise ValueError(f"{name} came with {len(table)} categories, expected at most {MAX_CATEGORIES}")
        for category, boost in self.boosts.items():
            if not _is_number(boost) or not -MAX_BOOST <= boost <= MAX_BOOST:
                raise ValueError(
                    f"the boost of {category!r} came as {boost!r}, expected -{MAX_BOOST:g} to {MAX_BOOST:g}"
                )
        for category, cap in self.caps.items():
            if isinstance(cap, bool) or not isinstance(cap, int) or cap < 0:
                raise ValueError(f"the cap of {category!r} came as {cap!r}, expected a whole number, 0 or more")
        if not _is_number(self.diversity) or not 0.0 <= self.diversity <= 1.0:
            raise ValueError(f"diversity came as {self.diversity!r}, expected 0 to 1")
        # Nobody may change what was checked.
        object.__setattr__(self, "boosts", MappingProxyType(dict(self.boosts)))
        object.__setattr__(self, "caps", MappingProxyType(dict(self.caps)))

    def __bool__(self) -> bool:
        """Whether there is any rule."""
        return bool(self.boosts or self.caps or self.diversity)

    def check_k(self, k: int) -> None:
        """Raise `ValueError` where a list of k items cannot be asked for under these rules."""
        if self.diversity and k > MAX_DIVERSE_K:
            raise ValueError(f"k came as {k} with diversity, expected at most {MAX_DIVERSE_K}")

    def to_json(self) -> str:
        """Return the rules as they travel; empty where there are none."""
        if not self:
            return ""
        return json.dumps({"boosts": dict(self.boosts), "caps": dict(self.caps), "diversity": self.diversity})

    @classmethod
    def from_json(cls, text: str) -> Rules:
        """Read what `to_json` wrote, or a caller of the raw protocol: an object with any of the three names.

        Raises:
            ValueError: It is something else.
        """
        if not text:
            return NO_RULES
        if len(text) > MAX_JSON:
            raise ValueError(f"rules came with {len(text)} characters, expected at most {MAX_JSON}")
        try:
            document = parse_json(text)
        except ValueError as error:
            raise ValueError(f"rules {error}") from None
        known = [each.name for each in dataclasses.fields(cls)]
        if not document.keys() <= set(known):
            raise ValueError(f"rules came as {text[:80]!r}, expected an object with {', '.join(known)}")
        return cls(**document)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NO_RULES: Final = Rules()
