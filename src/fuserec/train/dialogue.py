"""Trains the choice of a reply: the text of a conversation so far is drawn to the text of what was answered."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import lightning.pytorch as lightning
import numpy as np
import polars as pl
import torch
from torch import Tensor

from fuserec.models.checkpoint import USERS_SCHEMA, Checkpoint
from fuserec.models.checks import check_at_least
from fuserec.models.text import TextConfig, TextRetriever
from fuserec.tokens import Tokenizer
from fuserec.train.dialogue_metrics import Questions, baselines, by_novelty, encode_texts, evaluate_replies
from fuserec.train.dialogues import Dialogues, Exchanges, exchanges_of, split_contexts
from fuserec.train.loop import Fitted, fit
from fuserec.train.lora import add_lora, merge_lora
from fuserec.train.losses import info_nce
from fuserec.train.negatives import consumption_keys, is_consumed, log_sampling_probability
from fuserec.train.pretrained import PACKAGED, Pretrained, load_pretrained
from fuserec.train.ragged import IntArray
from fuserec.train.resume import data_digest
from fuserec.train.retrieval import MONITOR, RetrieverRecipe, adamw, trainable
from fuserec.train.run import Run

PROTOCOL: Final = (
    "conversations held out by their first text, ranked among all replies, other known replies to the context excluded"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DialogueRecipe(RetrieverRecipe):
    """Training options. A batch is of pairs of a context and its reply, all negatives of one another.

    Attributes:
        encoder: as `load_pretrained` takes it; it decides which languages are understood.
        speaker: whose turns are the replies.
        max_turns: turns of the conversation so far that are read, the last ones.
        max_tokens: tokens of them that are read, the last ones; of a reply, the first ones.
        lora_rank: rank of the matrices that are trained; 0 trains all weights of the encoder.
        lora_alpha: their product is multiplied by `lora_alpha / lora_rank`.
        temperature: divides the cosine in InfoNCE.
        held_out: share of the conversations that validate, and as many test.
    """

    epochs: int = 8
    batch_size: int = 64
    patience: int = 2
    learning_rate: float = 1e-3
    warmup_steps: int = 10
    dim: int = 384
    encoder: str = PACKAGED
    speaker: str = "agent"
    max_turns: int = 6
    max_tokens: int = 64
    lora_rank: int = 8
    lora_alpha: int = 16
    temperature: float = 0.05
    held_out: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "dim", "max_history", "max_turns", "max_tokens")
        check_at_least(self, 0, "lora_rank")
        for name in ("temperature", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if not 0.0 < self.held_out < 0.5:
            raise ValueError(f"held_out is {self.held_out}; expected 0 < held_out < 0.5")


class Pairs(NamedTuple):
    """One training step.

    Attributes:
        context: (B,) int64 indices into the contexts.
        reply: (B,) int64 item rows.
    """

    context: Tensor
    reply: Tensor


class PairLoader:
    """Iterates over all pairs of a context and a reply to it, in random order."""

    def __init__(self, contexts: IntArray, replies: IntArray, batch_size: int, seed: int) -> None:
        self.contexts = torch.from_numpy(contexts)
        self.replies = torch.from_numpy(replies)
        self.batch_size = batch_size
        self.generator = np.random.default_rng(seed)

    def __iter__(self) -> Iterator[Pairs]:
        order = torch.from_numpy(self.generator.permutation(self.contexts.numel()))
        for chosen in torch.split(order, self.batch_size):
            yield Pairs(self.contexts[chosen], self.replies[chosen])


class DialogueTask(lightning.LightningModule):
    """Each context is told its reply from those to the other contexts of the batch."""

    log_q: Tensor
    known: Tensor
    context_tokens: Tensor

    def __init__(
        self,
        model: TextRetriever,
        recipe: DialogueRecipe,
        exchanges: Exchanges,
        train: IntArray,
        context_tokens: Tensor,
        validation: Questions,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.validation = validation
        answers = exchanges.answers.take(train)
        self.pairs = (train[answers.row_of_value], answers.values)
        n_items = model.config.n_items
        self.register_buffer("log_q", log_sampling_probability(answers.values, n_items), persistent=False)
        # Contexts stand where users do elsewhere, from row 1.
        self.register_buffer("known", consumption_keys(exchanges.answers, n_items), persistent=False)
        self.register_buffer("context_tokens", context_tokens, persistent=False)

    def batches(self) -> PairLoader:
        """Return what is iterated once an epoch."""
        return PairLoader(*self.pairs, self.recipe.batch_size, self.recipe.seed)

    def training_step(self, batch: Pairs, batch_idx: int) -> Tensor:
        """InfoNCE over the replies of the batch; another known reply to a context is no negative of it."""
        unique, position = torch.unique(batch.reply, return_inverse=True)
        encoder = self.model.encoder
        replies = torch.nn.functional.embedding(position, encode_texts(encoder, self.model.tokens[unique]))
        contexts = encode_texts(encoder, self.context_tokens[batch.context])
        known = is_consumed(self.known, batch.context + 1, batch.reply, self.model.config.n_items)
        return info_nce(
            contexts, replies, self.log_q[batch.reply], batch.reply, self.recipe.temperature, not_negative=known
        )

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Log the metrics of all questions at once; the batch carries nothing."""
        scores = evaluate_replies(self.model, self.context_tokens, self.validation)
        self.log(MONITOR, scores[MONITOR], batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        recipe = self.recipe
        return adamw(
            trainable(self.model),
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
        )


def train_dialogue(dataset: Dialogues, recipe: DialogueRecipe, run: Run) -> Checkpoint:
    """Train a checkpoint of architecture "text" whose items are replies and which knows no users.

    What a conversation so far is to it, `recommend(text=...)` says: its turns, a line each.
    """
    run.refuse_start_and_privacy("dialogue")
    exchanges = exchanges_of(dataset, recipe.speaker, recipe.max_turns)
    split = split_contexts(exchanges, recipe.held_out, recipe.seed)
    pretrained = load_pretrained(recipe.encoder)
    document = read_from_end(pretrained.tokenizer)
    # The caller's random state is not ours to move.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, exchanges, pretrained)
        tokenizer = Tokenizer(document, max_tokens=recipe.max_tokens, pad_id=model.encoder.pad_id)
        tokens = torch.from_numpy(tokenizer(exchanges.contexts))
        validation, test = (Questions.about(exchanges, part) for part in (split.validation, split.test))
        compared = baselines(model, tokens, exchanges, split.train, test)
        # The projection starts as the identity, and so it stays: there is little to learn it from.
        model.encoder.projection.requires_grad_(False)
        if recipe.lora_rank:
            add_lora(model.encoder, rank=recipe.lora_rank, alpha=recipe.lora_alpha)
        tuned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        task = DialogueTask(model, recipe, exchanges, split.train, tokens, validation)
        fitted = fit(
            task,
            task.batches(),
            monitor=MONITOR,
            epochs=recipe.epochs,
            patience=recipe.patience,
            run=run,
            identity={**dataclasses.asdict(recipe), "architecture": "text", "data": data_digest(dataset.turns)},
        )
        task.cpu().load_state_dict(fitted.state)
        if recipe.lora_rank:
            merge_lora(model.encoder)
    model.eval().requires_grad_(True).refresh()
    scores = {
        "recipe_name": "dialogue",
        "protocol": PROTOCOL,
        "validation": evaluate_replies(model, tokens, validation),
        "test": evaluate_replies(model, tokens, test),
        "test_by_reply": by_novelty(model, tokens, exchanges, split.train, test),
        "baselines": compared,
    }
    metrics = scores | _counts(exchanges, recipe, fitted, model, tuned, test)
    logger.info("dialogue: test %s after %d epochs, %.0f s", metrics["test"], fitted.epochs, fitted.seconds)
    return Checkpoint(
        architecture="text",
        arguments=dataclasses.asdict(model.config),
        items=_items_table(exchanges),
        users=pl.DataFrame(schema=USERS_SCHEMA),
        metrics=metrics,
        state=model.state_dict(),
        tokenizer=document,
    )


def read_from_end(tokenizer: str) -> str:
    """Return a `tokenizer.json` that cuts long texts at their beginning: what was said last matters most."""
    document = json.loads(tokenizer)
    truncation = {"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0}
    document["truncation"] = (document.get("truncation") or truncation) | {"direction": "Left"}
    return json.dumps(document, ensure_ascii=False)


def build_model(recipe: DialogueRecipe, exchanges: Exchanges, pretrained: Pretrained) -> TextRetriever:
    """Make the untuned model, with the tokens of the replies."""
    config = TextConfig(
        n_items=len(exchanges.replies),
        encoder=pretrained.config,
        dim=recipe.dim,
        max_history=recipe.max_history,
        max_tokens=recipe.max_tokens,
        n_blocks=0,
    )
    model = TextRetriever(config)
    model.encoder.transformer.load_state_dict(pretrained.state)
    tokenizer = Tokenizer(pretrained.tokenizer, max_tokens=recipe.max_tokens, pad_id=model.encoder.pad_id)
    tokens = torch.from_numpy(tokenizer(exchanges.replies))
    model.tokens[1:, : tokens.shape[1]] = tokens
    return model


def _counts(
    exchanges: Exchanges, recipe: DialogueRecipe, fitted: Fitted, model: TextRetriever, tuned: int, test: Questions
) -> dict[str, Any]:
    return {
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "train_seconds": round(fitted.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tuned_parameters": tuned,
        "n_contexts": len(exchanges.contexts),
        "n_replies": len(exchanges.replies),
        "n_test_users": int(test.targets.size),
        "recipe": dataclasses.asdict(recipe),
    }


def _items_table(exchanges: Exchanges) -> pl.DataFrame:
    n_items = len(exchanges.replies)
    return pl.DataFrame(
        {
            "item_id": np.arange(1, n_items + 1),
            "title": exchanges.replies,
            "genres": pl.Series([[]] * n_items, dtype=pl.List(pl.String)),
            "year": pl.Series([None] * n_items, dtype=pl.Int32),
            "count": exchanges.counts,
        }
    )
