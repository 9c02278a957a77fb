"""Signals that ask a run to end: it goes on to the end of its iteration, saves, and exits."""

import signal
from types import FrameType

# Ctrl-C; what systems and schedulers send before they kill; what Slurm sends under --signal=USR1@SECONDS.
SIGNALS = ('SIGINT', 'SIGTERM', 'SIGUSR1')
EXIT_CODE = 75  # sysexits.h: a temporary failure; the same command with --auto_resume goes on

_asked: list[str] = []


def listen() -> None:
    """From now on remember such signals. A second one ends the process as if nobody listened."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _remember)


def asked() -> str | None:
    """The name of a signal that has come, if one has."""
    return _asked[0] if _asked else None


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.append(signal.Signals(number).name)
    signal.signal(number, signal.SIG_DFL)
