"""A checkpoint, its bundle and the commands give the same numbers."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from fuserec import cli
from fuserec.errors import BundleError, UsageError
from fuserec.evaluators import open_evaluator
from fuserec.export import ExportConfig, export_checkpoint
from fuserec.models.checkpoint import Checkpoint
from fuserec.traffic import Traffic
from fuserec.train.data import DataSet, read_folder
from fuserec.train.questions import questions_of
from fuserec.train.recipes import RECIPES
from fuserec.train.run import Run
from fuserec.train.split import leave_one_out

Fuserec = Callable[..., tuple[int, str, str]]
N_USERS, N_ITEMS = 90, 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose users go up the items from random starts, a checkpoint, and its repository."""
    folder = tmp_path_factory.mktemp("evaluators")
    generator = np.random.default_rng(0)
    rows = [
        (7 * user, 3 * int((start + step) % N_ITEMS), step)
        for user, start in enumerate(generator.integers(0, N_ITEMS, N_USERS))
        for step in range(generator.integers(5, 16))
    ]
    (folder / "data").mkdir()
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    interactions.write_parquet(folder / "data" / "interactions.parquet")
    items = pl.DataFrame({"item_id": 3 * np.arange(N_ITEMS), "title": [f"Part {n}" for n in range(N_ITEMS)]})
    items.write_parquet(folder / "data" / "items.parquet")
    recipe = RECIPES["two-tower"].options({"epochs": 2, "dim": 16, "max_history": 8})
    RECIPES["two-tower"].train(read_folder(folder / "data"), recipe, Run(progress=False)).save(folder / "checkpoint")
    export_checkpoint(folder / "checkpoint", folder / "repository", ExportConfig(precision="fp32"))
    return folder


