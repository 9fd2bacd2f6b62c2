"""The manifest: what a bundle holds, and whether it is still what was published.

A bundle is one version of everything the service needs. It lies in the version folder of the `recommend` model,
so that a fuserec repository is an ordinary Triton model repository and nothing else:

    REPOSITORY/
      recommend/config.pbtxt
      recommend/1/model.py  manifest.json  items.parquet  users.parquet  index.safetensors  engines/
      encode/config.pbtxt   encode/1/model.py      (both read the bundle of recommend, same version)
      search/config.pbtxt   search/1/model.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuserec.contract import RECOMMEND
from fuserec.errors import BundleError
from fuserec.files import replacing_file, sha256

FORMAT = "fuserec-bundle"
FORMAT_VERSION = 1
FILE_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (64 hex digits) of one published file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Measure a file."""
        return cls(path.stat().st_size, sha256(path))


@dataclass(frozen=True)
class EngineRecord:
    """One built engine: where it lies and what can run it.

    Attributes:
        file: Path relative to the bundle folder.
        runtime: `onnxruntime` or `tensorrt-rtx`.
        runtime_version: The version that built it; a TensorRT-RTX engine runs under no other.
        precision: `fp32`, `fp16` or `int8`.
        build_s: Seconds the build took.
    """

    file: str
    runtime: str
    runtime_version: str
    precision: str
    build_s: float


@dataclass(frozen=True)
class Manifest:
    """What was published, as `manifest.json` holds it.

    Attributes:
        created: UTC time of the export, ISO 8601.
        architecture: Name of the model architecture, such as `two-tower`.
        precision: Precision of every engine in the bundle.
        dim: Length D of user and item vectors.
        n_users: Users the checkpoint was trained on.
        n_items: Items in the catalogue.
        max_history: Items of a history that the user tower reads; older ones are cut off.
        inputs: Inputs of the engine: name to dtype and shape.
        outputs: Outputs of the engine, likewise.
        engines: Target (`cpu`, `sm89`, ...) to engine.
        checkpoint_sha256: Hash of the checkpoint's weights.
        metrics: What the checkpoint scored, under which protocol.
        parity: How far the exported graph is from the trained module.
        tools: Versions of what built this.
        files: Path relative to the repository to size and hash, for every file but the manifest.
    """

    created: str
    architecture: str
    precision: str
    dim: int
    n_users: int
    n_items: int
    max_history: int
    inputs: dict[str, str]
    outputs: dict[str, str]
    engines: dict[str, EngineRecord]
    checkpoint_sha256: str
    metrics: dict[str, Any]
    parity: dict[str, float]
    tools: dict[str, str]
    files: dict[str, FileRecord] = field(default_factory=dict)

    def write(self, bundle: Path) -> None:
        """Write `manifest.json` into the bundle folder."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        with replacing_file(bundle / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Read and check `manifest.json` of a bundle folder.

        Raises:
            BundleError: It is missing, is not JSON, or is of another format or version.
        """
        path = bundle / FILE_NAME
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"{path} is larger than any manifest ({MAX_MANIFEST_BYTES} bytes); export again")
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise BundleError(f"{path} is missing: {bundle} is not a bundle written by `fuserec export`") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{path} is not JSON ({error}); export again") from None
        if not isinstance(document, dict):
            raise BundleError(f"{path} holds a JSON {type(document).__name__}, expected an object; export again")
        came = (document.pop("format", None), document.pop("format_version", None))
        if came != (FORMAT, FORMAT_VERSION):
            raise BundleError(
                f"{path} has format {came[0]!r} version {came[1]!r}, "
                f"this fuserec reads {FORMAT!r} version {FORMAT_VERSION}; export again"
            )
        try:
            document["engines"] = {name: EngineRecord(**record) for name, record in document["engines"].items()}
            document["files"] = {name: FileRecord(**record) for name, record in document["files"].items()}
            return cls(**document)
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path} does not have the fields of a manifest ({error}); export again") from None

    def verify(self, repository: Path, only: Iterable[str] | None = None) -> None:
        """Compare the files of a repository with their recorded sizes and hashes.

        Args:
            repository: The folder that `files` is relative to.
            only: Check just these files; all of them when None.

        Raises:
            BundleError: The first file that is missing, of another size, or of another hash.
        """
        for name in self.files if only is None else only:
            record, path = self.files.get(name), repository / name
            if record is None:
                raise BundleError(f"{name} is not among the files that were published; export again")
            if not path.is_file():
                raise BundleError(f"{path} is missing, though the manifest lists it; export again")
            if (size := path.stat().st_size) != record.bytes:
                raise BundleError(f"{path} has {size} bytes, the manifest says {record.bytes}; export again")
            if (digest := sha256(path)) != record.sha256:
                raise BundleError(
                    f"{path} was changed after it was published: its SHA-256 is {digest[:12]}..., "
                    f"the manifest says {record.sha256[:12]}...; export again"
                )


def bundle_folder(repository: Path) -> Path:
    """Return the folder of the newest bundle in a repository.

    Raises:
        BundleError: The folder does not exist or holds no bundle.
    """
    if not repository.is_dir():
        raise BundleError(f"{repository} is not a folder; expected a repository written by `fuserec export`")
    versions = [path.parent for path in repository.glob(f"{RECOMMEND}/*/{FILE_NAME}") if path.parent.name.isdecimal()]
    if not versions:
        raise BundleError(
            f"{repository} holds no bundle ({RECOMMEND}/<version>/{FILE_NAME}); "
            "expected a repository written by `fuserec export`"
        )
    return max(versions, key=lambda path: int(path.name))
