"""The model repository API of one server, as its launcher uses it: nobody else has the key.

A key is made for each process of the server. It is sealed on the way there (`fuserec.serve.sealed`), so that it stands
on no command line and in no file, and it opens the API over gRPC alone. Over HTTP the same API, and over both all else
that callers have no business with, answers to no key. Where nothing can be sealed the launcher has no key either: the
server is started anew where it would have been steered. See `docs/decisions/0019-admin-api.md`.

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

# A caller reads it in the refusal: "expecting header ...".
HEADER: Final = "closed-to-callers"
_MODELS: Final = "model-repository"
# What a client has no business with. Shared memory would let it name memory of the server's machine.
_OTHERS: Final = ("shared-memory", "logging", "trace")
# A key that cannot arrive, and so need not be secret: a server takes 16 kB of metadata over gRPC and 8 kB a header over
# HTTP, and a single argument of a program may have 128 kB.
UNREACHABLE: Final = "x" * 40_000
_UNLOAD_TIMEOUT_S: Final = 60.0
_READY_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True)
class Key:
    """What the launcher and one process of its server share.

    Attributes:
        value: The secret; None where nobody has one.
    """

    value: str | None = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    @property
    def sealed_options(self) -> list[str]:
        """Options that no other user may read; none where there is no secret."""
        return [f"--grpc-restricted-protocol={_MODELS}:{HEADER}={self.value}"] if self.value else []

    @property
    def options(self) -> list[str]:
        """Options by which the server closes its other administrative APIs to everybody."""
        over_grpc = _OTHERS if self.value else (_MODELS, *_OTHERS)
        return [
            f"--grpc-restricted-protocol={','.join(over_grpc)}:{HEADER}={UNREACHABLE}",
            f"--http-restricted-api={','.join((_MODELS, *_OTHERS))}:{HEADER}={UNREACHABLE}",
            # Two more services with an API of their own; the second goes on by itself where AIP_MODE is set.
            "--allow-sagemaker=false",
            "--allow-vertex-ai=false",
        ]


class Admin:
    """Loads and unloads the models of a server; a context manager.

    Args:
        target: `host:port` of its gRPC service.
        key: The key that it was started with.

    Raises:
        LaunchError: It was started without one.
    """

    def __init__(self, target: str, key: Key) -> None:
        import tritonclient.grpc as library

        if key.value is None:
            raise LaunchError("this server cannot be steered while it runs (see the warning at its start)")
        self._client: Any = library.InferenceServerClient(target)
        self._headers = {f"triton-grpc-protocol-{HEADER}": key.value}

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
