"""Shared fixtures: a small checkpoint, its exported repository, and the real server over it, each made once a run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Two workers share the cores, and each thread that waits for another one spins: models as small as these take half
# as long again with two threads. It is read when torch and BLAS are imported, and by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

if TYPE_CHECKING:
    from fuserec.export.parts import Part
    from fuserec.serve.launcher import Server

# Triton decides when it is imported whether kernels are compiled or interpreted, its own library included. So this
# stands before any other import of it. With a device here they stay compiled, and the suite runs on it.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.experimental.gluon  # noqa: F401  (a launch imports it, and it must find triton interpreted)

    from fuserec.kernels.search import _cuda  # noqa: F401  (and with it every kernel)

    del os.environ["TRITON_INTERPRET"]  # processes that tests start are to compile

N_USERS, N_ITEMS, MAX_HISTORY = 230, 300, 20


def item_id(row: int) -> int:
    """Item ids that are neither rows nor contiguous, so that a mix-up of the two cannot pass."""
    return 1000 + 7 * row


def write_untrained(architecture: str, folder: Path) -> None:
    """Write a checkpoint of an architecture with fixed random weights over a synthetic catalogue."""
    import numpy as np
    import polars as pl

    from fuserec.models.checkpoint import Checkpoint
    from fuserec.models.registry import ARCHITECTURES, build_module

    rng = np.random.default_rng(7)
    histories = [rng.integers(0, N_ITEMS, rng.integers(3, 40)) for _ in range(N_USERS)]
    counts = np.bincount(np.concatenate(histories), minlength=N_ITEMS)
    items = pl.DataFrame(
        {
            "item_id": [item_id(row) for row in range(N_ITEMS)],
            "title": [f"Item {row}" for row in range(N_ITEMS)],
            "genres": [["Even" if row % 2 == 0 else "Odd"] for row in range(N_ITEMS)],
            "year": pl.Series([1990 + row % 10 for row in range(N_ITEMS)], dtype=pl.Int32),
            "count": counts,
        },
        schema_overrides={"genres": pl.List(pl.String), "count": pl.Int64},
    )
    users = pl.DataFrame(
        {
            "user_id": [5 + 3 * row for row in range(N_USERS)],
            "history": [[item_id(int(row)) for row in history] for history in histories],
        }
    )
    sizes = {"n_users": N_USERS, "n_items": N_ITEMS, "dim": 32, "max_history": MAX_HISTORY}
    fields = {field.name for field in dataclasses.fields(ARCHITECTURES[architecture].config_type)}
    arguments: dict[str, object] = {name: size for name, size in sizes.items() if name in fields}
    tokenizer = None
    if "encoder" in fields:
        arguments |= {"encoder": TINY_ENCODER, "max_tokens": 8}
        tokenizer = tiny_tokenizer(items["title"].to_list())
    if "first_token" in fields:
        arguments |= {"first_token": 1, "max_tokens": 4, "max_history": 5}
    torch.manual_seed(0)
    module = build_module(architecture, arguments)
    if tokenizer is not None:
        from fuserec.tokens import Tokenizer

        tokens = torch.from_numpy(Tokenizer(tokenizer, max_tokens=4, pad_id=0)(items["title"].to_list()))
        reader = module.rank_tower if "first_token" in fields else module
        reader.tokens[1:, : tokens.shape[1]] = tokens
        if reader is module:
            module.refresh()
    metrics = {"note": "untrained"}
    Checkpoint(architecture, arguments, items, users, metrics, module.state_dict(), tokenizer).save(folder)


TINY_ENCODER = json.dumps(
    {
        "model_type": "bert",
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    }
)


def tiny_tokenizer(texts: list[str]) -> str:
    """Return the `tokenizer.json` of a tokenizer that knows the words of some texts, at most 400."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = dict.fromkeys(word for text in texts for word in text.lower().split())
    numbers = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *words][:400])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text: str = tokenizer.to_str()
    return text


def write_encoder(folder: Path, texts: list[str]) -> None:
    """Write an encoder with fixed random weights, which knows the words of some texts, as transformers does."""
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    BertModel(BertConfig(**json.loads(TINY_ENCODER))).save_pretrained(folder)
    library = Tokenizer.from_str(tiny_tokenizer(texts))
    PreTrainedTokenizerFast(tokenizer_object=library, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


@pytest.fixture
def fuserec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Return what runs the command in this process: its status, and what it printed, on stderr if it failed."""
    from fuserec import cli

    def run(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fuserec", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out if status == 0 else captured.err

    return run


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Engines that are built while testing go into a cache of their own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEREC_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def untrained() -> Callable[[str, Path], None]:
    """Return `write_untrained`."""
    return write_untrained


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained two-tower."""
    folder = tmp_path_factory.mktemp("checkpoint") / "checkpoint"
    write_untrained("two-tower", folder)
    return folder


def fingerprint(part: Part) -> str:
    """Return a hash of what determines the graph of a part: its layers, their settings and tensors, and its axes."""
    plain = (bool, int, float, str, tuple, dict)
    digest = hashlib.sha256(repr((str(part.module), part.inputs, part.output)).encode())
    for name, module in part.module.named_modules():
        kept = {
            key: value
            for key, value in vars(module).items()
            if (isinstance(value, plain) or dataclasses.is_dataclass(value)) and key != "training" and key[:1] != "_"
        }
        digest.update(repr((name, sorted(kept.items()))).encode())
    for name, tensor in (*part.module.named_parameters(), *part.module.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def trace_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which an export traces no network a second time, in whatever worker the first was.

    Tracing is nearly all that an export of a small model takes. An export compares each graph with its module, so one
    that were another's would not pass.
    """
    from fuserec.files import locked

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"

    @contextlib.contextmanager
    def once() -> Iterator[None]:
        from fuserec.export import ladder

        trace = ladder.export_graph

        def copy_or_trace(part: Part, path: Path) -> None:
            kept = folder / f"{fingerprint(part)}.onnx"
            with locked(kept.with_suffix(".lock")):
                if not kept.exists():
                    trace(part, kept.with_suffix(".new"))
                    kept.with_suffix(".new").rename(kept)
            shutil.copyfile(kept, path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder, "export_graph", copy_or_trace)
            yield

    return once


@pytest.fixture(scope="session")
def repository(
    checkpoint_folder: Path,
    trace_once: Callable[[], AbstractContextManager[None]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The checkpoint as an int8 repository with one GPU target; tests must not change it."""
    from fuserec.export import ExportConfig, Gate, export_checkpoint

    folder = tmp_path_factory.mktemp("repository") / "repository"
    # The weights are random: what a precision costs in ranking is of no account.
    config = ExportConfig(precision="int8", targets=("sm89",), gate=Gate(accept_loss=True))
    with trace_once():
        export_checkpoint(checkpoint_folder, folder, config)
    return folder


@pytest.fixture(scope="session")
def bundle(repository: Path) -> Path:
    """The bundle folder of the repository."""
    return repository / "recommend" / "1"


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[Server]:
    """The real inference server over the repository; tests must leave it as it was."""
    from fuserec.serve.launcher import Address, Server

    with Server(repository, address=Address.free()) as server:
        yield server
