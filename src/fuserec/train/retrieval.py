"""What all recipes of retrievers have in common: split, seed, fit, select the best epoch, score it, write it down."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

import lightning.pytorch as lightning
import polars as pl
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fuserec.errors import DataError
from fuserec.models.checkpoint import ITEMS_SCHEMA, Checkpoint
from fuserec.models.checks import check_at_least, check_share
from fuserec.models.retriever import Retriever
from fuserec.train.batches import Batches
from fuserec.train.data import DataSet
from fuserec.train.evaluation import PROTOCOL, K, evaluate, popularity_baseline
from fuserec.train.loop import Fitted, fit
from fuserec.train.pruning import PruneUnits
from fuserec.train.resume import data_digest
from fuserec.train.run import Run
from fuserec.train.split import Split, leave_one_out
from fuserec.train.start import plant
from fuserec.train.windows import WindowLoader

if TYPE_CHECKING:
    from fuserec.train.privacy import PrivateTask, UserLoader

MONITOR: Final = f"ndcg@{K}"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RetrieverRecipe:
    """Training options that every retriever has.

    Attributes:
        epochs: at most this many passes over the training part.
        batch_size: examples a step; what an example is, the recipe says.
        learning_rate: of AdamW, reached after `warmup_steps`.
        weight_decay: decoupled, as in AdamW.
        warmup_steps: steps over which the learning rate rises from 0.
        patience: epochs without a better validation NDCG@10 after which training stops.
        seed: of initial weights, dropout and the order of examples; on a CPU equal seeds give equal metrics.
        dim: width of the vectors.
        max_history: items of the history that the user tower reads.
        prune: share of the hidden units of feed-forward layers that is taken out, those of least weight.
        prune_epoch: epoch at the beginning of which they are; weights of earlier ones are not selected.
    """

    epochs: int = 20
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    patience: int = 4
    seed: int = 0
    dim: int = 64
    max_history: int = 50
    prune: float = 0.0
    prune_epoch: int = 5

    def __post_init__(self) -> None:
        check_at_least(self, 1, "epochs", "batch_size", "patience", "prune_epoch")
        check_share(self, "prune")
        if self.prune and self.prune_epoch > self.epochs:
            raise ValueError(f"prune_epoch is {self.prune_epoch}; expected at most epochs = {self.epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a positive number")
        check_at_least(self, 0, "weight_decay", "warmup_steps", "seed")


RecipeT = TypeVar("RecipeT", bound=RetrieverRecipe)
ModelT = TypeVar("ModelT", bound=Retriever)


class RetrievalTask(lightning.LightningModule, Generic[ModelT, RecipeT]):
    """What Lightning needs to know of any retriever but the loss: examples, optimizer, validation metric.

    Attributes:
        monitor: what `validation_scores` returns and the best epoch is chosen by; more is better.
        loss_is_per_user: whether the loss of one user's windows depends on nothing of other users, neither on theirs in
            the batch nor on counts of what they consumed; the model learns from windows. Private training needs it.
    """

    monitor: str = MONITOR
    loss_is_per_user: ClassVar[bool] = False

    def __init__(self, model: ModelT, recipe: RecipeT, split: Split) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.split = split

    def batches(self) -> Batches:
        """Return what is iterated once an epoch and handed to `training_step`, batch by batch.

        Windows cut out of the users' sequences, unless a task learns from something else.
        """
        recipe = self.recipe
        return WindowLoader(self.split.train, recipe.max_history, recipe.batch_size, recipe.seed)

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """Log the metrics of all evaluated users at once; the batch carries nothing."""
        # What is selected is what will be served: full precision.
        with torch.autocast(self.device.type, enabled=False):
            self.log(self.monitor, self.validation_scores()[self.monitor], batch_size=1, sync_dist=True)

    def validation_scores(self) -> dict[str, float]:
        """Score the model on the validation items."""
        return evaluate(self.model, self.split, self.split.validation_histories, self.split.validation_targets)

    def trained(self) -> Any:
        """Return the parameters that are trained, as an optimizer takes them: all, unless a task trains fewer."""
        return self.model.parameters()

    def finish(self) -> None:
        """Bring the model, which holds the weights of the best epoch, into the form that is saved."""

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up."""
        recipe = self.recipe
        return adamw(
            self.trained(),
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            warmup_steps=recipe.warmup_steps,
        )


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adamw(parameters: Any, *, learning_rate: float, weight_decay: float, warmup_steps: int) -> Any:
    """Return AdamW with linear warm-up over parameters, or groups of them, as Lightning takes it."""
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98), fused=True
    )
    warmup = max(1, warmup_steps)
    schedule = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_retriever(
    architecture: str,
    dataset: DataSet,
    recipe: RecipeT,
    build: Callable[[Split], ModelT],
    task_type: Callable[[ModelT, RecipeT, Split], RetrievalTask[ModelT, RecipeT]],
    run: Run,
    recipe_name: str | None = None,
) -> Checkpoint:
    """Train, select by validation NDCG@10, and score the selected model once on the test items.

    Args:
        architecture: the name in the registry of what `build` returns.
        dataset: interactions and items.
        recipe: the options.
        build: makes the untrained model for a split; the random seed is set by then.
        task_type: makes what is trained of it.
        run: what surrounds it.
        recipe_name: the name in the registry of recipes, where it is not the architecture's.

    Raises:
        DataError: if no user has an item that follows another one in the training part.
    """
    split = leave_one_out(dataset)
    if int(split.train.lengths.max()) < 2:
        raise DataError(
            "no user has two interactions left to train on once validation and test are set aside; "
            "expected at least one user with 4 interactions"
        )
    # The caller's random state is not ours to move.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(split)
        planted = None if run.start is None else plant(run.start, architecture, model, dataset, split)
        task = task_type(model, recipe, split)
        private, pruner = _private(task, run), _pruner(model, recipe)
        module, batches = private or (task, task.batches())
        # Epochs before the units are taken out are no candidates, and to choose by validation would cost privacy.
        first = recipe.epochs if private else recipe.prune_epoch if pruner else 1
        fitted = fit(
            module,
            batches,
            monitor=task.monitor,
            epochs=recipe.epochs,
            patience=recipe.patience,
            run=run,
            identity={
                **dataclasses.asdict(recipe),
                "architecture": architecture,
                "data": data_digest(dataset.interactions, dataset.items),
            },
            first=first,
            extra=[pruner] if pruner else [],
        )
    module.cpu().load_state_dict(fitted.state)
    task.finish()
    metrics = {"recipe_name": recipe_name or architecture} | _metrics(model, recipe, split, fitted)
    if private:
        metrics["privacy"] = private[0].report()
    if pruner:
        metrics["pruning"] = pruner.report()
    state = model.state_dict()
    if planted is not None:
        # Neither a private run nor a pruned one may fall back on what it started from.
        state, metrics = planted.choose(state, metrics, MONITOR, may_stay=not (private or pruner))
    logger.info("%s: test %s after %d epochs, %.0f s", architecture, metrics["test"], fitted.epochs, fitted.seconds)
    return Checkpoint(
        architecture=architecture,
        arguments=dataclasses.asdict(model.config),  # type: ignore[call-overload]  # configurations are dataclasses
        items=items_table(dataset),
        users=users_table(split),
        metrics=metrics,
        state=state,
        ids=dataset.ids,
    )


