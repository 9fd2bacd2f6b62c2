"""Models of RecBole: real files of version 1.2.1 (see make_recbole.py), and pickles that are up to something."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fuserec.errors import CheckpointError, DataError, UsageError
from fuserec.importers import _recbole_reader, recbole
from fuserec.importers._recbole_reader import read
from fuserec.importers.recbole import import_recbole, read_saved
from fuserec.models.checkpoint import Checkpoint
from fuserec.models.retriever import Retriever
from tests.importers.conftest import FILES, DataWriter

REAL: dict[str, Any] = json.loads((FILES / "recbole.json").read_text())
USERS = [5 + 3 * row for row in range(12)]
ITEMS = [100 + 7 * row for row in range(9)]
# Any histories do: what the model says of a history does not depend on whose it is.
PAIRS = [(user, ITEMS[(place + step) % 9]) for place, user in enumerate(USERS) for step in range(4)]
ARCHITECTURES = {"BPR": "mf", "SASRec": "recbole-sasrec", "GRU4Rec": "recbole-gru4rec"}


@pytest.fixture
def numbering(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes RecBole's numbering as it stands in recbole.json, or changed."""

    def write(model: str, **changes: Any) -> Path:
        path = tmp_path / f"{model}.tokens.json"
        path.write_text(json.dumps(REAL[model]["tokens"] | changes))
        return path

    return write


