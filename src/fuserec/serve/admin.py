"""The model repository API of one server, as its launcher uses it: nobody else has the key.

Loading a model that is loaded already replaces it: the server opens the new version beside the old one, turns to it
when it is ready, and lets the old one finish what it has begun. Where that fails the old one stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from fuserec.errors import LaunchError

_HEADER: Final = "fuserec-admin"
# What a client has no business with. Shared memory would let it name memory of the server's machine.
_RESTRICTED: Final = {
    "grpc": ("model-repository", "shared-memory", "logging", "trace"),
    "http": ("model-repository", "shared-memory", "logging", "trace"),
}
_UNLOAD_TIMEOUT_S: Final = 60.0
_READY_TIMEOUT_S: Final = 2.0


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

    def load(
        self, models: Sequence[str], timeout_s: float, on_loaded: Callable[[str], object] = lambda model: None
    ) -> None:
        """Load models as the repository now has them, all at once.

        Args:
            models: Their names.
            timeout_s: For each.
            on_loaded: Called, in another thread, with the name of each at the moment that it answers.

        Raises:
            LaunchError: One of them could not be opened; its old version, if it had one, goes on.
        """
        if not models:
            return
        with ThreadPoolExecutor(len(models)) as pool:
            loads = [pool.submit(self._load, name, timeout_s, on_loaded) for name in models]
        for load in loads:
            load.result()

    def _load(self, model: str, timeout_s: float, on_loaded: Callable[[str], object]) -> None:
        try:
            self._client.load_model(model, headers=self._headers, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise LaunchError(f"{model!r} cannot be loaded: {error.message()}") from None
        on_loaded(model)

    def unload(self, model: str) -> None:
        """Unload a model; what it has begun is finished first.

        Raises:
            LaunchError: The server refused.
        """
        try:
            self._client.unload_model(model, headers=self._headers, client_timeout=_UNLOAD_TIMEOUT_S)
        except InferenceServerException as error:
            raise LaunchError(f"{model!r} cannot be unloaded: {error.message()}") from None

    def is_ready(self, model: str, version: int) -> bool:
        """Return whether a version of a model answers; False where the server does not say."""
        try:
            return bool(self._client.is_model_ready(model, str(version), client_timeout=_READY_TIMEOUT_S))
        except InferenceServerException:
            return False
