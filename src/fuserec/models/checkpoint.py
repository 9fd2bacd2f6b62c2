"""A trained model as a folder that is either whole or refused.

    config.json         format, version, architecture, its arguments, SHA-256 of the other files
    model.safetensors   the state dict
    items.parquet       the catalogue: line r - 1 is item row r of the model
    users.parquet       the users and their histories: line r - 1 is user row r
    metrics.json        what the model scored, under which protocol
    tokenizer.json      how texts become tokens; only where the model reads texts
    ids_users.parquet, ids_items.parquet   whose numbers the ids are, where the data said (`fuserec.id_map`)

Nothing in it can execute code: no pickle is written or read.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fuserec.errors import CheckpointError
from fuserec.files import replacing_folder, sha256
from fuserec.id_map import ID_FILES, IdMaps
from fuserec.models.checks import describe_names
from fuserec.models.registry import build_module
from fuserec.tokens import MAX_BYTES as MAX_TOKENIZER_BYTES
from fuserec.untrusted.documents import read_json, read_text
from fuserec.untrusted.tables import read_table
from fuserec.untrusted.tensors import read_header

FORMAT: Final = "fuserec-checkpoint"
VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
MODEL_FILE: Final = "model.safetensors"
ITEMS_FILE: Final = "items.parquet"
USERS_FILE: Final = "users.parquet"
METRICS_FILE: Final = "metrics.json"
TOKENIZER_FILE: Final = "tokenizer.json"
HASHED_FILES: Final = (MODEL_FILE, ITEMS_FILE, USERS_FILE, METRICS_FILE)
OPTIONAL_FILES: Final = (TOKENIZER_FILE, *ID_FILES.values())

ITEMS_SCHEMA: Final = pl.Schema(
    {"item_id": pl.Int64(), "title": pl.String(), "genres": pl.List(pl.String), "year": pl.Int32(), "count": pl.Int64()}
)
USERS_SCHEMA: Final = pl.Schema({"user_id": pl.Int64(), "history": pl.List(pl.Int64)})
# A few kilobytes, as a rule.
MAX_JSON_BYTES: Final = 16 * 2**20


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with all that is needed to serve it; checked when it is made, so also when it is loaded.

    Attributes:
        architecture: a name in `fuserec.models.registry`.
        arguments: the fields of that architecture's configuration, JSON values.
        items: `ITEMS_SCHEMA`, sorted by `item_id`; `year` may be null; `count` is how often the item was consumed.
        users: `USERS_SCHEMA`, sorted by `user_id`; `history` holds all item ids of the user, oldest first.
        metrics: JSON values.
        state: the module's state dict.
        tokenizer: what `tokenizer.json` holds; None for a model that reads no texts.
        ids: which original ids the numbers stand for, where the data said.

    Raises:
        CheckpointError: if the parts do not fit each other; the message names the file that holds the part.
    """

    architecture: str
    arguments: dict[str, Any]
    items: pl.DataFrame
    users: pl.DataFrame
    metrics: dict[str, Any]
    state: dict[str, Tensor]
    tokenizer: str | None = None
    ids: IdMaps = IdMaps()

    def __post_init__(self) -> None:
        _check_table(ITEMS_FILE, self.items, ITEMS_SCHEMA, "item_id", self.arguments.get("n_items"))
        _check_table(USERS_FILE, self.users, USERS_SCHEMA, "user_id", self.arguments.get("n_users"))
        _check_state(_build_on("meta", self.architecture, self.arguments).state_dict(), self.state)

    def module(self) -> nn.Module:
        """Build the module with a copy of the trained weights, in eval mode, on the CPU."""
        # On the CPU, as some modules hold what a state dict leaves out; the caller's random state is not ours to move.
        with torch.random.fork_rng():
            module = _build_on("cpu", self.architecture, self.arguments)
        module.load_state_dict(self.state)
        return module.eval()

    def save(self, path: Path) -> None:
        """Write the folder `path`, replacing a checkpoint that is there; it appears whole or not at all.

        Raises:
            CheckpointError: if `path` exists and is not a checkpoint.
        """
        path = Path(path)
        check_destination(path)
        with replacing_folder(path) as folder:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state.items()}
            safetensors.torch.save_file(tensors, folder / MODEL_FILE)
            self.items.write_parquet(folder / ITEMS_FILE)
            self.users.write_parquet(folder / USERS_FILE)
            _write_json(folder / METRICS_FILE, self.metrics)
            names = [*HASHED_FILES, *self.ids.write(folder)]
            if self.tokenizer is not None:
                (folder / TOKENIZER_FILE).write_text(self.tokenizer, encoding="utf-8")
                names.append(TOKENIZER_FILE)
            config = {
                "format": FORMAT,
                "version": VERSION,
                "architecture": self.architecture,
                "arguments": self.arguments,
                "files": {name: sha256(folder / name) for name in names},
                "ids": self.ids.fingerprints,
            }
            _write_json(folder / CONFIG_FILE, config)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read and verify the folder `path`.

        Raises:
            CheckpointError: if anything is missing, damaged or of another version; the message names the file, what
                was found and what was expected.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path} is not a folder; expected a checkpoint folder with {CONFIG_FILE}")
        config = read_json(path / CONFIG_FILE, MAX_JSON_BYTES, CheckpointError)
        with _naming(path):
            _check_config(config)
            for name, expected in config["files"].items():
                _check_file(path / name, expected)
        arguments = config["arguments"]
        tokenizer = path / TOKENIZER_FILE if TOKENIZER_FILE in config["files"] else None
        items = _read_parquet(path / ITEMS_FILE, ITEMS_SCHEMA, arguments.get("n_items"))
        users = _read_parquet(path / USERS_FILE, USERS_SCHEMA, arguments.get("n_users"))
        metrics = read_json(path / METRICS_FILE, MAX_JSON_BYTES, CheckpointError)
        state = _read_tensors(path / MODEL_FILE)
        text = None if tokenizer is None else read_text(tokenizer, MAX_TOKENIZER_BYTES, CheckpointError)
        ids = IdMaps.read(path, CheckpointError) if set(config["files"]) & set(ID_FILES.values()) else IdMaps()
        with _naming(path):
            if ids.fingerprints != config.get("ids", {}):
                raise CheckpointError(f"{CONFIG_FILE}: ids is {config.get('ids')!r}; expected {ids.fingerprints}")
            return cls(config["architecture"], arguments, items, users, metrics, state, text, ids)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in an error which checkpoint it is about."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _build_on(device: str, architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a module; on "meta" it costs neither memory nor a draw of the random generator."""
    try:
        with torch.device(device):
            return build_module(architecture, arguments)
    except CheckpointError as error:
        raise CheckpointError(f"{CONFIG_FILE}: {error}") from error
    except Exception as error:  # libraries raise whatever comes of sizes that make no sense
        raise CheckpointError(f"{CONFIG_FILE}: nothing can be built of the arguments ({error})") from error


