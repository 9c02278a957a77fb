"""Work on all cores, with results in the order of the tasks and few of them in memory."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
import torch

from lnca_utils.errors import DataError

Task = TypeVar('Task')
Result = TypeVar('Result')


def ordered_map(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """``map(function, tasks)`` in ``workers`` processes.

    Raises:
        DataError: a process died, most likely for want of memory.
    """
    # Not forked from this process, where OpenCV, PyTorch and LibRaw may have threads: they would be missing there, and
    # waiting for them would never end.
    context = multiprocessing.get_context('spawn' if sys.platform == 'win32' else 'forkserver')
    if sys.platform != 'win32':
        # Imported once for all; ``func`` is what a partial is of.
        context.set_forkserver_preload([__name__, getattr(function, 'func', function).__module__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin)
    try:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError('a worker process died, perhaps for want of memory; use fewer --workers') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    # OpenCV, libpng and LibRaw write there, in their words, what an exception says in one line.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot tell its processes to stop."""
    multiprocessing.parent_process().join()
    os._exit(1)
