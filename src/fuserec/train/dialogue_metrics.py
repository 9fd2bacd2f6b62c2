"""How well replies are ranked, and what simpler means make of the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fuserec.models.text import TextRetriever
from fuserec.models.text_encoder import TextEncoder
from fuserec.train.dialogues import Exchanges
from fuserec.train.evaluation import K
from fuserec.train.metrics import hit_rate, rank_catalogue, summarize
from fuserec.train.ragged import IntArray, Ragged

# Few texts a chunk waste little on padding; fewer than these leave the arithmetic idle.
TEXT_CHUNK: Final = 32
# Words are told apart by their token modulo this, so that a list of many replies needs little memory.
WORD_BUCKETS: Final = 4096


@dataclass(frozen=True)
class Questions:
    """Contexts asked about, once for each known reply.

    Attributes:
        contexts: (Q,) int64 indices into the contexts.
        targets: (Q,) int64 item rows of the reply that is asked for.
        others: (Q rows) item rows of the other known replies, which are right too and are left out of the ranking.
    """

    contexts: IntArray
    targets: IntArray
    others: Ragged

    @classmethod
    def about(cls, exchanges: Exchanges, contexts: IntArray) -> Questions:
        """Ask about some contexts, given as (n,) int64 indices."""
        answers = exchanges.answers.take(contexts)
        rows = answers.row_of_value
        others = [
            [reply for reply in answers[row] if reply != target]
            for row, target in zip(rows, answers.values, strict=True)
        ]
        return cls(contexts[rows], answers.values, Ragged.from_rows(others))

    def take(self, chosen: IntArray) -> Questions:
        """Return some of the questions, given as (n,) int64 indices."""
        return Questions(self.contexts[chosen], self.targets[chosen], self.others.take(chosen))


def encode_texts(encoder: TextEncoder, tokens: Tensor) -> Tensor:
    """Encode (N, T) int64 tokens, texts of like length together: (N, dim) float32 unit vectors in the order given."""
    lengths = (tokens != encoder.pad_id).sum(dim=1)
    order = lengths.argsort(stable=True)
    parts = [encoder(tokens[chunk, : max(1, int(lengths[chunk].max()))]) for chunk in torch.split(order, TEXT_CHUNK)]
    return torch.cat(parts).index_select(0, order.argsort())


@torch.no_grad()
def evaluate_replies(model: TextRetriever, context_tokens: Tensor, questions: Questions) -> dict[str, float]:
    """Rank all replies for each question by the cosine of the two texts.

    Args:
        model: its items are the replies; dropout is off during the call.
        context_tokens: (C, T) int64, of all contexts.
        questions: what is asked.
    """
    was_training = model.training
    model.eval()
    asked, place = np.unique(questions.contexts, return_inverse=True)
    contexts = encode_texts(model.encoder, context_tokens[torch.from_numpy(asked)])[torch.from_numpy(place)]
    replies = encode_texts(model.encoder, model.tokens[1:])
    model.train(was_training)
    return _score(contexts, replies, questions)


def by_novelty(
    model: TextRetriever, context_tokens: Tensor, exchanges: Exchanges, train: IntArray, questions: Questions
) -> dict[str, dict[str, float]]:
    """Score questions whose reply occurs in the training part apart from those whose reply is known by its text alone.

    Returns:
        For "known" and "new": the metrics and "n", the number of questions; kinds that do not occur are left out.
    """
    known = np.isin(questions.targets, exchanges.answers.take(train).values)
    scores: dict[str, dict[str, float]] = {}
    for name, chosen in (("known", np.flatnonzero(known)), ("new", np.flatnonzero(~known))):
        if chosen.size:
            scores[name] = evaluate_replies(model, context_tokens, questions.take(chosen)) | {"n": float(chosen.size)}
    return scores


def baselines(
    model: TextRetriever, context_tokens: Tensor, exchanges: Exchanges, train: IntArray, questions: Questions
) -> dict[str, dict[str, float]]:
    """Score simpler means on the same questions.

    Args:
        model: not tuned yet.
        context_tokens: (C, T) int64, of all contexts.
        exchanges: what was answered to what.
        train: (n,) int64, indices of the contexts that may be learned from.
        questions: what is asked.

    Returns:
        "random": what a random order scores on average; "untuned": the encoder as it came; "words": cosine of TF-IDF
        (Sparck Jones 1972) between the context and the reply with the contexts that it answered.
    """
    words = _word_vectors(context_tokens, model.tokens[1:], exchanges, train, model.encoder.pad_id)
    return {
        "random": _random(len(exchanges.replies)),
        "untuned": evaluate_replies(model, context_tokens, questions),
        "words": _score(words[0][torch.from_numpy(questions.contexts)], words[1], questions),
    }


def _score(contexts: Tensor, replies: Tensor, questions: Questions) -> dict[str, float]:
    ranking = rank_catalogue(contexts.cpu(), replies.cpu(), questions.others, torch.from_numpy(questions.targets), K)
    return {"hr@1": hit_rate(ranking.ranks, 1)} | summarize(ranking, K)


def _random(n_items: int) -> dict[str, float]:
    """What a random order of so many items scores on average."""
    ranks = torch.arange(1, min(K, n_items) + 1, dtype=torch.float64)
    return {
        "hr@1": 1.0 / n_items,
        f"hr@{K}": ranks.numel() / n_items,
        f"ndcg@{K}": float((1.0 / torch.log2(ranks + 1.0)).sum()) / n_items,
        f"mrr@{K}": float((1.0 / ranks).sum()) / n_items,
    }


def _word_vectors(
    context_tokens: Tensor, reply_tokens: Tensor, exchanges: Exchanges, train: IntArray, pad_id: int
) -> tuple[Tensor, Tensor]:
    """Return TF-IDF vectors of the contexts, (C, W) float32, and of the replies, (I, W) float32, unit or zero."""
    contexts, replies = _bag(context_tokens, pad_id), _bag(reply_tokens, pad_id)
    answers = exchanges.answers.take(train)
    replies.index_add_(0, torch.from_numpy(answers.values - 1), contexts[torch.from_numpy(train[answers.row_of_value])])
    documents = (replies > 0).sum(dim=0)
    rarity = torch.log((1.0 + replies.shape[0]) / (1.0 + documents))
    normalize = torch.nn.functional.normalize
    return normalize(contexts * rarity, dim=1), normalize(replies * rarity, dim=1)


def _bag(tokens: Tensor, pad_id: int) -> Tensor:
    """Count tokens: (N, T) int64 -> (N, W) float32."""
    counts = torch.zeros(tokens.shape[0], WORD_BUCKETS)
    return counts.scatter_add_(1, tokens % WORD_BUCKETS, (tokens != pad_id).float())
