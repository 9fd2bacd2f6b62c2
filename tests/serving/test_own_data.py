"""docs/your-own-data.md, run as it stands: a shop's CSV becomes a served endpoint in five commands."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from fuserec.serve.launcher import Address
from fuserec.train.data import read_folder
from fuserec.train.metrics import rank_catalogue, summarize
from fuserec.train.split import leave_one_out

from .shop import COLLECTION_SIZE, N_COLLECTIONS, write_shop

pytestmark = pytest.mark.timeout(600)
DOCUMENT = Path(__file__).parents[2] / "docs" / "your-own-data.md"
CUSTOMER = "customer62@shop.example"


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    assert found, f"{DOCUMENT.name} has no section {title!r}"
    return found[1]


def commands(title: str) -> list[list[str]]:
    """The command lines of a section, as arguments after `fuserec`."""
    lines = re.findall(r"^    fuserec (.*)$", section(title), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "XDG_STATE_HOME": str(folder / "state")}
    command = [sys.executable, "-m", "fuserec.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first three commands have been run."""
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    prepare = commands("Five commands")[:3]
    assert [command[0] for command in prepare] == ["data", "train", "export"]
    for command in prepare:
        run(folder, *command)
    return folder


@pytest.fixture(scope="module")
def address(shop: Path) -> Iterator[Address]:
    """Where the fourth command listens; its ports are the only thing that differs from the document."""
    address = Address.free()
    ports = [f"--{name}-port={port}" for name, port in address.ports.items()]
    environment = {**os.environ, "XDG_STATE_HOME": str(shop / "state")}
    [serve] = [command for command in commands("Five commands") if command[0] == "serve"]
    with (shop / "serve.txt").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuserec.cli", *serve, *ports],
            stdout=output, stderr=subprocess.STDOUT, cwd=shop, env=environment,
        )  # fmt: skip
        try:
            while "\ntry:" not in (shop / "serve.txt").read_text():
                assert process.poll() is None, (shop / "serve.txt").read_text()
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def test_there_are_five_commands() -> None:
    assert [command[0] for command in commands("Five commands")] == ["data", "train", "export", "serve", "recommend"]


def test_the_import_has_seen_the_whole_shop(shop: Path) -> None:
    dataset = read_folder(shop / "build" / "data")
    assert dataset.items.height == N_COLLECTIONS * COLLECTION_SIZE
    assert dataset.interactions["user_id"].n_unique() == 200
    assert dataset.items["genres"].list.len().to_list() == [2] * dataset.items.height


def test_the_model_is_better_than_popularity(shop: Path) -> None:
    split = leave_one_out(read_folder(shop / "build" / "data"))
    counts = np.bincount(split.train.values - 1, minlength=split.item_ids.size).astype(np.float32)
    ranking = rank_catalogue(
        torch.ones(split.evaluated.size, 1),
        torch.from_numpy(counts)[:, None],
        split.test_histories,
        torch.from_numpy(split.test_targets),
        10,
    )
    popularity = summarize(ranking, 10)["ndcg@10"]
    trained = json.loads((shop / "build" / "checkpoint" / "metrics.json").read_text())["test"]["ndcg@10"]
    assert popularity > 0.05, "a baseline that finds nothing proves nothing"
    assert trained > 2 * popularity, f"NDCG@10 {trained:.3f}, of popularity {popularity:.3f}"


@pytest.mark.serving
def test_the_endpoint_answers_with_titles(shop: Path, address: Address) -> None:
    recommend = commands("Five commands")[4]
    done = run(shop, *recommend, "--url", f"127.0.0.1:{address.grpc_port}", "--timeout-ms", "20000")
    assert len(re.findall(r"piece \d+ of collection \d+", done.stdout)) == 5, done.stdout


@pytest.mark.serving
def test_a_backend_translates_ids(shop: Path, address: Address) -> None:
    """The document's Python, with the port of this server."""
    [code] = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    code = code.replace("localhost:8001", f"127.0.0.1:{address.grpc_port}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=shop)
    assert done.returncode == 0, done.stderr
    assert len(set(re.findall(r"[A-Z]{2}-\d{5}", done.stdout))) == 5, done.stdout


@pytest.mark.serving
def test_feedback_comes_back_as_data(shop: Path, address: Address) -> None:
    users = dict(pl.read_parquet(shop / "build/data/ids_users.parquet").select("original", "user_id").iter_rows())
    skus = dict(pl.read_parquet(shop / "build/data/ids_items.parquet").select("item_id", "original").iter_rows())
    url = ["--url", f"127.0.0.1:{address.grpc_port}", "--timeout-ms", "20000"]
    done = run(shop, "recommend", "--user", str(users[CUSTOMER]), "--log", "served.jsonl", "--json", *url)
    items = [item["item_id"] for item in json.loads(done.stdout)["items"]]
    [line] = (shop / "served.jsonl").read_text().splitlines()
    answer = json.loads(line)
    assert (answer["user_id"], answer["item_ids"]) == (users[CUSTOMER], items)
    (shop / "actions.csv").write_text(f"user,item,time\n{CUSTOMER},{skus[items[1]]},{answer['timestamp'] + 60}\n")
    [feedback] = [command for command in commands("What users did with it") if command[0] == "data"]
    done = run(shop, *feedback, "--original-ids", "--json")
    report = json.loads(done.stdout)
    assert (report["actions_on_shown"], [rate["acted"] for rate in report["positions"]]) == (1, [0, 1] + [0] * 8)
    assert pl.read_parquet(shop / "build" / "new" / "interactions.parquet")["item_id"].to_list() == [items[1]]
