"""What is exported together: a retriever, a ranker, or both, over the same users and items."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fuserec.errors import ExportError
from fuserec.files import sha256
from fuserec.id_map import require_same_numbers
from fuserec.models.checkpoint import MODEL_FILE, Checkpoint
from fuserec.models.pruning import drop_masked_
from fuserec.models.ranking_model import RankingModel
from fuserec.models.retriever import Retriever


@dataclass(frozen=True)
class Sources:
    """Loaded checkpoints.

    Attributes:
        checkpoint: the one that was asked for; its users and items are served.
        retriever: finds items; None for a ranker alone.
        ranker: scores candidates; None for a retriever alone.
        sha256: hash of the weights of each, by `retriever` and `ranker`.
        ranker_reads_texts: whether it is a transformer over texts, which takes its time.
        ranker_metrics: what the ranker scored, where it is a checkpoint of its own.
    """

    checkpoint: Checkpoint
    retriever: Retriever | None
    ranker: RankingModel | None
    sha256: dict[str, str]
    ranker_reads_texts: bool = False
    ranker_metrics: dict[str, object] | None = None


def load_sources(folder: Path, ranker_folder: Path | None) -> Sources:
    """Load a checkpoint, and the ranker that is to reorder what it finds.

    A ranker's checkpoint is exported as a ranker. Given twice, as checkpoint and as ranker, it also retrieves, by the
    vectors that both share, if it was trained to.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
        ExportError: They cannot be exported so.
    """
    checkpoint = Checkpoint.load(folder)
    module = _module(checkpoint)
    digest = sha256(folder / MODEL_FILE)
    if ranker_folder is None:
        if isinstance(module, RankingModel):
            return Sources(checkpoint, None, module, {"ranker": digest}, checkpoint.tokenizer is not None)
        if isinstance(module, Retriever):
            return Sources(checkpoint, module, None, {"retriever": digest})
        raise ExportError(f"{checkpoint.architecture} neither finds nor scores items; nothing to export")
    if not isinstance(module, Retriever):
        raise ExportError(f"{folder} holds a {checkpoint.architecture}, which finds no items; expected a retriever")
    tasks = str(checkpoint.arguments.get("tasks", "next-item"))
    if "next-item" not in tasks.split(","):
        raise ExportError(
            f"{folder} was trained for {tasks}: its vectors find no items; train it with --tasks next-item,{tasks}, or "
            "give a retriever and this as --ranker"
        )
    other = Checkpoint.load(ranker_folder)
    ranker = _module(other)
    if not isinstance(ranker, RankingModel):
        raise ExportError(f"--ranker came with a {other.architecture}; expected a checkpoint of a ranker")
    require_same_numbers(checkpoint.ids, folder, other.ids, ranker_folder, ExportError, "train both on the same data")
    for name, ours, theirs in (("items", checkpoint.items, other.items), ("users", checkpoint.users, other.users)):
        key = name[:-1] + "_id"
        if not ours[key].equals(theirs[key]):
            raise ExportError(
                f"{folder} knows {ours.height:,} {name} and {ranker_folder} {theirs.height:,}, not the same ones; "
                "train both on the same data"
            )
    digests = {"retriever": digest, "ranker": sha256(ranker_folder / MODEL_FILE)}
    return Sources(checkpoint, module, ranker, digests, other.tokenizer is not None, other.metrics)


def _module(checkpoint: Checkpoint) -> nn.Module:
    """Build the module without the hidden units that training has masked: they change no answer, only sizes."""
    module = checkpoint.module()
    drop_masked_(module)
    return module
