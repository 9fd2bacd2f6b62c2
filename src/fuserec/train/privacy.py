"""Differentially private training: what is learned from all of a user's interactions is bounded and drowned in noise.

An example is a user: DP-SGD (Abadi et al. 2016) with users in place of rows (McMahan et al. 2018).

    users of a step     each with probability q, independently of one another
    g_u                 gradient of the loss of at most `windows` windows of u's sequence
    step                (sum_u g_u min(1, clip / |g_u|) + clip * noise_multiplier * N(0, I)) / (q * users)

Opacus clips, adds the noise and keeps the accounts. Its per-example gradients come from hooks on layers, which do not
see a table that is used twice, as the item table of a sequential recommender is; so each user is a backward pass of
their own, which is slow and right for every architecture.

Which users a step takes and its noise are drawn from the operating system's entropy and not from the recipe's seed: the
seed stands in `metrics.json`, and whoever knows it could take the noise away again. Numbers of users and items are
taken to be public.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import lightning.pytorch as lightning
import numpy as np
import torch
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fuserec.errors import UsageError
from fuserec.train.ragged import Ragged
from fuserec.train.run import Privacy
from fuserec.train.windows import WindowBatch, WindowLoader

if TYPE_CHECKING:
    from fuserec.train.retrieval import RetrievalTask

COVERS: Final = (
    "the weights in model.safetensors, for all interactions of one user; not users.parquet and the counts in "
    "items.parquet, which are the data themselves, nor the metrics here, which were measured on them"
)


@dataclass(frozen=True)
class Mechanism:
    """The numbers that the promise rests on.

    Attributes:
        sample_rate: probability q of a user to take part in a step.
        steps: of the whole run.
        noise_multiplier: standard deviation of the noise, in clips.
    """

    sample_rate: float
    steps: int
    noise_multiplier: float

    @classmethod
    def calibrate(cls, privacy: Privacy, *, n_users: int, users_per_step: int, epochs: int) -> Mechanism:
        """Return the least noise that keeps the promise.

        Args:
            privacy: the promise.
            n_users: users that are learned from.
            users_per_step: how many a step takes on average.
            epochs: a user takes part once an epoch, on average.

        Raises:
            UsageError: if no noise keeps it.
        """
        if privacy.delta >= 1 / n_users:
            raise UsageError(f"delta is {privacy.delta} with {n_users} users; expected less than {1 / n_users:.2g}")
        sample_rate = min(1.0, users_per_step / n_users)
        steps = epochs * steps_per_epoch(sample_rate)
        with warnings.catch_warnings():
            # The search tries noise that is far off before it finds its way; the result is accounted for anew.
            warnings.filterwarnings("ignore", message="Optimal order is the (smallest|largest) alpha")
            try:
                noise_multiplier = get_noise_multiplier(
                    target_epsilon=privacy.epsilon,
                    target_delta=privacy.delta,
                    sample_rate=sample_rate,
                    steps=steps,
                    epsilon_tolerance=min(0.01, privacy.epsilon / 100),
                )
            except ValueError as error:
                raise UsageError(
                    f"epsilon is {privacy.epsilon}; expected more, as no noise keeps it: {error}"
                ) from error
        return cls(sample_rate, steps, noise_multiplier)


def steps_per_epoch(sample_rate: float) -> int:
    """Return after how many steps a user has taken part once, on average."""
    return math.ceil(1 / sample_rate)


class UserLoader(WindowLoader):
    """Yields the users of each step as a list of batches, a batch a user; the list may be empty."""

    def __init__(self, sequences: Ragged, max_history: int, sample_rate: float, windows: int) -> None:
        """Prepare.

        Args:
            sequences: row i is what user row i + 1 consumed, oldest first.
            max_history: L, positions of a window.
            sample_rate: probability of a user to take part in a step.
            windows: at most this many windows a user, chosen at random.
        """
        super().__init__(sequences, max_history, batch_size=windows, seed=0)
        self.generator = np.random.default_rng()  # of the system's entropy; see above
        self.users = np.flatnonzero(sequences.lengths > 1)
        self.sample_rate = sample_rate

    def __iter__(self) -> Iterator[list[WindowBatch]]:  # type: ignore[override]  # a batch a user
        for _ in range(steps_per_epoch(self.sample_rate)):
            chosen = self.users[self.generator.random(self.users.size) < self.sample_rate]
            yield [self._user(int(user)) for user in chosen]

    def _user(self, user: int) -> WindowBatch:
        """Cut as `WindowLoader` does, and keep some."""
        shift = int(self.generator.integers(0, self.max_history))
        starts = np.arange(-shift, self.sequences.lengths[user] - 1, self.max_history)
        if starts.size > self.batch_size:
            starts = self.generator.choice(starts, self.batch_size, replace=False)
        return self._batch(np.full(starts.size, user), starts)


def make_private(
    task: RetrievalTask[Any, Any], privacy: Privacy, *, users_per_step: int, epochs: int
) -> tuple[PrivateTask, UserLoader]:
    """Return what is trained in place of `task`, and on which batches.

    Args:
        task: whose loss of one user's windows depends on that user alone.
        privacy: the promise.
        users_per_step: how many users a step takes on average.
        epochs: all of which have to be trained.

    Raises:
        UsageError: if the task is another, or the promise cannot be kept.
    """
    if not task.loss_is_per_user:
        raise UsageError(
            "private training came with a recipe in whose loss users meet; expected one whose loss of a user depends "
            "on that user alone: sasrec, gru4rec, lstm, conv or bert4rec"
        )
    sequences = task.split.train
    n_users = int((sequences.lengths > 1).sum())
    mechanism = Mechanism.calibrate(privacy, n_users=n_users, users_per_step=users_per_step, epochs=epochs)
    loader = UserLoader(sequences, task.recipe.max_history, mechanism.sample_rate, privacy.windows)
    return PrivateTask(task, privacy, mechanism, n_users), loader


class PrivateTask(lightning.LightningModule):
    """Carries a task's steps out privately; weights, loss, optimizer and metric are the task's.

    Attributes:
        accountant: told of every step.
    """

    automatic_optimization = False

    def __init__(self, task: RetrievalTask[Any, Any], privacy: Privacy, mechanism: Mechanism, n_users: int) -> None:
        """Wrap.

        Args:
            task: as of `make_private`.
            privacy: the promise.
            mechanism: how it is kept.
            n_users: users that are learned from.
        """
        super().__init__()
        self.task = task
        self.privacy = privacy
        self.mechanism = mechanism
        self.users_per_step = mechanism.sample_rate * n_users
        self.accountant = RDPAccountant()

    def configure_optimizers(self) -> Any:
        """As the task."""
        return self.task.configure_optimizers()

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """As the task."""
        for name, value in self.task.validation_scores().items():
            self.log(name, value, batch_size=1)

    def on_train_start(self) -> None:
        """Set the mechanism up around the optimizer, which exists by now."""
        self.attach(self.trainer.optimizers[0])

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Let opacus clip and blur the gradients of what `optimizer` moves."""
        self.noiser = DPOptimizer(
            optimizer,
            noise_multiplier=self.mechanism.noise_multiplier,
            max_grad_norm=self.privacy.clip,
            expected_batch_size=self.users_per_step,  # it only divides by it
            generator=system_generator(self.device),
        )

    def training_step(self, users: list[WindowBatch], batch_idx: int) -> Tensor:
        """Take one step and return the mean loss of its users, which is for the curve alone."""
        loss = self.private_gradient(users)
        self.optimizers().step()  # type: ignore[union-attr]  # there is one optimizer
        self.lr_schedulers().step()  # type: ignore[union-attr]  # and one schedule
        return loss

    def private_gradient(self, users: list[WindowBatch]) -> Tensor:
        """Leave in the weights' `grad` what may be seen of these users, account for it, and return their mean loss."""
        losses = []
        self.noiser.zero_grad()
        self._add_user(None)
        for user in users:
            self.task.model.zero_grad()
            loss: Tensor = self.task.training_step(user, 0)  # type: ignore[assignment]  # as Lightning types it
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            self._add_user([parameter.grad for parameter in self.noiser.params])
        self.noiser.add_noise()
        self.noiser.scale_grad()
        keep_padding(self.task.model)
        self.accountant.step(noise_multiplier=self.mechanism.noise_multiplier, sample_rate=self.mechanism.sample_rate)
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self.device)

    def _add_user(self, gradients: list[Tensor | None] | None) -> None:
        """Hand opacus the gradient of one user, or of nobody, to clip and add to the sum."""
        for index, parameter in enumerate(self.noiser.params):
            if gradients is None:
                sample = parameter.new_zeros((0, *parameter.shape))
            else:
                gradient = gradients[index]
                sample = (torch.zeros_like(parameter) if gradient is None else gradient.clone())[None]
            parameter.grad_sample = sample  # where opacus looks for it
        self.noiser.clip_and_accumulate()

    def report(self) -> dict[str, Any]:
        """Return what was spent and on what, JSON values."""
        return {
            "epsilon": self.accountant.get_epsilon(self.privacy.delta),
            "delta": self.privacy.delta,
            "noise_multiplier": self.mechanism.noise_multiplier,
            "clip": self.privacy.clip,
            "windows": self.privacy.windows,
            "sample_rate": self.mechanism.sample_rate,
            "steps": sum(steps for _, _, steps in self.accountant.history),
            "covers": COVERS,
        }


def system_generator(device: torch.device) -> torch.Generator:
    """Return a generator whose seed nobody knows."""
    generator = torch.Generator(device)
    generator.seed()
    return generator


def keep_padding(model: nn.Module) -> None:
    """Take the noise off the rows of embedding tables that stand for padding; they are to stay zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None and module.weight.grad is not None:
            module.weight.grad[module.padding_idx] = 0
