"""The manifest: what a bundle holds, and whether it is still what was published.

A bundle is one version of everything the service needs. It lies in the version folder of its front door, so that a
fuserec repository is an ordinary Triton model repository and nothing else. The front door is `recommend`; a ranker
without a retriever has only `rank`.

    REPOSITORY/
      recommend/config.pbtxt
      recommend/3/model.py  manifest.json  items.parquet  users.parquet  index.safetensors  engines/  config.pbtxt
      encode/config.pbtxt   encode/3/model.py  config.pbtxt     (these read the bundle of the front door, same version)
      search/config.pbtxt   search/3/model.py  config.pbtxt

A version folder is never changed once it is there; what the server reads of a model's `config.pbtxt` is a copy of the
one in a version folder. The manifest does not know its number, which is the name of the folder it lies in: it lists
`recommend/index.safetensors` for `recommend/3/index.safetensors`.

What the engines of a bundle are is said part by part: the user tower, the text encoder, the ranker.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fuserec.contract import FRONT_DOORS, MODELS
from fuserec.errors import BundleError
from fuserec.files import replacing_file, sha256
from fuserec.id_map import ID_FILES
from fuserec.records import from_json
from fuserec.untrusted.documents import read_json

FORMAT: Final = "fuserec-bundle"
FORMAT_VERSION: Final = 3
FILE_NAME: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 16 * 2**20
# What every model of a repository has: what it is to the server, and its code.
CONFIG_FILE: Final = "config.pbtxt"
CODE_FILE: Final = "model.py"
# The server passes over folders whose name begins with a zero.
_VERSION = re.compile("[1-9][0-9]{0,17}")


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
    """What the text encoder is fed with: at most `max_tokens` tokens, shorter texts filled up with `pad_id`.

    `prompt` stands before every text. `literal_pad` says whether the graph knows `fuserec.tokens.LITERAL_PAD`.
    """

    max_tokens: int
    pad_id: int
    prompt: str = ""
    literal_pad: bool = False


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
        data_fingerprint: SHA-256 over the items and users that the checkpoint holds.
        inputs_sha256: SHA-256 over everything that determines the bundle; an export with the same one is the same.
        metrics: What the checkpoint scored, under which protocol.
        tools: Versions of what built this.
        ids: Fingerprint of the map of `users` and of `items` (`fuserec.id_map`), where ids were numbered; the maps lie
            beside the manifest.
        files: `MODEL/FILE`, which lies in `MODEL/<version>/FILE`, to size and hash; all but the manifest itself.
        version: Name of the folder it was read from, 0 before it is published; not part of the file.
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
    data_fingerprint: str
    inputs_sha256: str
    metrics: dict[str, Any]
    tools: dict[str, str]
    files: dict[str, FileRecord]
    ids: dict[str, str] = field(default_factory=dict)
    version: int = 0

    def __post_init__(self) -> None:
        if not self.models or self.models[0] not in FRONT_DOORS or not set(self.models) <= set(MODELS):
            raise ValueError(f"models came as {self.models}, expected {' or '.join(FRONT_DOORS)}, then of {MODELS}")
        if unknown := sorted(self.ids.keys() - ID_FILES):
            raise ValueError(f"ids has {unknown[0]!r}, expected some of {', '.join(ID_FILES)}")
        for name in self.files:
            model, *inside = name.split("/")
            if model not in self.models or not inside or {"", ".", ".."} & set(inside) or "\\" in name:
                raise ValueError(f"files has {name!r}, expected MODEL/FILE of one of {', '.join(self.models)}")
        if missing := sorted(self._needed() - self.files.keys()):
            raise ValueError(f"files lacks {missing[0]!r}")

    def _needed(self) -> set[str]:
        """Return what is read of a bundle; nothing is that was not compared with its hash."""
        read = ["items.parquet", "users.parquet"]
        read += [engine.file for part in self.parts.values() for engine in part.engines.values()]
        read += ["index.safetensors"] if self.dim else []
        read += ["tokenizer.json"] if self.text else []
        read += [ID_FILES[kind] for kind in self.ids]
        in_each = {f"{model}/{name}" for model in self.models for name in (CODE_FILE, CONFIG_FILE)}
        return in_each | {f"{self.models[0]}/{name}" for name in read}

    def write(self, bundle: Path) -> None:
        """Write `manifest.json` into the bundle folder."""
        document = {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        del document["version"]
        with replacing_file(bundle / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(document, indent=2) + "\n")

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Read and check `manifest.json` of a bundle folder, `REPOSITORY/recommend/<version>`.

        Raises:
            BundleError: It is missing, is not JSON, or is of another format or version.
        """
        path = bundle / FILE_NAME
        if not _VERSION.fullmatch(bundle.name):
            raise BundleError(f"{bundle} is not a version of a model: expected a number, 1 or more, as its name")
        if not path.is_file():
            raise BundleError(f"{path} is missing: {bundle} is not a bundle written by `fuserec export`")
        document = read_json(path, MAX_MANIFEST_BYTES, BundleError)
        came = (document.pop("format", None), document.pop("format_version", None))
        if came != (FORMAT, FORMAT_VERSION):
            raise BundleError(
                f"{path} has format {came[0]!r} version {came[1]!r}, "
                f"this fuserec reads {FORMAT!r} version {FORMAT_VERSION}; export again"
            )
        try:
            if "version" in document:
                raise ValueError("it has an unknown field 'version'")
            # Bundles of before there were id maps and prompts have none.
            if isinstance(document.get("text"), dict):
                document["text"] = {"prompt": "", "literal_pad": False, **document["text"]}
            return from_json(cls, {"ids": {}, **document, "version": int(bundle.name)})
        except ValueError as error:
            raise BundleError(f"{path} does not have the fields of a manifest ({error}); export again") from None

    def path_of(self, name: str) -> str:
        """Return where one of `files` lies, relative to the repository."""
        model, _, file = name.partition("/")
        return f"{model}/{self.version}/{file}"

    def paths(self, repository: Path) -> Iterator[Path]:
        """Yield where the files of this version lie, the manifest first."""
        yield repository / self.models[0] / str(self.version) / FILE_NAME
        yield from (repository / self.path_of(name) for name in self.files)

    def verify_configs(self, repository: Path) -> None:
        """Compare the files that all versions share, `MODEL/config.pbtxt`, with those of some version.

        Raises:
            BundleError: One is missing, cannot be read, or was published with no version.
        """
        try:
            for model in self.models:
                _verify_config(repository / model, repository.resolve())
        except (OSError, RuntimeError) as error:
            raise BundleError(f"the configurations of {repository} cannot be read: {error!s:.300}") from None

    def verify(self, repository: Path, between: Callable[[], object] | None = None) -> None:
        """Compare the files of a repository with what was published: all sizes, then all hashes.

        Args:
            repository: Where the bundle lies.
            between: Called again and again while files are read; what it raises ends it.

        Raises:
            BundleError: The first file that is missing, cannot be read, is of another size, of another hash, or not in
                the repository.
        """
        try:
            self._verify(repository, between)
        except (OSError, RuntimeError) as error:  # the latter for links that lead in a circle
            raise BundleError(f"version {self.version} of {repository} cannot be read: {error!s:.300}") from None

    def _verify(self, repository: Path, between: Callable[[], object] | None) -> None:
        root = repository.resolve()
        for name, record in self.files.items():
            path = repository / self.path_of(name)
            _check_there(path, root)
            if (size := path.stat().st_size) != record.bytes:
                raise BundleError(f"{path} has {size} bytes, the manifest says {record.bytes}; export again")
        for name, record in self.files.items():
            path = repository / self.path_of(name)
            if (digest := sha256(path, between)) != record.sha256:
                raise BundleError(
                    f"{path} was changed after it was published: its SHA-256 is {digest[:12]}..., "
                    f"the manifest says {record.sha256[:12]}...; export again"
                )
        for model in self.models:
            _verify_config(repository / model, root)


