"""What training takes: time, and memory above what the process had before it."""

import contextlib
import ctypes
import time
from pathlib import Path
from typing import Any

import psutil
import torch

# Linux: the most memory that the process has had, and the file that takes it back to what it has now.
STATUS, CLEAR_REFS = Path('/proc/self/status'), Path('/proc/self/clear_refs')
RESET_PEAK = '5'
# mallopt's parameters (malloc.h of glibc) and values.
KEEP_FREED_MEMORY = {'M_TRIM_THRESHOLD': (-1, -1), 'M_TOP_PAD': (-2, 1 << 26), 'M_MMAP_MAX': (-4, 0)}


def keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors for the next ones. By itself it hands that of large ones back to the
    system, which takes, to give it again and zeroed, up to half of the time of training on a processor."""
    with contextlib.suppress(OSError, AttributeError):  # another system, another allocator
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        for parameter, value in KEEP_FREED_MEMORY.values():
            mallopt(parameter, value)


def status_bytes(field: str) -> int | None:
    """A field of Linux's status of this process, in bytes; None where there is none."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f'{field}:'):
                return int(line.split()[1]) * 1024
    return None


def give_back_freed_memory() -> None:
    """The opposite of :func:`keep_freed_memory`, for once."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)


class PeakMemory:
    """The most memory, in bytes, in use since the last :meth:`reset`, above what was in use when this was made.

    On CUDA the tensors that PyTorch's allocator held; else the resident memory of the process, which on systems other
    than Linux is only known at the time of asking.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._baseline = 0
        self.reset()
        self._baseline = self.read()

    def reset(self) -> None:
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                CLEAR_REFS.write_text(RESET_PEAK)

    def read(self) -> int:
        if self.device.type == 'cuda':
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = status_bytes('VmHWM') or psutil.Process().memory_info().rss
        return max(0, peak - self._baseline)


class TrainingProfiler:
    """Seconds and peak memory of training iterations; what comes between them is not counted: waiting for data,
    validation, checkpoints.

    Args:
        device: where the network trains. Make this before the network, whose own memory counts.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = 0.0
        self.peak_bytes = 0
        self._device = device
        self._memory = PeakMemory(device)
        self._start: float | None = None

    def start(self) -> None:
        """An iteration begins."""
        self._memory.reset()
        self._start = time.perf_counter()

    def stop(self) -> None:
        """An iteration is over."""
        if self._start is None:
            return
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        self.seconds += time.perf_counter() - self._start
        self.peak_bytes = max(self.peak_bytes, self._memory.read())
        self._start = None

    def exclude_pause(self) -> None:
        """Something else is over, such as a validation, whose memory shall not count for the next iteration."""
        if self._device.type != 'cuda':
            give_back_freed_memory()

    def state_dict(self) -> dict[str, Any]:
        return {'seconds': self.seconds, 'peak_bytes': self.peak_bytes}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.seconds, self.peak_bytes = saved['seconds'], saved['peak_bytes']