@pytest.fixture
def as_read(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that gives a path which reads as a real file with some changes, without a process for it."""

    def change(model: str, settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
        path = FILES / f"recbole-{model}.pth"
        found, plain = read(path)
        saved = recbole.Saved(path, {**found, **tensors}, {**plain, **settings})
        monkeypatch.setattr(recbole, "read_saved", lambda _: saved)
        return path

    return change


def scores_of(checkpoint: Checkpoint, users: list[int], histories: list[list[int]]) -> torch.Tensor:
    """(B, items) for user ids, or 0 for nobody, and histories of item ids."""
    module = checkpoint.module()
    assert isinstance(module, Retriever)
    user_rows = {user: row for row, user in enumerate(checkpoint.users["user_id"], start=1)}
    item_rows = {item: row for row, item in enumerate(checkpoint.items["item_id"], start=1)}
    width = max(map(len, histories))
    padded = [[0] * (width - len(history)) + [item_rows[item] for item in history] for history in histories]
    with torch.no_grad():
        user = torch.tensor([user_rows.get(user, 0) for user in users])
        scores: torch.Tensor = module.user_tower(user, torch.tensor(padded)) @ module.item_vectors().T
    return scores


@pytest.mark.parametrize("model", ARCHITECTURES)
def test_scores_are_those_of_recbole(model: str, write_data: DataWriter, numbering: Callable[..., Path]) -> None:
    checkpoint = import_recbole(
        FILES / f"recbole-{model}.pth", write_data(PAIRS, ITEMS), numbering(model), trust_pickle=True
    )
    assert checkpoint.architecture == ARCHITECTURES[model]
    assert checkpoint.items["item_id"].to_list() == ITEMS and checkpoint.users["user_id"].to_list() == USERS
    tokens = REAL[model]["tokens"]
    users = [int(tokens["user_id"][number]) for number in REAL[model].get("users", [])]
    numbers = REAL[model].get("histories", [[1]] * len(users))
    histories = [[int(tokens["item_id"][number]) for number in history] for history in numbers]
    found = scores_of(checkpoint, users or [0] * len(histories), histories)
    columns = [ITEMS.index(int(token)) for token in tokens["item_id"][1:]]
    assert (found[:, columns] - torch.tensor(REAL[model]["scores"])[:, 1:]).abs().max() < 1e-6
    assert found.std() > 1e-3, "all items score alike, which any model would pass with"


def test_items_of_only_one_side_are_left_out(
    as_read: Callable[..., Path], write_data: DataWriter, numbering: Callable[..., Path]
) -> None:
    data = write_data([pair for pair in PAIRS if pair[1] != ITEMS[4]], [*ITEMS[:4], *ITEMS[5:], 999])
    path = as_read("GRU4Rec", {}, {})
    smaller = import_recbole(path, data, numbering("GRU4Rec"), trust_pickle=True)
    assert smaller.items["item_id"].to_list() == [*ITEMS[:4], *ITEMS[5:]]
    left_out = smaller.metrics["imported"]["left_out"]
    assert (left_out["rows_of_unknown_items"], left_out["items_without_vector"]) == (1, 1)
    whole = import_recbole(path, write_data(PAIRS, ITEMS, "whole"), numbering("GRU4Rec"), trust_pickle=True)
    history = [[ITEMS[0], ITEMS[8], ITEMS[6]]]
    kept = [column for column in range(9) if column != 4]
    assert torch.allclose(scores_of(smaller, [0], history), scores_of(whole, [0], history)[:, kept], atol=1e-6)


def test_without_trust_nothing_is_opened(
    write_data: DataWriter, numbering: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recbole, "read_saved", lambda path: pytest.fail("the file was opened"))
    with pytest.raises(UsageError, match="can run any program when it is opened.*--trust-pickle"):
        import_recbole(FILES / "recbole-BPR.pth", write_data(PAIRS, ITEMS), numbering("BPR"), trust_pickle=False)


class Config:
    """As RecBole's, of which only this attribute is read."""

    def __init__(self, **settings: object) -> None:
        self.final_config_dict = settings


class Touch:
    """When unpickled, it runs a program that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


def save(path: Path, **saved: object) -> Path:
    torch.save(saved, path, pickle_protocol=4)
    return path


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    """Trusted by mistake, it is opened; the names in it are stand-ins and the tensors are taken out all the same."""
    path = save(
        tmp_path / "model.pth",
        config=Config(model="BPR", bad=Touch(tmp_path / "ran")),
        state_dict={"item_embedding.weight": torch.ones(2, 3), "bad": Touch(tmp_path / "ran")},
    )
    torch.load(path, weights_only=False)  # the trap works
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    saved = read_saved(path)
    assert not (tmp_path / "ran").exists(), "a program in the file was run"
    assert list(saved.tensors) == ["item_embedding.weight"] and saved.settings == {"model": "BPR"}


def test_what_is_no_file_of_recbole(tmp_path: Path) -> None:
    for path, message in (
        (save(tmp_path / "other.pth", weights=torch.ones(2)), "no config and state_dict"),
        (save(tmp_path / "plain.pth", config={}, state_dict={}), "no final_config_dict"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)


def test_archives_that_are_not_as_torch_writes_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(FILES / "recbole-BPR.pth") as good:
        members = {member.filename: good.read(member) for member in good.infolist()}
    folder = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in members.items():
            bomb.writestr(name, content)
    with pytest.raises(ValueError, match="is compressed; expected none to be"):
        read(tmp_path / "bomb.pth")
    with zipfile.ZipFile(tmp_path / "script.pth", "w") as script:
        for name, content in {**members, f"{folder}/constants.pkl": b""}.items():
            script.writestr(name, content)
    with pytest.raises(ValueError, match="TorchScript"):
        read(tmp_path / "script.pth")


def test_a_truncated_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes((FILES / "recbole-BPR.pth").read_bytes()[:4000])
    with pytest.raises(CheckpointError, match=r"model.pth cannot be read \(BadZipFile: .*\); expected what RecBole"):
        read_saved(path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("\n\n  storage has wrong size\nsecond"), "RuntimeError: storage has wrong size"),
        (RuntimeError(""), "RuntimeError: no reason was given"),
    ],
)
def test_the_reader_always_gives_a_reason(
    error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise error

    (tmp_path / "model.pth").write_bytes(b"x")
    monkeypatch.setattr(_recbole_reader, "read", fail)
    monkeypatch.setattr(_recbole_reader.resource, "setrlimit", lambda *limits: None)
    with pytest.raises(SystemExit, match=said):
        _recbole_reader.main(tmp_path / "model.pth", tmp_path / "out")


def test_the_reader_sees_nothing_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    seen: dict[str, Any] = {}

    def run(command: list[str], **options: Any) -> None:
        seen.update(options)
        raise recbole.subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(recbole.subprocess, "run", run)
    with pytest.raises(CheckpointError, match="was not read within 300 s"):
        read_saved(FILES / "recbole-BPR.pth")
    assert set(seen["env"]) == {"PYTHONPATH", "PATH"}


@pytest.mark.parametrize(
    ("model", "settings", "tensors", "message"),
    [
        pytest.param("BPR", {"model": "LightGCN"}, {}, "is a LightGCN; expected one of BPR, SASRec", id="model"),
        pytest.param("BPR", {"model": None}, {}, "its setting model is None; expected a str", id="no-model"),
        pytest.param("SASRec", {"n_heads": "2"}, {}, "setting n_heads is '2'; expected a int", id="text"),
        pytest.param("SASRec", {"n_heads": 3}, {}, "expected a multiple of n_heads", id="heads"),
        pytest.param("SASRec", {"hidden_act": "celu"}, {}, "activation is 'celu'", id="activation"),
        pytest.param("SASRec", {"n_layers": 2}, {}, "lacks tensor user_tower.encoder.layer.1", id="layers"),
        pytest.param("GRU4Rec", {"MAX_ITEM_LIST_LENGTH": 10**9}, {}, "reads 1000000000 items", id="length"),
        pytest.param("BPR", {}, {"item_embedding.weight": torch.ones(10)}, r"\(10,\); expected a matrix", id="shape"),
        pytest.param("GRU4Rec", {}, {"dense.bias": torch.full((4,), torch.nan)}, "NaN or infinity", id="nan"),
    ],
)
def test_settings_and_tensors_that_do_not_fit(
    model: str,
    settings: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    message: str,
    as_read: Callable[..., Path],
    write_data: DataWriter,
    numbering: Callable[..., Path],
) -> None:
    path = as_read(model, settings, tensors)
    with pytest.raises(CheckpointError, match=message):
        import_recbole(path, write_data(PAIRS, ITEMS), numbering(model), trust_pickle=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"item_id": ["[PAD]", "100"]}, "numbers 2 items, .* has 10, padding included"),
        ({"item_id": ["100", "107"]}, r'item_id is not a list of texts that begins with "\[PAD\]"'),
        ({"user_id": ["[PAD]", 5]}, "user_id is not a list of texts"),
        ({"item_id": ["[PAD]", *["100"] * 9]}, "item '100' stands there 9 times"),
        ({"item_id": ["[PAD]", *map(str, range(9))]}, "0 are the same"),
    ],
)
def test_numberings_that_do_not_fit(
    changes: dict[str, Any],
    message: str,
    as_read: Callable[..., Path],
    write_data: DataWriter,
    numbering: Callable[..., Path],
) -> None:
    path = as_read("BPR", {}, {})
    with pytest.raises(DataError, match=message):
        import_recbole(path, write_data(PAIRS, ITEMS), numbering("BPR", **changes), trust_pickle=True)
