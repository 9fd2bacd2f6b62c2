"""Whether an export is what the repository already holds; answered without torch, in a fraction of a second."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any, Final

from fuserec.errors import BundleError
from fuserec.export.config import ExportConfig
from fuserec.manifest import CONFIG_FILE, Manifest, bundle_folder

TOOLS: Final = ("fuserec", "torch", "onnx", "onnxruntime", "numpy", "tensorrt-rtx")
# What of fuserec has a say in what a bundle holds: these rooms, and the modules beside them.
_ROOMS: Final = ("kernels", "models", "export", "serve", "model_repository")
_CHECKPOINT_CONFIG: Final = "config.json"
_DATA_FILES: Final = ("items.parquet", "users.parquet")


def tool_versions() -> dict[str, str]:
    """Return the versions of what builds a bundle."""
    return {tool: importlib.metadata.version(tool) for tool in TOOLS}


def inputs_sha256(checkpoint: Path, config: ExportConfig) -> str:
    """Return the SHA-256 over everything that determines a bundle, as 64 hex digits.

    That is: the configuration of each checkpoint, which lists the hashes of its other files; the options; the
    versions of the tools; and the sources of fuserec.

    Raises:
        OSError: A checkpoint has no configuration.
    """
    options = dataclasses.asdict(config)
    for name, folder in (("ranker", config.ranker), ("reference", config.reference)):
        if folder is not None:
            options[name] = _hash((folder / _CHECKPOINT_CONFIG).read_bytes())
    inputs = {
        "checkpoint": _hash((checkpoint / _CHECKPOINT_CONFIG).read_bytes()),
        "options": options,
        "tools": tool_versions(),
        "sources": _sources(),
    }
    return _hash(json.dumps(inputs, sort_keys=True).encode())


def data_fingerprint(checkpoint: Path) -> str:
    """Return the SHA-256 over the hashes of items and users that a checkpoint, which was checked, lists."""
    config: dict[str, Any] = json.loads((checkpoint / _CHECKPOINT_CONFIG).read_bytes())
    return _hash("".join(f"{config['files'][name]}  {name}\n" for name in _DATA_FILES).encode())


def already_published(checkpoint: Path, repository: Path, config: ExportConfig) -> Manifest | None:
    """Return the manifest of the newest version of a repository if it is this export, and whole; else None."""
    try:
        wanted = inputs_sha256(checkpoint, config)
        manifest = Manifest.read(bundle_folder(repository))
        if manifest.inputs_sha256 != wanted:
            return None
        manifest.verify(repository)
    except (OSError, BundleError):
        return None  # the export says what is wrong, or mends it
    return manifest if _has_its_configs(repository, manifest) else None


def _has_its_configs(repository: Path, manifest: Manifest) -> bool:
    """Return whether the server reads the configurations of this version; an export may have been killed before."""
    return all(
        (repository / model / CONFIG_FILE).read_bytes()
        == (repository / manifest.path_of(f"{model}/{CONFIG_FILE}")).read_bytes()
        for model in manifest.models
    )


def _sources() -> str:
    package = Path(__file__).parents[1]
    found = [path for room in _ROOMS for path in (package / room).rglob("*")] + list(package.glob("*.py"))
    sources = sorted(path for path in found if path.suffix in (".py", ".pbtxt"))
    return _hash("".join(f"{_hash(path.read_bytes())}  {path.relative_to(package)}\n" for path in sources).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