def _check_there(path: Path, root: Path) -> None:
    if not path.is_file():
        raise BundleError(f"{path} is missing, though the manifest lists it; export again")
    if not path.resolve().is_relative_to(root):
        raise BundleError(f"{path} is a link that leads out of the repository, to {path.resolve()}; export again")


def _verify_config(model: Path, root: Path) -> None:
    """Raise unless a model's `config.pbtxt` is what some version was published with.

    It is shared by all versions, so a newer one may have replaced it. That happens after the newer one is in place and
    while the older one still is: at every moment one of them has it.
    """
    config = model / CONFIG_FILE
    _check_there(config, root)
    published = [copy for folder in version_folders(model).values() if (copy := folder / CONFIG_FILE).is_file()]
    size, digest = config.stat().st_size, sha256(config)
    if not any(copy.stat().st_size == size and sha256(copy) == digest for copy in published):
        raise BundleError(f"{config} was changed after it was published: no version of the model has it; export again")


def version_folders(model: Path) -> dict[int, Path]:
    """Return the version folders of a model, the oldest first; none where there is no such model."""
    found = model.iterdir() if model.is_dir() else []
    return dict(sorted((int(path.name), path) for path in found if _VERSION.fullmatch(path.name) and _is_dir(path)))


def bundles(repository: Path) -> dict[int, Path]:
    """Return the bundle folder of each version in a repository, the oldest first.

    Raises:
        BundleError: The folder does not exist.
    """
    if not repository.is_dir():
        raise BundleError(f"{repository} is not a folder; expected a repository written by `fuserec export`")
    doors = [folder for door in FRONT_DOORS for folder in version_folders(repository / door).values()]
    return dict(sorted((int(folder.name), folder) for folder in doors if _is_file(folder / FILE_NAME)))


def _is_dir(path: Path) -> bool:
    """Return whether it is a folder; one that may not be looked at is none, and the others stay what they are."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def bundle_folder(repository: Path, version: int | None = None) -> Path:
    """Return the folder of a bundle in a repository, the newest unless told otherwise.

    Raises:
        BundleError: The folder does not exist, holds no bundle, or not the one that was asked for.
    """
    found = bundles(repository)
    if not found:
        raise BundleError(
            f"{repository} holds no bundle ({FRONT_DOORS[0]}/<version>/{FILE_NAME}); "
            "expected a repository written by `fuserec export`"
        )
    if version is None:
        version = max(found)
    if version not in found:
        raise BundleError(f"{repository} has no version {version}; it has {', '.join(map(str, found))}")
    return found[version]


def served_bundle(repository: Path, version: int) -> Path:
    """Return the bundle that a version of a model answers from: the one of that version.

    An export that was killed while it put its models in place leaves some of them without a front door of that
    number. The server takes them for the newest; they answer from the newest whole bundle, as the front door does.

    Raises:
        BundleError: There is no bundle.
    """
    found = bundles(repository)
    return found[version] if version in found else bundle_folder(repository)
