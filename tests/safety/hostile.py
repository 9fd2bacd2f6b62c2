"""What an attacker would put in the place of a file."""

from __future__ import annotations

import functools
import io
import json
import pickle  # noqa: TID251  (what is refused must be made first)
import zipfile
from pathlib import Path
from typing import Any

from fuserec.files import sha256

# Enough for any test here, and far from the 2 GB that are claimed.
MAX_GROWTH_BYTES = 256 * 2**20


class Marking:
    """Makes a file appear when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._marker,)


def malicious_pickle(marker: Path) -> bytes:
    """Return a pickle that makes `marker` appear when it is loaded."""
    return pickle.dumps(Marking(marker))


def malicious_torch_file(marker: Path) -> bytes:
    """Return the same as `torch.save` packs it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", malicious_pickle(marker))
        archive.writestr("archive/version", "3\n")
    return content.getvalue()


def zip_bomb(marker: Path) -> bytes:
    """Return an .npz whose one array unpacks to 1 GB."""
    return _zip_bomb()


@functools.cache
def _zip_bomb() -> bytes:
    content = io.BytesIO()
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1073741824,), }"
    header += b" " * (-(11 + len(header)) % 64) + b"\n"
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("codes.npy", "w") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        for _ in range(64):
            file.write(bytes(2**24))
    return content.getvalue()


def long_header(marker: Path) -> bytes:
    """Return the beginning of a safetensors file whose header would have 2 GB."""
    return (2**31).to_bytes(8, "little") + b'{"weight": '


def long_footer(marker: Path) -> bytes:
    """Return a Parquet file whose footer would have 2 GB."""
    return b"PAR1" + bytes(64) + (2**31 - 1).to_bytes(4, "little") + b"PAR1"


def deep_json(marker: Path) -> bytes:
    """Return JSON that nests a million levels deep."""
    return b'{"a":' * 1_000_000


CONTENTS = [malicious_pickle, malicious_torch_file, zip_bomb, long_header, long_footer, deep_json]


def put_into_checkpoint(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a checkpoint, and its hash, as its author could."""
    (folder / name).write_bytes(content)
    if name != "config.json":
        config = json.loads((folder / "config.json").read_text())
        config["files"][name] = sha256(folder / name)
        (folder / "config.json").write_text(json.dumps(config))


def put_into_bundle(bundle: Path, name: str, content: bytes) -> None:
    """Replace a file of a bundle, and its hash, as its author could."""
    (bundle / name).write_bytes(content)
    if name != "manifest.json":
        manifest = json.loads((bundle / "manifest.json").read_text())
        manifest["files"][f"recommend/{name}"] = {"bytes": len(content), "sha256": sha256(bundle / name)}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
