"""Trains the text interest model: first what stands around the encoder, then the encoder with it.

With a new head on it, an encoder that is tuned at once is first bent towards what the untrained head asks for; so
the head is trained before, on the states of the frozen encoder (linear probing, then fine-tuning: Kumar et al. 2022).
Those states are computed once, which makes the first phase fast. In the second a step encodes some of its items anew
and remembers the states of the others from when they were last encoded (cross-batch memory, Wang et al. 2020), so
that its cost does not grow with the catalogue.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from fuserec.errors import UsageError
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.checks import check_at_least, check_heads, check_share
from fuserec.models.text import TextConfig, TextRetriever
from fuserec.models.text_encoder import transformer_config
from fuserec.tokens import Tokenizer
from fuserec.train import finetuning
from fuserec.train.data import DataSet
from fuserec.train.item_text import item_texts
from fuserec.train.lora import add_lora, merge_lora
from fuserec.train.losses import MASKED
from fuserec.train.negatives import consumption_keys, is_consumed, log_sampling_probability
from fuserec.train.pretrained import PACKAGED, Pretrained, load_pretrained
from fuserec.train.retrieval import MONITOR, RetrievalTask, RetrieverRecipe, train_retriever
from fuserec.train.run import Run
from fuserec.train.split import Split
from fuserec.train.windows import WindowBatch

# Few weights can take, and need, larger steps than all of them.
TUNING_RATES: Final = {"lora": 1e-3, "adapter": 1e-3, "top": 1e-4, "full": 1e-4}
TUNING_WARMUP: Final = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextRecipe(RetrieverRecipe):
    """Training options. A batch is of windows.

    Attributes:
        encoder: `all-MiniLM-L6-v2`, a folder, or a name on the hub.
        max_tokens: tokens that a text is cut to.
        temperature: divides the cosine.
        n_blocks: attention blocks over the history; with 0 a user is the mean of what they consumed.
        n_heads: attention heads over the history; divides `dim`.
        dropout: of activations of the user tower.
        tuning: what of the encoder is trained: frozen, lora, adapter, top or full.
        tuning_epochs: passes of the second phase; `epochs` counts those of the first.
        tuning_batch_size: windows of a step of the second phase; more, as its cost is that of the texts.
        encoded_items: items of such a step, drawn at random, whose texts are encoded, with gradients.
        tuning_rate: learning rate of the encoder; 0 for what suits the tuning.
        lora_rank: rank of the updates.
        lora_alpha: the updates are multiplied by this over their rank.
        adapter: width of the adapters.
        top_layers: how many layers `top` trains.
        bfloat16: whether the second phase encodes in bfloat16, which is fast where the processor has it (AMX, AVX512
            BF16) and slow where not.
    """

    epochs: int = 12
    learning_rate: float = 2e-3
    patience: int = 3
    dim: int = 128
    encoder: str = PACKAGED
    max_tokens: int = 64
    temperature: float = 0.1
    n_blocks: int = 1
    n_heads: int = 2
    dropout: float = 0.2
    tuning: str = "lora"
    tuning_epochs: int = 3
    tuning_batch_size: int = 64
    encoded_items: int = 128
    tuning_rate: float = 0.0
    lora_rank: int = 8
    lora_alpha: int = 16
    adapter: int = 32
    top_layers: int = 2
    bfloat16: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "dim", "max_history", "max_tokens", "n_heads", "tuning_epochs", "tuning_batch_size")
        check_at_least(self, 1, "encoded_items", "lora_rank", "lora_alpha", "adapter", "top_layers")
        check_at_least(self, 0, "n_blocks", "tuning_rate")
        check_share(self, "dropout")
        check_heads(self.dim, self.n_heads)
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a positive number")
        if self.tuning not in finetuning.TUNINGS:
            raise ValueError(f"tuning is {self.tuning!r}; expected one of {', '.join(finetuning.TUNINGS)}")

    def config(self, encoder: str, *, n_items: int) -> TextConfig:
        """Return the architecture that these options give for a transformer's configuration and a catalogue."""
        return TextConfig(
            n_items=n_items,
            encoder=encoder,
            dim=self.dim,
            max_history=self.max_history,
            max_tokens=self.max_tokens,
            n_blocks=self.n_blocks,
            n_heads=self.n_heads,
            dropout=self.dropout,
        )


