"""What claims gigabytes is refused before they are spent: each in a process whose peak is read."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from fuserec.kernels import ItemIndex
from tests.safety.hostile import MAX_GROWTH_BYTES, long_footer, long_header, put_into_checkpoint, zip_bomb
from tests.safety.parquet_writer import GZIP, int64_file

PROGRAM = """
import resource, sys
from pathlib import Path
{imports}
path = Path(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
try:
    {call}
except {error} as error:
    print(peak() - before, str(error)[:300].replace(chr(10), " "))
"""
CHECKPOINT = {
    "imports": "from fuserec.models.checkpoint import Checkpoint\nfrom fuserec.errors import CheckpointError",
    "call": "Checkpoint.load(path)",
    "error": "CheckpointError",
}
INDEX = {
    "imports": "from fuserec.kernels import ItemIndex\nfrom fuserec.errors import BundleError",
    "call": "ItemIndex.load(path)",
    "error": "BundleError",
}
FOLDER = {
    "imports": "from fuserec.train.data import read_folder\nfrom fuserec.errors import DataError\nimport polars",
    "call": "read_folder(path)",
    "error": "DataError",
}


def growth(path: Path, what: dict[str, str]) -> tuple[int, str]:
    """Return by how many bytes the peak grew until the refusal, and its message."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(**what), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout, "nothing was refused"
    grown, _, message = done.stdout.partition(" ")
    return int(grown), message


def sparse(path: Path, content: bytes) -> None:
    """Write a file of 4 GB that begins with `content` and takes no room."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(2**32)


@pytest.mark.parametrize("content", [long_header, zip_bomb], ids=lambda make: make.__name__)
def test_weights_of_a_checkpoint(checkpoint_folder: Path, tmp_path: Path, content: object) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))
    put_into_checkpoint(folder, "model.safetensors", content(tmp_path))  # type: ignore[operator]
    grown, message = growth(folder, CHECKPOINT)
    assert "a header length of" in message
    assert grown < MAX_GROWTH_BYTES


def test_config_of_four_gigabytes(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))
    sparse(folder / "config.json", b"{")
    grown, message = growth(folder, CHECKPOINT)
    assert "config.json has more than 16777216 bytes" in message
    assert grown < MAX_GROWTH_BYTES


def test_arguments_of_terabytes(checkpoint_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    config["arguments"]["dim"] = 2**30
    (folder / "config.json").write_text(json.dumps(config))
    grown, message = growth(folder, CHECKPOINT)
    assert "config.json" in message
    assert grown < MAX_GROWTH_BYTES


def test_index(tmp_path: Path) -> None:
    sparse(tmp_path / "index", long_header(tmp_path))
    grown, message = growth(tmp_path / "index", INDEX)
    assert "a header length of 2147483648" in message
    assert grown < MAX_GROWTH_BYTES


def test_index_that_claims_more_rows_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "index"
    ItemIndex.build(np.ones((5, 3), np.float32)).save(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'"rows": "5"', b'"rows": "9"'))
    grown, message = growth(path, INDEX)
    assert "got item_ids as" in message
    assert grown < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(long_footer(Path()), "footer has 2147483647", id="footer"),
        # Read by polars itself, this takes 2 GB of memory.
        pytest.param(int64_file(page_bytes=2**31 - 1, codec=GZIP), "pages of", id="page"),
        pytest.param(int64_file(page_bytes=2**31 - 1, column_bytes=2**31, codec=GZIP), "would take", id="column"),
        pytest.param(int64_file(n_rows=2**40), "would take", id="rows"),
    ],
)
def test_interactions(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "interactions.parquet").write_bytes(content)
    pl.DataFrame({"item_id": [1], "title": ["a"]}).write_parquet(tmp_path / "items.parquet")
    grown, message = growth(tmp_path, FOLDER)
    assert expected in message
    assert grown < MAX_GROWTH_BYTES
