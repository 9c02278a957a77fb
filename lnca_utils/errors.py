"""Errors that a user can fix.

Commands print them on one line; other errors are bugs and keep their traceback.
"""

import errno
import re
import sys
from types import TracebackType

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class LNCAError(ValueError):
    """Base class of errors that a user can fix.

    The message has one line per mistake: where it is, what is wrong, and how to fix it.
    """


class ConfigError(LNCAError):
    """An option file or a command line is invalid."""


class DataError(LNCAError):
    """An image or a dataset is missing, damaged or unsuitable."""


class CheckpointError(LNCAError):
    """A checkpoint is missing, damaged, does not match the network, or cannot be written."""


class DistributedError(LNCAError):
    """The processes of a distributed training cannot reach each other."""


class InstallationError(ImportError):
    """A package is missing or incompatible; the message says what to install."""


def install_excepthook() -> None:
    """Print errors that a user can fix without a traceback.

    These are :class:`LNCAError`, :class:`InstallationError`, and the OSError of a file that cannot be read or written.
    """
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, LNCAError | InstallationError):
        # A data loader worker wraps the message in a traceback, whose last part is the message.
        message = re.split(rf'{re.escape(__name__)}\.\w+: ', str(error).strip())[-1]
    elif isinstance(error, OSError) and error.errno in DISK_FULL:
        message = f'{error.filename or "the output"}: cannot be written ({error.strerror}); free disk space and retry'
    elif isinstance(error, OSError) and error.filename:
        message = f'{error.filename}: {error.strerror}'
    else:
        sys.__excepthook__(kind, error, trace)
        return
    for line in message.splitlines():
        print(f'error: {line}', file=sys.stderr)


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, or its class name if it has none."""
    return ' '.join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error, or its class name if it has none."""
    return str(error).strip().partition('\n')[0] or type(error).__name__