def train_text(dataset: DataSet, recipe: TextRecipe, run: Run) -> Checkpoint:
    """Train a checkpoint of architecture "text": both phases, of which the better is kept; see `train_retriever`.

    Raises:
        DataError: if the encoder cannot be loaded, or as `train_retriever`.
        UsageError: if the options do not fit the encoder.
    """
    probed = probe(dataset, recipe, run.phase("probe"))
    if recipe.tuning == "frozen" or run.was_interrupted:
        return probed
    tuned = tune(dataset, recipe, probed, dataclasses.replace(run.phase("tune"), start=None))
    before, after = (checkpoint.metrics["validation"][MONITOR] for checkpoint in (probed, tuned))
    if after > before:
        return tuned
    logger.warning("tuning=%s took the validation %s from %.4f to %.4f; the frozen encoder is kept",
                   recipe.tuning, MONITOR, before, after)  # fmt: skip
    metrics = {"train_seconds": tuned.metrics["train_seconds"], "rejected_tuning": tuned.metrics["validation"]}
    return dataclasses.replace(probed, metrics=probed.metrics | metrics)


def probe(dataset: DataSet, recipe: TextRecipe, run: Run) -> Checkpoint:
    """Train projection and user tower on the frozen encoder; errors as `train_text`."""
    pretrained = load_pretrained(recipe.encoder)
    _check_fits(recipe, pretrained)

    def build(split: Split) -> TextRetriever:
        model = TextRetriever(recipe.config(pretrained.config, n_items=split.item_ids.size))
        model.encoder.transformer.load_state_dict(pretrained.state)
        tokenizer = Tokenizer(pretrained.tokenizer, max_tokens=recipe.max_tokens, pad_id=model.encoder.pad_id)
        tokens = torch.from_numpy(tokenizer(item_texts(dataset.items)))
        model.tokens[1:, : tokens.shape[1]] = tokens
        return model

    checkpoint = train_retriever("text", dataset, recipe, build, ProbeTask, run)
    metrics = checkpoint.metrics | {"tuned_parameters": 0}
    return dataclasses.replace(checkpoint, metrics=metrics, tokenizer=pretrained.tokenizer)


def tune(dataset: DataSet, recipe: TextRecipe, probed: Checkpoint, run: Run) -> Checkpoint:
    """Train encoder, projection and user tower of what `probe` returned for these options; errors as `train_text`."""
    second = dataclasses.replace(
        recipe, epochs=recipe.tuning_epochs, batch_size=recipe.tuning_batch_size, warmup_steps=TUNING_WARMUP
    )
    trained = 0

    def build(split: Split) -> TextRetriever:
        nonlocal trained
        model = probed.module()
        assert isinstance(model, TextRetriever)
        _open(model, recipe)
        trained = finetuning.n_trained(model.encoder.transformer)
        return model.train()

    checkpoint = train_retriever("text", dataset, second, build, TuneTask, run)
    metrics = checkpoint.metrics | {
        "recipe": dataclasses.asdict(recipe),
        "tuned_parameters": trained,
        "train_seconds": round(probed.metrics["train_seconds"] + checkpoint.metrics["train_seconds"], 1),
        "probe": {name: probed.metrics[name] for name in ("validation", "test", "epochs", "best_epoch")},
    }
    return dataclasses.replace(checkpoint, metrics=metrics, tokenizer=probed.tokenizer)


class TextTask(RetrievalTask[TextRetriever, TextRecipe]):
    """Every position of a window is told its next item from the items of all windows of the batch.

    Attributes:
        states: (n_items + 1, hidden size) float32, what the encoder says of each item's text; row 0 is padding.
    """

    log_q: Tensor
    consumed: Tensor
    states: Tensor

    def __init__(self, model: TextRetriever, recipe: TextRecipe, split: Split) -> None:
        super().__init__(model, recipe, split)
        self.register_buffer("log_q", log_sampling_probability(split.train.values, model.config.n_items))
        self.register_buffer("consumed", consumption_keys(split.train, model.config.n_items))
        states = torch.zeros(model.config.n_items + 1, model.encoder.projection.in_features)
        self.register_buffer("states", states)
        self.encode_catalogue()

    @torch.no_grad()
    def encode_catalogue(self) -> None:
        """Compute the states of all items."""
        was_training = self.model.encoder.training
        self.model.encoder.eval()
        self.states[1:] = self.model.pool_items(torch.arange(1, self.model.config.n_items + 1, device=self.device))
        self.model.encoder.train(was_training)

    def item_states(self, rows: Tensor) -> Tensor:
        """Return the states of a step's items: (N,) int64 -> (N, hidden size) float32."""
        return self.states[rows]

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """As `RetrievalTask.validation_step`, of the item vectors as they are now."""
        self.model.user_tower.item_table[1:] = self.model.encoder.project(self.states[1:])
        super().validation_step(batch, batch_idx)

    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        """Cross-entropy over the items of the batch, weighted so that it estimates that over all items trained on.

        An item that stands n times among the N of a batch, and makes up the share q of all interactions, stands for
        n / (N q) items (logQ correction, Yi et al. 2019); items that are not consumed at all are never negatives. What
        a user consumed at another time is no negative of theirs.
        """
        window = torch.cat([batch.history, batch.target[:, -1:]], dim=1)
        # A zero in front, so that column 0 is the padding whether there is any or not.
        flat = torch.nn.functional.pad(window.flatten(), (1, 0))
        rows, column, count = torch.unique(flat, return_inverse=True, return_counts=True)
        rows, count, column = rows[1:], count[1:], column[1:].view_as(window)
        items = self.model.encoder.project(self.item_states(rows))
        # A look-up as an embedding, whose gradient is summed in a fixed order, unlike indexing's.
        table = torch.nn.functional.pad(items, (0, 0, 1, 0))
        x = torch.nn.functional.embedding(column[:, :-1], table)
        asked = batch.target != 0
        users = self.model.user_tower.read(x, batch.history != 0)[asked]
        own = column[:, 1:][asked] - 1
        weight = count.log() - count.sum().log() - self.log_q[rows]
        consumed = is_consumed(self.consumed, batch.user, rows, self.model.config.n_items)[asked.nonzero()[:, 0]]
        consumed = consumed.scatter(1, own[:, None], False)
        logits = users @ items.T / self.recipe.temperature + weight
        return torch.nn.functional.cross_entropy(logits.masked_fill(consumed, MASKED), own)


