"""Preemption: on a signal, a run finishes its iteration, saves a checkpoint and exits."""

import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch

from lnca_model import distributed

# Sent by Ctrl-C, by systems and schedulers before they kill a process, and by Slurm with --signal=USR1@SECONDS.
SIGNALS = ('SIGINT', 'SIGTERM', 'SIGUSR1')
EXIT_CODE = 75  # sysexits.h: a temporary failure; the same command with --auto_resume continues

_received: list[str] = []
_ignores_repeats = False


def install_handlers(ignore_repeats: bool = False) -> None:
    """Install signal handlers.

    Args:
        ignore_repeats: whether to ignore a second signal, which otherwise ends the process at once. Use it with
            launchers, which forward signals that their processes have already received.
    """
    global _ignores_repeats
    _ignores_repeats = ignore_repeats
    _install(_remember)


def ignore_signals() -> None:
    """Ignore the signals; for worker processes, which end with their parent."""
    _install(signal.SIG_IGN)


def _install(handler: Any) -> None:
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), handler)


def requested_signal() -> str | None:
    """Return the name of the first signal received, None if there was none."""
    return _received[0] if _received else None


def _remember(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number).name)
    if not _ignores_repeats:
        signal.signal(number, signal.SIG_DFL)


def until_preempted(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the batches of this rank; if any rank receives a signal, yield None and stop.

    The generator ends on all ranks at once, so that no rank waits in a collective for another.

    Args:
        batches: the batches of this rank; ranks may have different numbers of them.
        device: device of the tensors that the ranks exchange.
    """
    iterator = iter(batches)
    while True:
        batch = next(iterator, None)
        if distributed.any_rank(requested_signal() is not None, device):
            yield None
            return
        if not distributed.any_rank(batch is not None, device):
            return
        if batch is not None:
            yield batch
