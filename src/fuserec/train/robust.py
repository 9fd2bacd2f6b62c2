"""Ways to make training harder that the recipes of histories share; all of them are off unless asked for."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from fuserec.models.checks import check_at_least, check_probability
from fuserec.models.retriever import Retriever
from fuserec.train.adversarial import robust_loss
from fuserec.train.augment import augment
from fuserec.train.retrieval import RetrievalTask, RetrieverRecipe
from fuserec.train.windows import WindowBatch


@dataclass(frozen=True)
class RobustRecipe(RetrieverRecipe):
    """Training options.

    Attributes:
        crop: probability of a window to be cut down to 60 % of its items (see `train.augment`).
        reorder: probability of a window to have 20 % of its items shuffled.
        mask: probability of an item of a window to be hidden.
        noise: length of a random shift of every item vector in each step (see `train.adversarial`); item vectors are
            about 1 long when training begins.
        adversarial: length of a shift of every item vector to where the loss is worst.
        adversarial_weight: of the loss there, beside the loss where the vectors are.
    """

    crop: float = 0.0
    reorder: float = 0.0
    mask: float = 0.0
    noise: float = 0.0
    adversarial: float = 0.0
    adversarial_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_probability(self, "crop", "reorder", "mask")
        check_at_least(self, 0, "noise", "adversarial", "adversarial_weight")


ModelT = TypeVar("ModelT", bound=Retriever)
RobustT = TypeVar("RobustT", bound=RobustRecipe)


class RobustTask(RetrievalTask[ModelT, RobustT]):
    """A task whose call with a batch returns the loss; its training step makes that harder."""

    @abc.abstractmethod
    def forward(self, batch: WindowBatch) -> Tensor:
        """Return the loss of a batch."""

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """Return the loss of the augmented batch at shifted embeddings, as far as the recipe asks for either."""
        recipe = self.recipe
        batch = augment(batch, crop=recipe.crop, reorder=recipe.reorder, mask=recipe.mask)
        epsilon, weight = recipe.adversarial, recipe.adversarial_weight
        return robust_loss(self, batch, noise=recipe.noise, epsilon=epsilon, weight=weight)