class ProbeTask(TextTask):
    """The first phase: the encoder is frozen."""

    def __init__(self, model: TextRetriever, recipe: TextRecipe, split: Split) -> None:
        finetuning.freeze(model.encoder)
        super().__init__(model, recipe, split)
        # The directions in which the catalogue varies most: untrained, similar texts have similar vectors.
        directions = torch.linalg.eigh(self.states.double().T @ self.states.double()).eigenvectors.flip(1)
        with torch.no_grad():
            model.encoder.projection.weight.copy_(directions[:, : model.config.dim].T)


class TuneTask(TextTask):
    """The second phase: the encoder is trained with the rest."""

    def on_train_epoch_start(self) -> None:
        """Turn the encoder's dropout off: a text has one vector, read and asked for, encoded and remembered alike."""
        self.model.encoder.eval()

    def item_states(self, rows: Tensor) -> Tensor:
        """As `TextTask.item_states`; some are encoded anew, with gradients, and remembered."""
        drawn = torch.randperm(rows.numel(), device=rows.device)[: self.recipe.encoded_items]
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=self.recipe.bfloat16):
            pooled = self.model.pool_items(rows[drawn])
        self.states[rows[drawn]] = pooled.detach().float()
        return self.states[rows].index_copy(0, drawn, pooled.float())

    def validation_step(self, batch: int, batch_idx: int) -> None:
        """As `TextTask.validation_step`, with nothing remembered."""
        self.encode_catalogue()
        super().validation_step(batch, batch_idx)

    def trained(self) -> Any:
        """The encoder has a learning rate of its own."""
        rate = self.recipe.tuning_rate or TUNING_RATES[self.recipe.tuning]
        encoder = [parameter for parameter in self.model.encoder.transformer.parameters() if parameter.requires_grad]
        rest = [*self.model.encoder.projection.parameters(), *self.model.user_tower.parameters()]
        return [{"params": encoder, "lr": rate}, {"params": rest}]

    def finish(self) -> None:
        """Merge what LoRA learned, which moves the vectors by no more than rounding; the table follows it."""
        if self.recipe.tuning == "lora":
            merge_lora(self.model.encoder)
            self.model.refresh()


def _open(model: TextRetriever, recipe: TextRecipe) -> None:
    """Make trainable what the tuning trains."""
    if recipe.tuning == "lora":
        add_lora(model.encoder, rank=recipe.lora_rank, alpha=recipe.lora_alpha)
    elif recipe.tuning == "adapter":
        finetuning.add_adapters(model.encoder, width=recipe.adapter)
        model.config = dataclasses.replace(model.config, adapter=recipe.adapter)
    elif recipe.tuning == "top":
        finetuning.open_top(model.encoder, layers=recipe.top_layers)
    else:
        model.encoder.transformer.requires_grad_(True)


def _check_fits(recipe: TextRecipe, pretrained: Pretrained) -> None:
    """Compare the options with the encoder, before minutes are spent on training."""
    config = transformer_config(pretrained.config)
    limits = {
        "dim": config.hidden_size,
        "max_tokens": config.max_position_embeddings,
        "top_layers": config.num_hidden_layers,
    }
    for name, most in limits.items():
        if getattr(recipe, name) > most:
            raise UsageError(
                f"{name} is {getattr(recipe, name)}; expected at most {most} with encoder {recipe.encoder!r}"
            )
    if recipe.tuning in ("adapter", "top") and not any(name.startswith("encoder.layer.") for name in pretrained.state):
        raise UsageError(
            f"tuning is {recipe.tuning!r} and encoder {recipe.encoder!r} a {config.model_type!r}, whose layers are not "
            "those of BERT; expected tuning lora, full or frozen, or one of BERT, RoBERTa and MPNet"
        )
