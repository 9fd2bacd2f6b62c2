"""What can go wrong with a call, as a tree; every message says what to do.

ClientError
+-- InvalidRequest      the call itself is wrong; do not repeat it
+-- ModelNotFound       the server does not have this model
+-- DeadlineExceeded    no answer within the time given
+-- ServerUnavailable   nobody listens, or the server sheds load; may be repeated
+-- ServerFault         the server failed while it answered
"""

from __future__ import annotations

from fuserec.errors import ClientError, UsageError


class InvalidRequest(ClientError, UsageError):
    """The call itself is wrong, and would be at the next attempt too."""


class ModelNotFound(ClientError, LookupError):
    """The server answers, but does not have this model."""


class DeadlineExceeded(ClientError, TimeoutError):
    """No answer came within the time given to the call."""


class ServerUnavailable(ClientError, ConnectionError):
    """Nobody listens at the address, or the server refuses work for now; another attempt may succeed."""


class ServerFault(ClientError, RuntimeError):
    """The server failed while it answered; its log says why."""


__all__ = ["ClientError", "DeadlineExceeded", "InvalidRequest", "ModelNotFound", "ServerFault", "ServerUnavailable"]
