"""Signals that ask a run to end: it goes on to the end of its iteration, saves, and exits."""

import signal
from types import FrameType
from typing import Any

# Ctrl-C; what systems and schedulers send before they kill; what Slurm sends under --signal=USR1@SECONDS.
SIGNALS = ('SIGINT', 'SIGTERM', 'SIGUSR1')
EXIT_CODE = 75  # sysexits.h: a temporary failure; the same command with --auto_resume goes on

_asked: list[str] = []
_patient = False


def listen(patiently: bool = False) -> None:
    """From now on remember such signals.

    Args:
        patiently: whatever comes after it. Otherwise a second one ends the process as if nobody listened. Launchers
            of several processes pass on a signal that the processes have received already.
    """
    global _patient
    _patient = patiently
    _answer_with(_remember)


def ignore() -> None:
    """From now on do nothing about such signals: for a process that ends with another, which listens."""
    _answer_with(signal.SIG_IGN)


def _answer_with(handler: Any) -> None:
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def asked() -> str | None:
    """The name of a signal that has come, if one has."""
    return _asked[0] if _asked else None


def _remember(number: int, frame: FrameType | None) -> None:
    _asked.append(signal.Signals(number).name)
    if not _patient:
        signal.signal(number, signal.SIG_DFL)
