"""Faults a user can cause and mend; the command line prints their message and no stack trace.

    FuserecError
    +-- UsageError       a name or an option that fuserec does not know
    +-- DataError        a data folder that cannot be read as interactions and items
    +-- CheckpointError  a checkpoint folder that is missing, damaged or of another version
    +-- ExportError      an export that cannot be carried out as asked
    +-- BundleError      a model repository, or a file of it, that is missing, damaged or of another version
    +-- LaunchError      an inference server that could not be started or kept alive
    +-- ClientError      a call that was not answered; its own tree is in `fuserec.client`

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


class LaunchError(FuserecError, RuntimeError):
    """An inference server could not be started or kept alive."""


class ClientError(FuserecError):
    """A call to the service was not answered with a result."""
