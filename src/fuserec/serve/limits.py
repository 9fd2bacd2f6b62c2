"""What one request may cost: limits that a server refuses to go beyond, by name, and an estimate of the work."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fuserec import contract
from fuserec.errors import UsageError
from fuserec.rules import MAX_DIVERSE_K
from fuserec.serve.query import Query

PARAMETER: Final = "limits"  # of a model's configuration
_CEILINGS: Final = {
    "max_rows": contract.MAX_BATCH,
    "max_k": contract.MAX_K,
    "max_items": contract.MAX_BATCH * contract.MAX_K,
    "max_diverse_items": contract.MAX_BATCH * MAX_DIVERSE_K,
    "max_history": contract.MAX_HISTORY,
    "max_exclude": contract.MAX_EXCLUDE,
    "max_allow": contract.MAX_ALLOW,
    "max_candidates": contract.MAX_CANDIDATES,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request. None exceeds the contract's, which clients check before they call.

    Attributes:
        max_rows: Rows.
        max_k: Items of a list.
        max_items: Items of all lists, the sum of k over the rows.
        max_diverse_items: The same, of rows with a diversity rule: each item is compared with those picked before it.
        max_rule_items: Items that the rules of all rows may fetch. A list is mostly proven with a few times k, and with
            many more where the boosts of most items differ.
        max_history: Ids of a history.
        max_exclude: Ids of an exclusion list.
        max_allow: Ids of an allow list.
        max_candidates: Candidates of a row of `rank`.
        max_request_ms: Milliseconds of work, those in the queue of heavy requests included. A caller's own `timeout`
            counts where it is shorter, and so does a call over gRPC that was cancelled.
        heavy_ms: Estimated milliseconds of work beyond which a request is heavy: a thread of its own and of a lower
            priority answers it, while the process goes on with the others. Less than two plain calls is never heavy.
        heavy_queue: Heavy requests that may wait in one process; the next is refused as UNAVAILABLE at once.

    Raises:
        UsageError: One of them is out of its range.
    """

    max_rows: int = contract.MAX_BATCH
    max_k: int = contract.MAX_K
    max_items: int = contract.MAX_BATCH * contract.MAX_K
    max_diverse_items: int = 10_000
    max_rule_items: int = 10_000_000
    max_history: int = contract.MAX_HISTORY
    max_exclude: int = contract.MAX_EXCLUDE
    max_allow: int = contract.MAX_ALLOW
    max_candidates: int = contract.MAX_CANDIDATES
    max_request_ms: float = 5_000.0
    heavy_ms: float = 5.0
    heavy_queue: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(Limits):
            name, value = field.name, getattr(self, field.name)
            ceiling = _CEILINGS.get(name, math.inf)
            if name.endswith("_ms"):
                if not (math.isfinite(value) and value > 0):
                    raise UsageError(f"invalid {name}={value}: must be a positive number of milliseconds")
            elif not 1 <= value <= ceiling:
                must = "at least 1" if math.isinf(ceiling) else f"1 to {ceiling}"
                raise UsageError(f"invalid {name}={value}: must be {must}")

    def to_parameter(self) -> str:
        """Return the limits as they reach a model, in the text of its configuration."""
        return json.dumps({field.name: getattr(self, field.name) for field in dataclasses.fields(Limits)})

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Limits:
        """Return the limits in a model's configuration, the defaults where it has none."""
        parameter = config.get("parameters", {}).get(PARAMETER)
        return cls(**json.loads(parameter["string_value"])) if parameter else cls()

    def check_rows(self, rows: int) -> None:
        """Raise `ValueError` where a request has too many rows."""
        if rows > self.max_rows:
            raise ValueError(f"invalid rows={rows}: must be 1 to {self.max_rows} (max_rows)")

    def check_items(self, items: int) -> None:
        """Raise `ValueError` where the lists of a request have too many items together."""
        if items > self.max_items:
            raise ValueError(f"invalid sum of k={items}: must be at most {self.max_items} (max_items)")

    def check(self, queries: Sequence[Query]) -> None:
        """Raise `ValueError` where the rows of one request ask for too much together."""
        self.check_items(sum(query.k for query in queries))
        diverse = sum(query.k for query in queries if query.rules.diversity)
        if diverse > self.max_diverse_items:
            raise ValueError(
                f"invalid sum of k={diverse} with diversity: must be at most {self.max_diverse_items} "
                "(max_diverse_items)"
            )


class Estimate:
    """Guesses the work of queries over a catalogue, in milliseconds of one core.

    The numbers are of the search on a Xeon at 2 GHz (docs/serving-bench.md). They need not be right: they tell what
    takes much longer than a plain call from what does not.

    Args:
        n_items: Items.
        dim: Length of a vector.
    """

    _READ, _SCORE, _LIST, _COMPARE, _RULES = 6e-8, 8e-9, 4e-4, 2e-7, 4.0

    def __init__(self, n_items: int, dim: int) -> None:
        self._read_ms, self._score_ms, self._dim = self._READ * n_items * dim, self._SCORE * n_items * dim, dim
        self.plain_ms = self._read_ms + self._score_ms

    def most_items(self, milliseconds: float) -> int:
        """Return the largest k of a plain call of one row that takes no longer."""
        return int((milliseconds - self.plain_ms) / self._LIST)

    def __call__(self, queries: Sequence[Query]) -> float:
        """Return the milliseconds of one request."""
        listed = sum(query.k for query in queries)
        total = self._read_ms + self._score_ms * len(queries) + self._LIST * listed
        if all(query.is_simple for query in queries):
            return total
        diverse = sum(query.k * min(max(10 * query.k, 200), 2_000) for query in queries if query.rules.diversity)
        return self._RULES * total + self._COMPARE * diverse * self._dim
