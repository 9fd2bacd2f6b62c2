"""Trains the cross-encoder: what a user had last and a candidate as one text, to a click and a rating."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any, Final

import lightning.pytorch as lightning
import torch
from torch import Tensor

from fuserec.errors import DataError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least
from fuserec.models.ranker_text import HEADS, TextRanker, TextRankerConfig, parse_heads
from fuserec.models.text_encoder import transformer_config
from fuserec.tokens import Tokenizer
from fuserec.train.data import DataSet
from fuserec.train.item_text import item_texts
from fuserec.train.loop import fit
from fuserec.train.lora import add_lora, merge_lora
from fuserec.train.pretrained import PACKAGED, Pretrained, first_layers, load_pretrained
from fuserec.train.ranking_data import Ratings, split_ratings
from fuserec.train.ranking_text_data import Positions, PositionSampler, SampledUsers, sample_users
from fuserec.train.ranking_text_metrics import PROTOCOL, popularity_metrics, text_ranker_metrics
from fuserec.train.resume import data_digest
from fuserec.train.retrieval import adamw, items_table, trainable, users_table
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out

AUTO: Final = "auto"
MONITOR: Final = "validation_gain"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRankerRecipe:
    """Training options. A batch is of positions of users' sequences, drawn at random.

    A step reads `batch_size * (1 + n_negatives)` texts of up to `(max_history + 1) * max_tokens` tokens, so the budget
    is one of steps and not of passes over the data.

    Attributes:
        epochs: at most this many times `steps` steps, each followed by a validation.
        steps: steps of an epoch.
        batch_size: positions a step.
        learning_rate: of AdamW, reached after `warmup_steps`.
        weight_decay: decoupled, as in AdamW.
        warmup_steps: steps over which the learning rate rises from 0.
        patience: epochs without a better validation after which training stops.
        seed: of initial weights, dropout and drawing; on a CPU equal seeds give equal metrics.
        encoder: as `load_pretrained` takes it; it decides which languages are understood.
        n_layers: layers of it that are kept, the first ones; 0 keeps all.
        lora_rank: rank of the updates that are trained; 0 trains all weights of the encoder.
        lora_alpha: they are multiplied by `lora_alpha / lora_rank`.
        max_history: items of the history that are read, the last ones.
        max_tokens: tokens of an item's text that are read.
        dropout: of activations before the heads.
        tasks: what is learned, separated by commas: click, rating; "auto" is all that the data allow.
        click_weight: weight of the loss of this task in the sum.
        rating_weight: as above.
        n_negatives: items drawn uniformly for each consumed one.
        n_evaluated: users that metrics are computed on, drawn once.
    """

    epochs: int = 4
    steps: int = 75
    batch_size: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_steps: int = 20
    patience: int = 2
    seed: int = 0
    encoder: str = PACKAGED
    n_layers: int = 3
    lora_rank: int = 8
    lora_alpha: int = 16
    max_history: int = 5
    max_tokens: int = 12
    dropout: float = 0.1
    tasks: str = AUTO
    click_weight: float = 1.0
    rating_weight: float = 0.1
    n_negatives: int = 3
    n_evaluated: int = 100

    def __post_init__(self) -> None:
        check_at_least(self, 1, "epochs", "steps", "batch_size", "patience", "n_negatives", "n_evaluated")
        check_at_least(self, 0, "weight_decay", "warmup_steps", "seed", "n_layers", "lora_rank")
        check_at_least(self, 1, "max_history")
        check_at_least(self, 2, "max_tokens")
        for name in ("learning_rate", "lora_alpha", "click_weight", "rating_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a positive number")
        if self.tasks != AUTO:
            parse_heads(self.tasks)


class TextRankerTask(lightning.LightningModule):
    """The weighted sum of the losses of the tasks."""

    def __init__(
        self,
        model: TextRanker,
        recipe: TextRankerRecipe,
        positions: PositionSampler,
        validation: SampledUsers,
        mean_rating: float,
    ) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.positions = positions
        self.validation = validation
        self.mean_rating = mean_rating

    def training_step(self, batch: Positions, batch_idx: int) -> Tensor:
        """Return the loss."""
        heads = self.model.heads
        if "click" not in heads:
            batch = batch.without_negatives()
        said = self.model.rank_tower.packed(batch.history, batch.candidates)
        losses: list[Tensor] = []
        if "click" in heads:
            losses.append(self.recipe.click_weight * self._click_loss(said[..., 0], batch))
        if "rating" in heads:
            losses.append(self.recipe.rating_weight * self._rating_loss(said[:, 0, 1], batch.rating))
        return torch.stack(losses).sum()

    def _click_loss(self, logits: Tensor, batch: Positions) -> Tensor:
        """Binary cross-entropy of the target against the negatives, as if either label were as frequent."""
        label = torch.zeros_like(logits)
        label[:, 0] = 1.0
        counted = (batch.candidates != 0).float()
        offset = math.log(self.recipe.n_negatives)
        loss: Tensor = torch.nn.functional.binary_cross_entropy_with_logits(logits - offset, label, weight=counted)
        return loss

    def _rating_loss(self, said: Tensor, given: Tensor) -> Tensor:
        """Squared error in standard deviations, over what is rated; 0 if nothing is."""
        rated = given.isfinite()
        error = (said - torch.where(rated, given, said)) / self.model.rank_tower.rating_scale
        loss: Tensor = error.square().sum() / rated.sum().clamp(min=1)
        return loss

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Log what is gained over guessing: of log-loss where clicks are learned, else of the squared error."""
        scores = text_ranker_metrics(self.model, self.validation, self.mean_rating, ranking=False)
        if "log_loss" in scores:
            value = math.log(2.0) - scores["log_loss"]
        else:
            value = 1.0 - scores["mse"] / scores["mse_of_mean"] if scores else 0.0
        self.log(MONITOR, value, batch_size=1)

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        recipe = self.recipe
        return adamw(
            trainable(self.model),
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
        )


