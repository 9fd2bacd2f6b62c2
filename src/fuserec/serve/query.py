"""What `recommend` is asked for one user."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fuserec.rules import NO_RULES, Rules
from fuserec.serve.users import NO_IDS, Ids


@dataclass(frozen=True)
class Query:
    """What is asked for one user.

    Attributes:
        user_id: The caller's own id, `NO_ID` for somebody known only by a history.
        history: (L,) item ids, oldest first. When it names no item of the catalogue, what the bundle has stored
            of this user takes its place.
        exclude: (E,) item ids that must not be recommended, beside those already seen.
        k: How many items to return.
        history_only: The history that the bundle has stored of the user is neither read nor excluded. What a model has
            learned of a user it knows is read all the same; without a user id nothing of anybody is.
        text: What the user is after, in place of who they are; empty for none. What they have seen stays excluded.
        allow: (A,) the only item ids that may be recommended; empty where all may.
        rules: Boosts, caps, diversity.

    Raises:
        ValueError: The rules are not for a list of k.
    """

    user_id: int
    history: Ids
    exclude: Ids
    k: int
    history_only: bool = False
    text: str = ""
    allow: Ids = field(default_factory=lambda: NO_IDS)
    rules: Rules = NO_RULES

    def __post_init__(self) -> None:
        if self.rules:
            self.rules.check_k(self.k)

    def copy(self) -> Query:
        """Return the query with arrays of its own: those of a request are views of what the server takes back."""
        lists = {name: getattr(self, name).copy() for name in ("history", "exclude", "allow")}
        return replace(self, **lists)

    @property
    def is_simple(self) -> bool:
        """Whether one search answers it: there are no rules, and no list of what may be recommended."""
        return not (len(self.allow) or self.rules)

    @property
    def is_plain(self) -> bool:
        """Whether it asks for the best items of a user, and nothing else."""
        lists = len(self.history) or len(self.exclude) or len(self.allow)
        return not (lists or self.history_only or self.text or self.rules)
