"""Models that RecBole trained (Zhao et al. 2021), from the .pth of its trainer: BPR, SASRec, GRU4Rec.

The file is a pickle, so a process of its own opens it and hands tensors and settings over, which are checked here like
anything from outside. It does not say which user and item each row is. RecBole numbers them while it reads its files,
after its filters, and the table comes beside the file, written where the model was trained:

    users, items = map(dataset.field2id_token.get, (dataset.uid_field, dataset.iid_field))
    json.dump({"user_id": users.tolist(), "item_id": items.tolist()}, open("tokens.json", "w"))
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors
from torch import Tensor

import fuserec
from fuserec.contract import MAX_HISTORY
from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.importers._recbole_reader import SETTINGS
from fuserec.importers.matching import Ids, Matched, match, numbers_of
from fuserec.models.checkpoint import Checkpoint
from fuserec.train.data import read_folder
from fuserec.untrusted.documents import parse_json, read_json

READING_S: Final = 300
MAX_TOKENS_BYTES: Final = 2**30
MODELS: Final = ("BPR", "SASRec", "GRU4Rec")
# RecBole's number 0 stands for padding and for whoever is unknown.
PAD: Final = "[PAD]"


@dataclass(frozen=True)
class Saved:
    """What the process found in a file.

    Attributes:
        path: the file.
        tensors: the state dict.
        settings: RecBole's configuration: texts, whole numbers and floats.
    """

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]

    def setting(self, name: str, kind: type) -> Any:
        """Return a setting of a kind, float for any number."""
        value = self.settings.get(name)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool):
            raise CheckpointError(f"{self.path}: its setting {name} is {value!r}; expected a {kind.__name__}")
        return value

    def matrix(self, name: str) -> Tensor:
        """Return a tensor with rows and columns."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.path} holds no tensor {name}; it holds {', '.join(self.tensors)}")
        if tensor.dim() != 2 or not tensor.is_floating_point() or 0 in tensor.shape:
            raise CheckpointError(f"{self.path}: {name} is {tensor.dtype} {tuple(tensor.shape)}; expected a matrix")
        return tensor


def import_recbole(path: Path, data: Path, tokens: Path, *, trust_pickle: bool) -> Checkpoint:
    """Make a checkpoint of a model of RecBole.

    Args:
        path: the .pth.
        data: a data folder: what the items are, and what the users consumed.
        tokens: RecBole's numbering, JSON: {"user_id": [...], "item_id": [...]}, whose entry n is the id of number n;
            entry 0 is "[PAD]".
        trust_pickle: whether the user vouches for the file.

    Raises:
        UsageError: if not.
        CheckpointError: if the file is not what RecBole's trainer saves, or of another model.
        DataError: if the numbering does not fit the model or the data.
    """
    if not trust_pickle:
        raise UsageError(
            f"{path} is a pickle, which can run any program when it is opened; if you trained it, or trust who did, "
            "add --trust-pickle: it is then opened in a process of its own that hands over nothing but numbers"
        )
    numbering = _read_tokens(tokens)
    saved = read_saved(path)
    model = saved.setting("model", str)
    if model not in MODELS:
        raise CheckpointError(f"{path} is a {model}; expected one of {', '.join(MODELS)}")
    item_ids = _ids(saved, "item_embedding.weight", numbering, data, "item", tokens)
    user_ids = _ids(saved, "user_embedding.weight", numbering, data, "user", tokens) if model == "BPR" else None
    matched = match(read_folder(data), item_ids, user_ids)
    architecture, arguments, state = {"BPR": _bpr, "SASRec": _sasrec, "GRU4Rec": _gru4rec}[model](saved, matched)
    if arguments.get("max_history", 0) > MAX_HISTORY:
        raise CheckpointError(
            f"{path} reads {arguments['max_history']} items of a history; expected {MAX_HISTORY} or less"
        )
    return matched.checkpoint(architecture, arguments, state, source=path, library=f"RecBole's {model}")


Converted = tuple[str, dict[str, Any], dict[str, Tensor]]