def train_text_ranker(dataset: DataSet, recipe: TextRankerRecipe, run: Run) -> Checkpoint:
    """Train a checkpoint of architecture "ranker-text".

    Raises:
        DataError: if ratings are to be learned and there are none, or no user has two interactions to learn from.
    """
    run.refuse_start_and_privacy("ranker-text")
    split = leave_one_out(dataset)
    if int(split.train.lengths.max()) < 2:
        raise DataError("no user has two interactions left to learn from; expected at least one user with 4 of them")
    ratings = split_ratings(dataset, split)
    mean = ratings.mean if ratings.exist else 0.0
    recipe = dataclasses.replace(recipe, tasks=_tasks(recipe, ratings))
    pretrained = load_pretrained(recipe.encoder)
    # The caller's random state is not ours to move.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build_model(recipe, item_texts(dataset.items), pretrained)
        if ratings.exist:
            model.rank_tower.rating_mean.fill_(mean)
            model.rank_tower.rating_scale.fill_(ratings.scale)
        if recipe.lora_rank:
            add_lora(model.rank_tower, rank=recipe.lora_rank, alpha=recipe.lora_alpha)
        tuned = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        positions = PositionSampler(split, ratings, recipe.max_history, recipe.n_negatives)
        validation, test = sample_users(split, ratings, recipe.max_history, recipe.n_evaluated)
        task = TextRankerTask(model, recipe, positions, validation, mean)
        fitted = fit(
            task,
            positions.batches(recipe.steps, recipe.batch_size, recipe.seed),
            monitor=MONITOR,
            epochs=recipe.epochs,
            patience=recipe.patience,
            run=run,
            identity={
                **dataclasses.asdict(recipe),
                "architecture": "ranker-text",
                "data": data_digest(dataset.interactions, dataset.items),
            },
        )
        task.cpu().load_state_dict(fitted.state)
        if recipe.lora_rank:
            merge_lora(model.rank_tower)
    model.eval().requires_grad_(True)
    metrics = {
        "recipe_name": "ranker-text",
        "protocol": PROTOCOL,
        "validation": text_ranker_metrics(model, validation, mean),
        "test": text_ranker_metrics(model, test, mean),
        "baselines": {"popularity": popularity_metrics(test)},
        "tasks": list(model.heads),
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "train_seconds": round(fitted.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tuned_parameters": tuned,
        "n_test_users": int(test.targets.size),
        "recipe": dataclasses.asdict(recipe),
    }
    logger.info("ranker-text: test %s after %d epochs, %.0f s", metrics["test"], fitted.epochs, fitted.seconds)
    return Checkpoint(
        architecture="ranker-text",
        arguments=dataclasses.asdict(model.config),
        items=items_table(dataset),
        users=users_table(split),
        metrics=metrics,
        state=model.state_dict(),
        tokenizer=pretrained.tokenizer,
        ids=dataset.ids,
    )


def build_model(recipe: TextRankerRecipe, texts: list[str], pretrained: Pretrained) -> TextRanker:
    """Make the untuned model, with the tokens of the items.

    Raises:
        DataError: if the encoder does not put tokens around a text, or reads fewer than these options ask for.
    """
    if recipe.n_layers:
        pretrained = first_layers(pretrained, recipe.n_layers)
    pad_id = int(transformer_config(pretrained.config).pad_token_id or 0)
    # What is a word of a text must not be a mark between texts.
    tokenizer = Tokenizer(pretrained.tokenizer, max_tokens=recipe.max_tokens + 1, pad_id=pad_id, marks=False)
    around = tokenizer([""])[0]
    if around.size != 2:
        raise DataError(f"encoder {recipe.encoder!r} puts {around.size} tokens around a text; expected 2, as BERT does")
    try:
        config = TextRankerConfig(
            n_items=len(texts),
            encoder=pretrained.config,
            first_token=int(around[0]),
            max_history=recipe.max_history,
            max_tokens=recipe.max_tokens,
            dropout=recipe.dropout,
            tasks=recipe.tasks,
        )
    except ValueError as error:
        raise DataError(f"encoder {recipe.encoder!r} does not fit the options: {error}") from error
    model = TextRanker(config)
    model.rank_tower.transformer.load_state_dict(pretrained.state)
    tokens = torch.from_numpy(tokenizer(texts))[:, 1:]
    model.rank_tower.tokens[1:, : tokens.shape[1]] = tokens
    return model


def _tasks(recipe: TextRankerRecipe, ratings: Ratings) -> str:
    if recipe.tasks == AUTO:
        return ",".join(HEADS) if ratings.exist else HEADS[0]
    if "rating" in parse_heads(recipe.tasks) and not ratings.exist:
        raise DataError(
            "the interactions hold no rating to learn the task rating from; expected a column rating with numbers, "
            "or tasks without it"
        )
    return recipe.tasks
