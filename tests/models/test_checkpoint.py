"""A checkpoint comes back as it was saved, or is refused with the name of the broken file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch

from fuserec.errors import CheckpointError
from fuserec.files import sha256
from fuserec.models.checkpoint import HASHED_FILES, ITEMS_SCHEMA, USERS_SCHEMA, Checkpoint
from fuserec.models.two_tower import TwoTower, TwoTowerConfig

CONFIG = TwoTowerConfig(n_users=2, n_items=3, dim=4, n_genres=1)


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    items = {"item_id": [10, 20, 30], "title": ["a", "b", "c"], "genres": [["x"], [], ["x", "y"]],
             "year": [1990, None, 2000], "count": [2, 1, 0]}  # fmt: skip
    users = {"user_id": [7, 9], "history": [[10, 20], [10]]}
    return Checkpoint(
        architecture="two-tower",
        arguments=dataclasses.asdict(CONFIG),
        items=pl.DataFrame(items, schema=ITEMS_SCHEMA),
        users=pl.DataFrame(users, schema=USERS_SCHEMA),
        metrics={"test": {"ndcg@10": 0.5}},
        state=TwoTower(CONFIG).state_dict(),
    )


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    checkpoint.save(path)
    return path


def test_round_trip(checkpoint: Checkpoint, saved: Path) -> None:
    loaded = Checkpoint.load(saved)
    assert loaded.items.equals(checkpoint.items)
    assert loaded.users.equals(checkpoint.users)
    assert (loaded.architecture, loaded.arguments, loaded.metrics) == (
        checkpoint.architecture,
        checkpoint.arguments,
        checkpoint.metrics,
    )
    assert all(torch.equal(loaded.state[name], tensor) for name, tensor in checkpoint.state.items())


def test_the_module_is_the_trained_one_in_eval_mode(checkpoint: Checkpoint, saved: Path) -> None:
    module, expected = Checkpoint.load(saved).module(), TwoTower(CONFIG)
    expected.load_state_dict(checkpoint.state)
    assert isinstance(module, TwoTower)
    assert not module.training
    torch.testing.assert_close(module.item_vectors(), expected.item_vectors(), rtol=0, atol=0)


def test_the_module_owns_its_weights(checkpoint: Checkpoint) -> None:
    module = checkpoint.module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    assert checkpoint.state["user_tower.user_embedding.weight"].abs().sum() > 0


def test_building_the_module_draws_no_random_numbers(checkpoint: Checkpoint) -> None:
    before = torch.get_rng_state()
    checkpoint.module()
    assert torch.equal(before, torch.get_rng_state())


def test_only_the_files_of_the_format(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {"config.json", *HASHED_FILES}
    config = json.loads((saved / "config.json").read_text())
    assert (config["format"], config["version"]) == ("fuserec-checkpoint", 1)
    assert config["files"] == {name: sha256(saved / name) for name in HASHED_FILES}


def test_saving_replaces_an_older_checkpoint(checkpoint: Checkpoint, saved: Path) -> None:
    dataclasses.replace(checkpoint, metrics={"newer": True}).save(saved)
    assert Checkpoint.load(saved).metrics == {"newer": True}


def test_saving_does_not_replace_a_folder_of_something_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        file = path / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def rewrite(name: str, content: bytes) -> Callable[[Path], None]:
    """Replace a file and its hash, as a careless tool would."""

    def edit(path: Path) -> None:
        (path / name).write_bytes(content)
        hashes = json.loads((path / "config.json").read_text())["files"]
        edit_config(files=hashes | {name: sha256(path / name)})(path)

    return edit


def truncate(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-10]) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


ARGUMENTS = dataclasses.asdict(CONFIG)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *(pytest.param(remove(name), f"{name} is missing", id=f"no-{name}") for name in HASHED_FILES),
        *(pytest.param(truncate(name), f"{name} is damaged", id=f"truncated-{name}") for name in HASHED_FILES),
        pytest.param(remove("config.json"), "config.json cannot be read", id="no-config.json"),
        pytest.param(truncate("config.json"), "config.json is not JSON", id="truncated-config.json"),
        pytest.param(lambda p: (p / "config.json").write_bytes(b"\xff"), "config.json is not JSON", id="not-utf8"),
        pytest.param(lambda p: (p / "config.json").write_text("[]"), "config.json holds a JSON list", id="a-list"),
        pytest.param(edit_config(format="other"), "format is 'other'; expected", id="other-format"),
        pytest.param(edit_config(version=2), "version is 2; this release reads 1", id="newer-version"),
        pytest.param(edit_config(architecture="x"), "config.json: architecture is 'x'", id="unknown-architecture"),
        pytest.param(edit_config(architecture=None), "architecture is None; expected a str", id="no-architecture"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"z": 1}), "unknown z", id="unknown-argument"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"dim": 0}), "dim is 0", id="impossible-argument"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"dim": 8}), "model.safetensors: tensor", id="wrong-shape"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"n_blocks": 2}), "lacks tensor", id="missing-tensor"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"n_items": 4}), "items.parquet has 3 rows", id="items-count"),
        pytest.param(edit_config(arguments=ARGUMENTS | {"n_users": 4}), "users.parquet has 2 rows", id="users-count"),
        pytest.param(edit_config(files={"../x": ""}), "files lists ../x; expected", id="files-outside"),
        pytest.param(rewrite("model.safetensors", b"junk"), "model.safetensors: got 4 bytes", id="junk-tensors"),
        pytest.param(rewrite("items.parquet", b"junk"), "items.parquet is not readable as parquet", id="junk-items"),
        pytest.param(rewrite("metrics.json", b"{"), "metrics.json is not JSON", id="junk-metrics"),
    ],
)
def test_damage_is_refused(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.load(saved)
    assert str(saved) in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"items": "title"}, "items.parquet has columns", id="missing-column"),
        pytest.param({"items": "reversed"}, "item_id is unsorted", id="unsorted-items"),
        pytest.param({"state": "nan"}, "holds NaN", id="nan-weights"),
        pytest.param({"state": "extra"}, "unknown tensor extra", id="unknown-tensor"),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_saving(
    checkpoint: Checkpoint, change: dict[str, str], message: str
) -> None:
    name = "user_tower.user_embedding.weight"
    parts = {
        "title": checkpoint.items.drop("title"),
        "reversed": checkpoint.items.reverse(),
        "nan": checkpoint.state | {name: torch.full_like(checkpoint.state[name], torch.nan)},
        "extra": checkpoint.state | {"extra": torch.zeros(1)},
    }
    with pytest.raises(CheckpointError, match=message):
        dataclasses.replace(checkpoint, **{field: parts[part] for field, part in change.items()})
