"""`fuserec import` as a command: a checkpoint of each kind, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

Run = Callable[..., tuple[int, str]]
FILES = Path(__file__).parent / "importers"


def write_data(folder: Path, users: int, items: int) -> Path:
    """Write users and items 0, 1, 2, ... as the ids of the real files of implicit are."""
    folder.mkdir()
    pairs = [(user, (user + step) % items) for user in range(users) for step in range(4)]
    interactions = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp")
    interactions.with_columns(pl.col("timestamp").cast(pl.Int64)).write_parquet(folder / "interactions.parquet")
    titles = [f"item {item}" for item in range(items)]
    pl.DataFrame({"item_id": range(items), "title": titles}).write_parquet(folder / "items.parquet")
    return folder


def test_implicit_and_its_export(fuserec: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 14, 11)
    out = tmp_path / "checkpoint"
    status, output = fuserec("import", "implicit", FILES / "implicit-bpr.npz", "--data", data, "--out", out)
    assert status == 0, output
    assert f"wrote {out}: mf, 11 items, 14 users\nnext: fuserec export" in output
    status, output = fuserec("export", out, "--repository", tmp_path / "repository", "--precision", "fp32", "--json")
    assert status == 0, output
    engine = json.loads(output)["parts"]["user_tower"]["engines"]["cpu"]
    assert engine["parity_error"] < 1e-5 and engine["quality"]["overlap"] == 1.0


def test_an_encoder_for_programs(fuserec: Run, tmp_path: Path) -> None:
    from tests.conftest import write_encoder

    data = write_data(tmp_path / "data", 5, 6)
    write_encoder(tmp_path / "encoder", [f"item {item}" for item in range(6)])
    status, output = fuserec("import", "hf", tmp_path / "encoder", "--data", data, "--out", tmp_path / "c", "--json")
    assert status == 0, output
    report: dict[str, Any] = json.loads(output)
    assert (report["architecture"], report["items"], report["users"]) == ("text", 6, 5)
    assert list(report["sha256"]) == ["model.safetensors"]


def test_recbole_asks_for_trust_first(fuserec: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 12, 9)
    tokens = tmp_path / "tokens.json"
    numbering = {"user_id": ["[PAD]", *map(str, range(12))], "item_id": ["[PAD]", *map(str, range(9))]}
    tokens.write_text(json.dumps(numbering))
    arguments = ["import", "recbole", FILES / "recbole-GRU4Rec.pth", "--data", data, "--tokens", tokens]
    status, output = fuserec(*arguments, "--out", tmp_path / "c")
    assert status == 2 and "--trust-pickle" in output and not (tmp_path / "c").exists()
    status, output = fuserec(*arguments, "--out", tmp_path / "c", "--trust-pickle")
    assert status == 0 and "recbole-gru4rec, 9 items, 12 users" in output, output


def test_what_is_left_out_is_said(fuserec: Run, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 13, 12)
    arguments = ["import", "implicit", FILES / "implicit-als.npz", "--data", data, "--out", tmp_path / "c"]
    status, output = fuserec(*arguments)
    assert status == 1 and "14 rows of user factors; the data has 13 users" in output
    status, output = fuserec(*arguments, "--row-is-id")
    assert status == 0, output
    assert "left out, items without vector: 1" in output and "left out, rows of unknown users: 1" in output


def test_another_folder_is_not_replaced(fuserec: Run, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "letter.txt").write_text("dear")
    data = write_data(tmp_path / "data", 14, 11)
    status, output = fuserec("import", "implicit", FILES / "implicit-als.npz", "--data", data, "--out", tmp_path / "c")
    assert status == 1 and "is not a checkpoint" in output
