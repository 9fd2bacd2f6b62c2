"""The manifest: what a bundle holds, and whether it is still what was published.

A bundle is one version of everything the service needs. It lies in the version folder of its front door, so that a
fuserec repository is an ordinary Triton model repository and nothing else. The front door is `recommend`; a ranker
without a retriever has only `rank`.

    REPOSITORY/
      recommend/config.pbtxt
      recommend/1/model.py  manifest.json  items.parquet  users.parquet  index.safetensors  engines/
      encode/config.pbtxt   encode/1/model.py      (these read the bundle of the front door, same version)
      search/config.pbtxt   search/1/model.py

What the engines of a bundle are is said part by part: the user tower, the text encoder, the ranker.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuserec.contract import FRONT_DOORS
from fuserec.errors import BundleError
from fuserec.files import replacing_file, sha256

FORMAT = "fuserec-bundle"
FORMAT_VERSION = 2
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
        precision: `fp32`, `fp16`, `bf16`, `int8`, `fp8` or `int8-weight-only`.
        build_s: Seconds the build took; 0 for one that was built before.
        parity_error: Largest error of its graph against the trained module, as a share of the largest absolute value.
        quality: `ndcg` and `hr` (@10) of held-out items, None where there are none; `overlap` of the ten best with
            those of float32; `loss` of NDCG@10 against float32, relative.
    """

    file: str
    runtime: str
    runtime_version: str
    precision: str
    build_s: float
    parity_error: float
    quality: dict[str, float | None]


@dataclass(frozen=True)
class PartRecord:
    """One network of a bundle.

    Attributes:
        inputs: Name to dtype and shape.
        outputs: Likewise.
        engines: Target (`cpu`, `sm89`, ...) to engine.
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    engines: dict[str, EngineRecord]


@dataclass(frozen=True)
class TextRecord:
    """What the text encoder is fed with: at most `max_tokens` tokens, shorter texts filled up with `pad_id`."""

    max_tokens: int
    pad_id: int


@dataclass(frozen=True)
class RerankRecord:
    """How the ranker reorders what was retrieved.

    Attributes:
        candidates: How many of the best retrieved items it sees.
        weight: 0 keeps the retriever's order, 1 takes the ranker's.
        users: On how many users this was measured.
        ndcg: NDCG@10 of held-out items by what was measured: `validation_before`, `validation_after`, `test_before`,
            `test_after`; the weight was chosen on the validation items.
    """

    candidates: int
    weight: float
    users: int
    ndcg: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    """What was published, as `manifest.json` holds it.

    Attributes:
        created: UTC time of the export, ISO 8601.
        architecture: Name of the model architecture, such as `two-tower`.
        precision: What was asked for: `auto`, or the precision of every engine that has something to quantize.
        models: What is served, the front door first.
        dim: Length D of user and item vectors; 0 where nothing is retrieved.
        n_users: Users the checkpoint was trained on.
        n_items: Items in the catalogue.
        max_history: Items of a history that the networks read, by part; older ones are cut off.
        parts: The networks: `user_tower`, `text_encoder`, `ranker`.
        text: What the text encoder is fed with; None where there is none.
        heads: What the ranker was trained to say: `click`, `rating`.
        rerank: How `recommend` uses the ranker; None where it does not.
        checkpoint_sha256: Hash of the weights of each checkpoint, by part.
        metrics: What the checkpoint scored, under which protocol.
        tools: Versions of what built this.
        files: Path relative to the repository to size and hash, for every file but the manifest.
    """

    created: str
    architecture: str
    precision: str
    models: list[str]
    dim: int
    n_users: int
    n_items: int
    max_history: dict[str, int]
    parts: dict[str, PartRecord]
    text: TextRecord | None
    heads: list[str]
    rerank: RerankRecord | None
    checkpoint_sha256: dict[str, str]
    metrics: dict[str, Any]
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
            document["parts"] = {name: _part(record) for name, record in document["parts"].items()}
            document["text"] = document["text"] and TextRecord(**document["text"])
            document["rerank"] = document["rerank"] and RerankRecord(**document["rerank"])
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


def _part(record: dict[str, Any]) -> PartRecord:
    engines = {target: EngineRecord(**engine) for target, engine in record["engines"].items()}
    return PartRecord(**{**record, "engines": engines})


def bundle_folder(repository: Path) -> Path:
    """Return the folder of the newest bundle in a repository.

    Raises:
        BundleError: The folder does not exist or holds no bundle.
    """
    if not repository.is_dir():
        raise BundleError(f"{repository} is not a folder; expected a repository written by `fuserec export`")
    found = [path.parent for door in FRONT_DOORS for path in repository.glob(f"{door}/*/{FILE_NAME}")]
    versions = [folder for folder in found if folder.name.isdecimal()]
    if not versions:
        raise BundleError(
            f"{repository} holds no bundle ({FRONT_DOORS[0]}/<version>/{FILE_NAME}); "
            "expected a repository written by `fuserec export`"
        )
    return max(versions, key=lambda path: int(path.name))