def check_destination(path: Path) -> None:
    """Raise unless a checkpoint may be saved as `path`: the name is free, or an empty folder's, or a checkpoint's.

    Raises:
        CheckpointError: `path` is something else, which is not to be replaced.
    """
    if path.exists() and not (path / CONFIG_FILE).is_file() and not _is_empty_folder(path):
        raise CheckpointError(f"{path} exists and is not a checkpoint (no {CONFIG_FILE}); not replacing it")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _read_parquet(path: Path, schema: pl.Schema, n_rows: object) -> pl.DataFrame:
    return read_table(path, CheckpointError, columns=schema, n_rows=n_rows if isinstance(n_rows, int) else None)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    read_header(path, CheckpointError)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not readable ({error}); expected a safetensors file") from error


def _check_config(config: dict[str, Any]) -> None:
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{CONFIG_FILE}: format is {config.get('format')!r}; expected {FORMAT!r}")
    if config.get("version") != VERSION:
        raise CheckpointError(f"{CONFIG_FILE}: version is {config.get('version')!r}; this release reads {VERSION}")
    for key, expected in {"architecture": str, "arguments": dict, "files": dict}.items():
        if not isinstance(config.get(key), expected):
            raise CheckpointError(f"{CONFIG_FILE}: {key} is {config.get(key)!r}; expected a {expected.__name__}")
    # Exactly these names: a name with a path in it would lead out of the folder.
    if set(config["files"]) - set(OPTIONAL_FILES) != set(HASHED_FILES):
        raise CheckpointError(
            f"{CONFIG_FILE}: files lists {', '.join(sorted(config['files']))}; expected {', '.join(HASHED_FILES)}, "
            f"{TOKENIZER_FILE} where texts are read, and {' and '.join(ID_FILES.values())} where ids were numbered"
        )


def _check_file(path: Path, expected: object) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing; {CONFIG_FILE} lists it")
    found = sha256(path)
    if found != expected:
        raise CheckpointError(f"{path.name} is damaged: its SHA-256 is {found}; {CONFIG_FILE} lists {expected}")


def _check_table(name: str, table: pl.DataFrame, schema: pl.Schema, key: str, n_rows: object) -> None:
    if table.schema != schema:
        raise CheckpointError(f"{name} has columns {_describe(table.schema)}; expected {_describe(schema)}")
    for column in table.columns:
        if column != "year" and table[column].null_count():
            raise CheckpointError(f"{name}: column {column} has {table[column].null_count()} nulls; expected none")
    if n_rows is not None and table.height != n_rows:
        raise CheckpointError(f"{name} has {table.height} rows; the arguments in {CONFIG_FILE} say {n_rows!r}")
    if not table[key].is_sorted() or table[key].n_unique() != table.height:
        raise CheckpointError(f"{name}: {key} is unsorted or repeated; expected strictly rising ids")


def _check_state(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        told = [f"lacks tensor {describe_names(missing)}"] if missing else []
        told += [f"holds an unknown tensor {describe_names(unknown)}"] if unknown else []
        raise CheckpointError(f"{MODEL_FILE} {' and '.join(told)}; expected {len(expected)} tensors")
    for name, tensor in expected.items():
        got = found[name]
        if got.shape != tensor.shape or got.dtype != tensor.dtype:
            raise CheckpointError(
                f"{MODEL_FILE}: tensor {name} is {got.dtype} {tuple(got.shape)}; "
                f"expected {tensor.dtype} {tuple(tensor.shape)}"
            )
        if got.is_floating_point() and not bool(got.isfinite().all()):
            raise CheckpointError(f"{MODEL_FILE}: tensor {name} holds NaN or infinity; expected finite numbers")


def _describe(schema: pl.Schema) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in schema.items())
