"""Faults of a GPU, told from all others: which of them end a process, and what is raised in their place."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from fuserec.errors import DeviceError, DeviceLost

logger = logging.getLogger(__name__)

# How torch, Triton, ONNX Runtime and TensorRT begin what they say of a device that failed. After one of them CUDA
# answers every call of the process with the same error.
_LOST: Final = (
    "CUDA error",
    "Triton Error [CUDA]",
    "CUDA failure",
    "CUBLAS failure",
    "CUDNN failure",
    "Cuda Runtime (",
)
_NO_MEMORY: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Failed to allocate memory for requested buffer",
)

P = ParamSpec("P")
R = TypeVar("R")


class OnDevice(Protocol):
    """Something that computes in the process that made it; `process` is the number of that one, None for any."""

    process: int | None


S = TypeVar("S", bound=OnDevice)


def device_fault(error: BaseException) -> DeviceError | None:
    """Return what an error says of the GPU: that it is lost, that it has no memory left; None where it is another."""
    if isinstance(error, DeviceError):
        return error
    said = str(error)
    first = said.splitlines()[0] if said else ""
    if type(error).__name__ == "OutOfMemoryError" or any(words in said for words in _NO_MEMORY):
        return DeviceError(f"the GPU has no memory left for this call: {first}")
    if type(error).__name__ == "AcceleratorError" or any(words in said for words in _LOST):
        return DeviceLost(f"the GPU is lost to this process: {first}")
    return None


class Departure:
    """Ends this process, because its GPU computes nothing any more; the supervisor opens the model anew.

    Args:
        after_s: Seconds in which the answers that were given leave.
    """

    def __init__(self, after_s: float = 0.05) -> None:
        self._after_s = after_s
        self._begun = False

    def begin(self) -> None:
        """End the process soon."""
        self._begun = True
        logger.error("the GPU is lost to this process, which ends to be started again")
        # Not `sys.exit`: whatever would be tidied up on the way asks the device, which may never answer.
        threading.Timer(self._after_s, os._exit, (os.EX_TEMPFAIL,)).start()

    def hold(self) -> None:
        """Return at once, unless the process is about to end; then never.

        Refused at once, call after call would come here: to the server nobody is as quick as who has failed.
        """
        if self._begun:
            threading.Event().wait()


def guarded(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method of an `OnDevice` raise `DeviceError` for a fault of the GPU, and in a process that was forked."""

    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.process is not None and self.process != os.getpid():
            raise DeviceError(
                f"this was opened on a GPU in process {self.process} and is called in {os.getpid()}: CUDA does not "
                "survive a fork; open one in each process"
            )
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            fault = device_fault(error)
            if fault is None or fault is error:
                raise
            raise fault from error

    return call
