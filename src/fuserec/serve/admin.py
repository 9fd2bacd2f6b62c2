"""The model repository API of one server, as its launcher uses it: nobody else has the key.

Loading a model that is loaded already replaces it: the server opens the new version beside the old one, turns to it
when it is ready, and lets the old one finish what it has begun. Where that fails the old one stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from google.protobuf import json_format, text_format
from tritonclient.utils import InferenceServerException

from fuserec.errors import LaunchError
from fuserec.manifest import CONFIG_FILE, Manifest
from fuserec.serve.settings import ServingConfig

_HEADER: Final = "fuserec-admin"
# What a client has no business with. Shared memory would let it name memory of the server's machine.
_RESTRICTED: Final = {
    "grpc": ("model-repository", "shared-memory", "logging", "trace"),
    "http": ("model-repository", "shared-memory", "logging", "trace"),
}
_UNLOAD_TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Key:
    """What the launcher and its server share; made anew for each server."""

    value: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def options(self) -> list[str]:
        """Command line options by which a server answers to nobody without the key."""
        lock = f"{_HEADER}={self.value}"
        return [
            f"--grpc-restricted-protocol={','.join(_RESTRICTED['grpc'])}:{lock}",
            f"--http-restricted-api={','.join(_RESTRICTED['http'])}:{lock}",
        ]


class Admin:
    """Loads and unloads the models of a server; a context manager.

    Args:
        target: `host:port` of its gRPC service.
        key: The key that it was started with.
    """

    def __init__(self, target: str, key: Key) -> None:
        import tritonclient.grpc as library

        self._client: Any = library.InferenceServerClient(target)
        self._headers = {f"triton-grpc-protocol-{_HEADER}": key.value}

    def __enter__(self) -> Admin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether the server answers at all."""
        try:
            return bool(self._client.is_server_live(client_timeout=1.0))
        except InferenceServerException:
            return False

    def load(
        self, manifest: Manifest, repository: Path, models: Sequence[str], settings: ServingConfig, timeout_s: float
    ) -> None:
        """Load models in the version of a verified bundle, all at once.

        Raises:
            LaunchError: One of them could not be opened; its old version, if it had one, goes on.
        """
        with ThreadPoolExecutor(len(models)) as pool:
            loads = [pool.submit(self._load, name, manifest, repository, settings, timeout_s) for name in models]
        for load in loads:
            load.result()

    def _load(
        self, model: str, manifest: Manifest, repository: Path, settings: ServingConfig, timeout_s: float
    ) -> None:
        # The version's own copy: the one above the versions may be a newer one's.
        published = repository / manifest.path_of(f"{model}/{CONFIG_FILE}")
        config = _parse(published.read_text())
        settings.apply(config, model, manifest.models)
        config.version_policy.specific.versions[:] = [manifest.version]
        document = json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None)
        try:
            self._client.load_model(model, headers=self._headers, config=document, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise LaunchError(f"version {manifest.version} of {model!r} cannot be loaded: {error.message()}") from None

    def unload(self, model: str) -> None:
        """Unload a model; what it has begun is finished first.

        Raises:
            LaunchError: The server refused.
        """
        try:
            self._client.unload_model(model, headers=self._headers, client_timeout=_UNLOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise LaunchError(f"{model!r} cannot be unloaded: {error.message()}") from None

    def ready(self, model: str, version: int) -> bool:
        """Whether a version of a model is loaded."""
        try:
            return bool(self._client.is_model_ready(model, str(version), client_timeout=1.0))
        except InferenceServerException:
            return False


def _parse(text: str) -> Any:
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())