def _bpr(saved: Saved, matched: Matched) -> Converted:
    items, users = saved.matrix("item_embedding.weight"), saved.matrix("user_embedding.weight")
    state = {
        "user_tower.user_embedding.weight": matched.user_table(users[1:]),
        "user_tower.item_embedding.weight": matched.item_table(items[1:]),
    }
    return "mf", {"dim": items.shape[1]}, state


def _sasrec(saved: Saved, matched: Matched) -> Converted:
    positions = saved.matrix("position_embedding.weight")
    arguments = {
        "dim": positions.shape[1],
        "max_history": positions.shape[0],
        "n_blocks": saved.setting("n_layers", int),
        "n_heads": saved.setting("n_heads", int),
        "inner": saved.matrix("trm_encoder.layer.0.feed_forward.dense_1.weight").shape[0],
        "activation": saved.setting("hidden_act", str),
        "norm_eps": float(saved.setting("layer_norm_eps", float)),
    }
    return "recbole-sasrec", arguments, _tower(saved, matched)


def _gru4rec(saved: Saved, matched: Matched) -> Converted:
    dense = saved.matrix("dense.weight")
    arguments = {
        "dim": dense.shape[0],
        "hidden": dense.shape[1],
        "n_heads": 1,
        "max_history": saved.setting("MAX_ITEM_LIST_LENGTH", int),
        "n_blocks": saved.setting("num_layers", int),
    }
    return "recbole-gru4rec", arguments, _tower(saved, matched)


def _tower(saved: Saved, matched: Matched) -> dict[str, Tensor]:
    """Rename tensors; what is not the item table is the encoder."""
    # RecBole draws numbers for padding too, which it never sees, as it pads on the right.
    state = {"user_tower.item_embedding.weight": matched.item_table(saved.matrix("item_embedding.weight")[1:])}
    for name, tensor in saved.tensors.items():
        if name != "item_embedding.weight":
            state[f"user_tower.encoder.{name.removeprefix('trm_encoder.')}"] = tensor.float()
    return state


def read_saved(path: Path) -> Saved:
    """Have a process open the file, and check what it wrote.

    Raises:
        CheckpointError: if it could not, or what it wrote is not as agreed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; expected the .pth that RecBole's trainer wrote")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "model.safetensors"
        command = [sys.executable, "-P", "-m", "fuserec.importers._recbole_reader", str(path.absolute()), str(out)]
        # Nothing of this process's environment, where tokens and passwords may be, but what finding fuserec takes.
        environment = {"PYTHONPATH": str(Path(fuserec.__file__).parents[1]), "PATH": os.defpath}
        try:
            done = subprocess.run(
                command, env=environment, cwd=scratch, capture_output=True, text=True, timeout=READING_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CheckpointError(f"{path} was not read within {READING_S} s; expected seconds") from error
        if done.returncode != 0 or not out.is_file():
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise CheckpointError(f"{path} cannot be read ({reason}); expected what RecBole's trainer saves")
        try:
            with safetensors.safe_open(out, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: its reader wrote what is not readable ({error})") from error
    return Saved(path, tensors, _settings(path, metadata.get(SETTINGS, "")))


def _settings(path: Path, document: str) -> dict[str, Any]:
    try:
        return parse_json(document)
    except ValueError as error:
        raise CheckpointError(f"{path}: its settings are not readable ({error}); expected a JSON object") from error


def _read_tokens(path: Path) -> Mapping[str, list[str]]:
    document = read_json(path, MAX_TOKENS_BYTES, DataError)
    for kind in ("user_id", "item_id"):
        tokens = document.get(kind)
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens) or tokens[:1] != [PAD]:
            raise DataError(f'{path}: {kind} is not a list of texts that begins with "{PAD}", as field2id_token does')
    numbering: dict[str, list[str]] = document
    return numbering


def _ids(saved: Saved, tensor: str, numbering: Mapping[str, list[str]], data: Path, kind: str, tokens: Path) -> Ids:
    """Return the id of each row of a table but the first, which is padding."""
    rows, labels = saved.matrix(tensor).shape[0], numbering[f"{kind}_id"]
    if rows != len(labels):
        raise DataError(
            f"{tokens} numbers {len(labels)} {kind}s, {saved.path} has {rows}, padding included; expected as many"
        )
    return numbers_of(labels[1:], data, kind, tokens)
