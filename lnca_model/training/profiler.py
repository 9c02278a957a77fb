"""Time and peak memory of training."""

import contextlib
import ctypes
import time
from pathlib import Path
from typing import Any

import psutil
import torch

# On Linux, the file that holds the peak resident memory of the process, and the file that resets the peak.
STATUS, CLEAR_REFS = Path('/proc/self/status'), Path('/proc/self/clear_refs')
RESET_PEAK = '5'
# Parameters of mallopt (glibc's malloc.h): name → (number, value).
KEEP_FREED_MEMORY = {'M_TRIM_THRESHOLD': (-1, -1), 'M_TOP_PAD': (-2, 1 << 26), 'M_MMAP_MAX': (-4, 0)}


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later tensors.

    By default, glibc returns large blocks to the operating system. Requesting them again, zeroed, takes up to half of
    the training time on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, or another C library
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        for parameter, value in KEEP_FREED_MEMORY.values():
            mallopt(parameter, value)


def status_bytes(field: str) -> int | None:
    """Return a field of ``/proc/self/status`` in bytes, or None if there is no such field or file."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f'{field}:'):
                return int(line.split()[1]) * 1024
    return None


def give_back_freed_memory() -> None:
    """Return freed heap memory to the operating system now, despite :func:`keep_freed_memory`."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)


class PeakMemory:
    """Measures the peak memory since the last :meth:`reset`, minus the memory in use at construction.

    On CUDA, it measures the memory of PyTorch's allocator; on the CPU, the resident memory of the process. Systems
    other than Linux do not report peaks; there, it measures the memory in use when :meth:`read` is called.

    Args:
        device: device whose memory is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._baseline = 0
        self.reset()
        self._baseline = self.read()

    def reset(self) -> None:
        """Start a new measurement."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                CLEAR_REFS.write_text(RESET_PEAK)

    def read(self) -> int:
        """Return the peak in bytes."""
        if self.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = status_bytes('VmHWM') or psutil.Process().memory_info().rss
        return max(0, peak - self._baseline)


class TrainingProfiler:
    """Measures time and peak memory of training iterations, without data loading, validation and checkpoints.

    Args:
        device: device of the network. Create the profiler before the network, so that the network's memory counts.

    Attributes:
        seconds: total time of all iterations.
        peak_bytes: largest peak memory of an iteration, in bytes.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self._device = device
        self._memory = PeakMemory(device)
        self._start: float | None = None

    def start(self) -> None:
        """Start measuring an iteration."""
        self._memory.reset()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """Stop measuring an iteration."""
        if self._start is None:
            return
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - self._start
        self.peak_bytes = max(self.peak_bytes, self._memory.read())
        self._start = None

    def exclude_pause(self) -> None:
        """Free the memory of a pause, such as a validation, so that it does not count for the next iteration."""
        if self._device.type != 'cuda':
            give_back_freed_memory()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {'seconds': self.seconds, 'peak_bytes': self.peak_bytes}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.seconds, self.peak_bytes = saved['seconds'], saved['peak_bytes']