@pytest.fixture
def fuserec(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Fuserec:
    """Run the command in this process: status, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fuserec", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize("split", ["validation", "test"])
def test_bundle_answers_as_torch_does(folder: Path, split: str) -> None:
    dataset: DataSet = read_folder(folder / "data")
    questions = questions_of(leave_one_out(dataset), split)
    counted: dict[str, int] = {"checkpoint": 0, "repository": 0}
    answers = {}
    for name in counted:

        def count(done: int, name: str = name) -> None:
            counted[name] += done

        answers[name] = open_evaluator(str(folder / name), 1_000).answer(questions, 20, count)
    assert counted == {"checkpoint": N_USERS, "repository": N_USERS}
    torch, bundle = answers["checkpoint"], answers["repository"]
    np.testing.assert_array_equal(bundle.top, torch.top)
    np.testing.assert_array_equal(bundle.ranks, np.minimum(torch.ranks, 21))
    assert bundle.ignored == torch.ignored == 0
    assert (bundle.ranks <= 20).mean() > 0.2, "hardly anything is found: the test would not notice an error"


def test_command_prints_the_numbers_of_metrics_json(folder: Path, fuserec: Fuserec, tmp_path: Path) -> None:
    trained = json.loads((folder / "checkpoint" / "metrics.json").read_text())
    for source, route in (("checkpoint", "torch"), ("repository", "bundle")):
        out = tmp_path / f"{source}.json"
        status, printed, _ = fuserec("evaluate", folder / source, "--data", folder / "data", "--json", "--out", out)
        assert status == 0
        document = json.loads(printed)
        assert document == json.loads(out.read_text())
        assert (document["route"], document["n_users"], document["split"]) == (route, N_USERS, "test")
        for name, value in trained["test"].items():
            assert document["metrics"][name]["value"] == pytest.approx(value, rel=1e-13), f"{name} through {route}"


def test_command_compares_two(folder: Path, fuserec: Fuserec) -> None:
    arguments = ["evaluate", folder / "repository", "--against", folder / "checkpoint", "--data", folder / "data"]
    status, printed, _ = fuserec(*arguments, "--json", "-k", 5, "-k", 10, "--users", 40, "--split", "validation")
    document = json.loads(printed)
    assert status == 0
    assert (document["n_users"], document["against"]["n_users"], document["against"]["route"]) == (40, 40, "torch")
    assert document["difference"]["ndcg@5"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    status, printed, _ = fuserec(*arguments)
    assert status == 0
    assert all(
        part in printed for part in ("ndcg", "tail", "by activity", "A - B", "head (to 50%)", "bootstrap interval")
    )


def test_command_draws_a_picture(folder: Path, fuserec: Fuserec, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "new" / "report.png"
    status, _, error = fuserec("evaluate", folder / "checkpoint", "--data", folder / "data", "--plot", plot)
    assert status == 0, error
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stat().st_size > 10_000


def explained(fuserec: Fuserec, *arguments: object) -> dict[str, Any]:
    status, printed, error = fuserec("explain", *arguments, "--json")
    assert status == 0, error
    document: dict[str, Any] = json.loads(printed)
    return document


@pytest.mark.parametrize("whom", [("--user", 14), ("--history", 3, "--history", 9, "--history", 12)])
def test_bundle_explains_as_torch_does(folder: Path, fuserec: Fuserec, whom: tuple[object, ...]) -> None:
    torch = explained(fuserec, folder / "checkpoint", "--item", 30, *whom)
    bundle = explained(fuserec, folder / "repository", "--item", 30, *whom)
    assert bundle["score"] == pytest.approx(torch["score"], abs=1e-5)
    assert bundle["baseline"] == pytest.approx(torch["baseline"], abs=1e-5)
    assert [line["item_id"] for line in bundle["history"]] == [line["item_id"] for line in torch["history"]]
    contributions = [[line["contribution"] for line in document["history"]] for document in (bundle, torch)]
    np.testing.assert_allclose(*contributions, atol=1e-5)
    assert max(map(abs, contributions[0])) > 1e-3


@pytest.mark.parametrize("source", ["checkpoint", "repository"])
def test_explanation_for_people(folder: Path, fuserec: Fuserec, source: str) -> None:
    status, printed, _ = fuserec("explain", folder / source, "--item", 30, "--history", 3, "--history", 9)
    assert status == 0
    assert all(part in printed for part in ("30 Part 10: score", "Part 1\n", "Part 3\n", "leave-one-out", "█"))


@pytest.fixture(scope="module")
def two_versions(folder: Path) -> Path:
    """The repository with a second version, of other weights and titles; which one is served is to be said."""
    copy = Path(shutil.copytree(folder / "repository", folder / "two_versions"))
    first = Checkpoint.load(folder / "checkpoint")
    items = first.items.with_columns(title="Other " + pl.col("title"))
    generator = torch.Generator().manual_seed(0)
    state = {
        # Times a number: what is zero for padding stays zero.
        name: tensor * torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in first.state.items()
    }
    dataclasses.replace(first, items=items, state=state).save(folder / "other")
    assert export_checkpoint(folder / "other", copy, ExportConfig(precision="fp32")).version == 2
    return copy


@pytest.mark.parametrize(("version", "source"), [(1, "checkpoint"), (2, "other"), (None, "other")])
def test_what_is_served_is_read(
    folder: Path, two_versions: Path, fuserec: Fuserec, version: int | None, source: str
) -> None:
    """A version that is pinned, also where there is a newer one."""
    Traffic(version).write(two_versions)
    questions = questions_of(leave_one_out(read_folder(folder / "data")), "test")
    own, bundle = (
        open_evaluator(str(name), 1_000).answer(questions, 5, lambda done: None)
        for name in (folder / source, two_versions)
    )
    np.testing.assert_array_equal(bundle.top, own.top)
    whom = ("--item", 30, "--user", 14)
    scores = [explained(fuserec, name, *whom)["score"] for name in (folder / source, two_versions)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    status, printed, _ = fuserec("explain", two_versions, *whom)
    assert status == 0 and ("30 Other Part 10: score" in printed) == (source == "other"), printed


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        pytest.param(["evaluate", "nowhere", "--data", "{data}"], 2, "neither a folder nor an address", id="source"),
        pytest.param(["evaluate", "{data}", "--data", "{data}"], 1, "holds no bundle", id="no bundle"),
        pytest.param(["evaluate", "{checkpoint}", "--data", "{data}", "--split", "train"], 2, "'train'", id="split"),
        pytest.param(["evaluate", "{checkpoint}", "--data", "{data}", "-k", "0"], 2, "'-k'", id="k"),
        pytest.param(["evaluate", "{checkpoint}", "--data", "x", "--plot", "a.xyz"], 2, "ends with .png", id="plot"),
        pytest.param(
            ["evaluate", "127.0.0.1:1", "--data", "{data}"], 1, "is `fuserec serve` running there", id="server down"
        ),
        pytest.param(["explain", "{checkpoint}", "--item", "1", "--user", "7"], 2, "item 1 is not in", id="item"),
        pytest.param(["explain", "{repository}", "--item", "1", "--user", "7"], 2, "item_id came as 1", id="its item"),
        pytest.param(["explain", "{checkpoint}", "--item", "3"], 2, "no user was named", id="nobody"),
        pytest.param(["explain", "{checkpoint}", "--item", "3", "--url", "h:1"], 2, "came together", id="two sources"),
        pytest.param(
            ["explain", "{repository}", "--item", "3", "--method", "integrated-gradients"],
            2,
            "know leave-one-out alone",
            id="method",
        ),
        pytest.param(["explain", "--url", "127.0.0.1:1", "--item", "3", "--user", "7"], 1, "running there", id="down"),
    ],
)
def test_wrong_use_is_one_clear_line(
    folder: Path, fuserec: Fuserec, arguments: list[str], status: int, message: str
) -> None:
    names = {name: str(folder / name) for name in ("data", "checkpoint", "repository")}
    came, _, error = fuserec(*(argument.format(**names) for argument in arguments))
    assert came == status, error
    assert message in error and "Traceback" not in error


def test_sources_are_told_apart(folder: Path) -> None:
    assert open_evaluator(str(folder / "checkpoint"), 1_000).route == "torch"
    assert open_evaluator(str(folder / "repository"), 1_000).route == "bundle"
    for address in ("localhost:8001", "grpc://[::1]:8001", "http://host:8000"):
        assert open_evaluator(address, 1_000).route == "server"
    with pytest.raises(UsageError, match="neither"):
        open_evaluator("some/where:else", 1_000)
    with pytest.raises(BundleError, match="holds no bundle"):
        open_evaluator(str(folder), 1_000)
