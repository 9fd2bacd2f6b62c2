"""Faults a user can cause and mend; the command line prints their message and no stack trace.

    FuserecError
    +-- UsageError       a name or an option that fuserec does not know
    +-- DataError        a data folder that cannot be read as interactions and items
    +-- CheckpointError  a checkpoint folder that is missing, damaged or of another version
    +-- ExportError      an export that cannot be carried out as asked
    +-- BundleError      a model repository, or a file of it, that is missing, damaged or of another version
    +-- DeviceError      a GPU that cannot be used, or not in this way
    |   +-- DeviceUnavailable   there is none that this process can use
    |   +-- DeviceMemoryError   it has too little memory free; the message says how much is needed and what would fit
    |   +-- DeviceLost          it failed in the middle of its work: only a new process can use it again
    +-- LaunchError      an inference server that could not be started or kept alive
    +-- ClientError      a call to the service that was not answered; what to do about it:
        +-- InvalidRequest      mend the call: it would be refused again
        +-- ModelNotFound       see what is served there: it is not what was asked for
        +-- Unauthorized        see the token, or the client's certificate
        +-- DeadlineExceeded    allow more time, or see the load of the server
        +-- ServerUnavailable   another attempt may succeed; the client has made those it was allowed
        |   +-- ServerOverloaded    the same: it answers, and has too much to do
        +-- ServerFault         see the server's log
            +-- MalformedAnswer     see what listens there: what came is no answer of this service

Anything else that is raised is a bug and keeps its stack trace.
"""

from __future__ import annotations


class FuserecError(Exception):
    """Base of every fault whose message tells the user what came and what was expected."""


class UsageError(FuserecError, ValueError):
    """A name or an option that fuserec does not know."""


class DataError(FuserecError, ValueError):
    """A data folder cannot be read as interactions and items."""


class CheckpointError(FuserecError, ValueError):
    """A checkpoint is missing, damaged, or written by another format version."""


class ExportError(FuserecError, RuntimeError):
    """An export cannot be carried out as asked."""


class BundleError(FuserecError, ValueError):
    """A model repository, or a file of it, is missing, damaged, or written by another format version."""


class DeviceError(FuserecError, RuntimeError):
    """A GPU cannot be used, or not in this way."""


class DeviceUnavailable(DeviceError, ValueError):
    """There is no GPU that this process can use."""


class DeviceMemoryError(DeviceError, MemoryError):
    """A GPU has too little memory free.

    Attributes:
        needed_bytes: What is needed there.
        free_bytes: What is free there.
        fitting_rows: How many items of this kind would fit.
    """

    def __init__(self, message: str, *, needed_bytes: int, free_bytes: int, fitting_rows: int) -> None:
        super().__init__(message)
        self.needed_bytes, self.free_bytes, self.fitting_rows = needed_bytes, free_bytes, fitting_rows


class DeviceLost(DeviceError):
    """A GPU failed in the middle of its work; what lay there is gone, and only a new process can use it again."""


class LaunchError(FuserecError, RuntimeError):
    """An inference server could not be started or kept alive."""


class ClientError(FuserecError):
    """A call to the service was not answered with a result.

    Attributes:
        endpoint: The server that the error came from; None where nothing was sent.
        attempts: How often the call was sent.
    """

    endpoint: str | None = None
    attempts: int = 0


class InvalidRequest(ClientError, UsageError):
    """The call itself is wrong, and would be at the next attempt too."""


class ModelNotFound(ClientError, LookupError):
    """The server answers, but does not have this model."""


class Unauthorized(ClientError, PermissionError):
    """The server, or what stands before it, does not let this client in."""


class DeadlineExceeded(ClientError, TimeoutError):
    """No answer came within the time given to the call."""


class ServerUnavailable(ClientError, ConnectionError):
    """Nobody listens at the address, or the server refuses work for now; another attempt may succeed."""


class ServerOverloaded(ServerUnavailable):
    """The server listens and has more to do than it accepts; it did not begin with this call."""


class ServerFault(ClientError, RuntimeError):
    """The server failed while it answered; its log says why."""


class MalformedAnswer(ServerFault):
    """Something answered that cannot be understood, or that no fuserec server says; another attempt may succeed."""
