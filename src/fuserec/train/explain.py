"""Which items of a history moved the score of a recommendation, and by how much.

    leave-one-out          the score less the score without the item: exact, and true of any model
    integrated gradients   gradients along the way from a history of zero vectors to the real one (Sundararajan et al.
                           2017); the contributions sum to score - baseline, within 1 %, as leave-one-out does not

A history is what the model reads of it, the last `max_history` items; what is left out is not replaced by older items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from captum.attr import LayerIntegratedGradients
from numpy.typing import NDArray
from torch import Tensor, nn

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import PADDING, Retriever
from fuserec.train.answering import retriever_of, rows_of

# Norms and ReLUs make some models jump near the zero vectors; more steps see it. The sum tells when they are enough.
STEPS: Final = (64, 256, 1024, 4096)
TOLERANCE: Final = 0.01
ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True)
class Explanation:
    """Why an item is recommended.

    Attributes:
        score: similarity of user and item.
        baseline: the score without a history: an empty one for leave-one-out, zero vectors for integrated gradients.
        item_ids: (L,) int64 the history that was read, oldest first.
        contributions: (L,) float32 what each of them adds to the score; negative where it speaks against the item.
    """

    score: float
    baseline: float
    item_ids: NDArray[np.int64]
    contributions: NDArray[np.float32]


def explain(
    checkpoint: Checkpoint, user_id: int | None, history: NDArray[np.int64] | None, item_id: int, method: str
) -> Explanation:
    """Explain the score of an item for a user.

    Args:
        checkpoint: of a retriever.
        user_id: None, or an id that the checkpoint does not know, for somebody known by the history alone.
        history: (L,) item ids, oldest first, those the checkpoint does not know are skipped; None for what the
            checkpoint holds of the user.
        item_id: the item.
        method: a key of `METHODS`.

    Raises:
        UsageError: if the method, the item or the user are unknown, nothing is left of the history, or the method does
            not apply to the model.
    """
    if method not in METHODS:
        raise UsageError(f"method is {method!r}; expected {' or '.join(METHODS)}")
    model = retriever_of(checkpoint)
    catalogue = checkpoint.items["item_id"].to_numpy()
    item = int(rows_of(catalogue, np.array([item_id]))[0])
    if item == 0:
        raise UsageError(f"item {item_id} is not in the catalogue of {catalogue.size:,} items; expected one that is")
    user = 0 if user_id is None else int(rows_of(checkpoint.users["user_id"].to_numpy(), np.array([user_id]))[0])
    given = _stored_history(checkpoint, user, user_id) if history is None else history
    rows = rows_of(catalogue, given)
    read = rows[rows > 0][-model.config.max_history :]
    if read.size == 0:
        raise UsageError(f"none of {given.size} items of the history is in the catalogue; expected at least one")
    with torch.no_grad():
        vector = model.encode_items(torch.tensor([item]))[0]
    return METHODS[method](_Case(model, user, vector), read, catalogue[read - 1])


@dataclass(frozen=True)
class _Case:
    """The score of one item for one user, as a function of the history."""

    model: Retriever
    user: int
    item_vector: Tensor

    def __call__(self, histories: Tensor) -> Tensor:
        """Score histories: (B, L) int64 rows, left-padded with 0 -> (B,) float32."""
        users = torch.full((len(histories),), self.user)
        scores: Tensor = self.model.user_tower(users, histories) @ self.item_vector
        return scores


@torch.no_grad()
def _leave_one_out(case: _Case, read: NDArray[np.int64], item_ids: NDArray[np.int64]) -> Explanation:
    whole = torch.from_numpy(read)
    length = len(whole)
    # Line 0 is the whole history, line i + 1 lacks item i, the last line is empty.
    lines = torch.full((length + 2, length), PADDING)
    lines[0] = whole
    for place in range(length):
        lines[place + 1, 1:] = torch.cat([whole[:place], whole[place + 1 :]])
    scores = case(lines)
    contributions = scores[0] - scores[1:-1]
    return Explanation(float(scores[0]), float(scores[-1]), item_ids, contributions.numpy())


def _integrated_gradients(case: _Case, read: NDArray[np.int64], item_ids: NDArray[np.int64]) -> Explanation:
    table = getattr(case.model.user_tower, "item_embedding", None)
    if not isinstance(table, nn.Embedding):
        raise UsageError(
            "integrated gradients follow a table of item vectors, which this model lacks; expected leave-one-out"
        )
    history = torch.from_numpy(read)[None]
    with torch.no_grad():
        score = float(case(history))
        # Captum walks from the padding's vectors to the items' and leaves the mask as the history has it; so does this.
        handle = table.register_forward_hook(lambda module, rows, vectors: _with_padding(table, rows[0], len(read)))
        try:
            baseline = float(case(history))
        finally:
            handle.remove()
    attribute = LayerIntegratedGradients(case, table).attribute
    for n_steps in STEPS:
        attribution = attribute(
            history, baselines=torch.full_like(history, PADDING), n_steps=n_steps, internal_batch_size=ROWS_AT_ONCE
        )
        contributions = attribution[0, : len(read)].detach().sum(dim=-1)  # BERT4Rec reads a mask behind the history
        if abs(float(contributions.sum()) - (score - baseline)) <= TOLERANCE * float(contributions.abs().sum()):
            return Explanation(score, baseline, item_ids, contributions.numpy())
    raise UsageError(
        f"contributions miss score - baseline = {score - baseline:.4g} by more than {TOLERANCE:.0%} after "
        f"{STEPS[-1]} steps: the model is too uneven for integrated gradients; expected leave-one-out"
    )


def _with_padding(table: nn.Embedding, rows: Tensor, length: int) -> Tensor:
    """Look rows up, (1, >= length), as if the first `length` were padding."""
    emptied = rows.clone()
    emptied[:, :length] = PADDING
    return nn.functional.embedding(emptied, table.weight)


def _stored_history(checkpoint: Checkpoint, user: int, user_id: int | None) -> NDArray[np.int64]:
    if user == 0:
        who = "no user was named" if user_id is None else f"user {user_id} is not among those of the checkpoint"
        raise UsageError(f"{who}; expected a known user or a history")
    return np.asarray(checkpoint.users["history"][user - 1].to_numpy())


METHODS: Final[dict[str, Callable[[_Case, NDArray[np.int64], NDArray[np.int64]], Explanation]]] = {
    "leave-one-out": _leave_one_out,
    "integrated-gradients": _integrated_gradients,
}