def _private(task: RetrievalTask[Any, Any], run: Run) -> tuple[PrivateTask, UserLoader] | None:
    if run.privacy is None:
        return None
    from fuserec.train.privacy import make_private  # here, as it takes an extra of its own

    return make_private(task, run.privacy, users_per_step=task.recipe.batch_size, epochs=task.recipe.epochs)


def _pruner(model: Retriever, recipe: RetrieverRecipe) -> PruneUnits | None:
    return PruneUnits(model, recipe.prune, recipe.prune_epoch) if recipe.prune else None


def _metrics(model: Retriever, recipe: RetrieverRecipe, split: Split, fitted: Fitted) -> dict[str, Any]:
    return {
        "protocol": PROTOCOL,
        "validation": evaluate(model, split, split.validation_histories, split.validation_targets),
        "test": evaluate(model, split, split.test_histories, split.test_targets),
        "baselines": {"popularity": popularity_baseline(split)},
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "steps": fitted.steps,
        "train_seconds": round(fitted.seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "n_test_users": int(split.evaluated.size),
        "recipe": dataclasses.asdict(recipe),
    }


def items_table(dataset: DataSet) -> pl.DataFrame:
    """Return `items.parquet` of a checkpoint."""
    counts = dataset.interactions.group_by("item_id").agg(count=pl.len().cast(pl.Int64))
    items = dataset.items.join(counts, on="item_id", how="left", maintain_order="left")
    return items.with_columns(pl.col("count").fill_null(0)).select(ITEMS_SCHEMA.names())


def users_table(split: Split) -> pl.DataFrame:
    """Return `users.parquet` of a checkpoint."""
    item_ids = pl.Series(split.item_ids[split.full.values - 1], dtype=pl.Int64)
    flat = pl.DataFrame({"user_id": split.user_ids[split.full.row_of_value], "history": item_ids})
    return flat.group_by("user_id", maintain_order=True).agg("history")
