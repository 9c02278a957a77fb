"""A parallel ``map`` with ordered results and bounded memory."""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
import torch

from lnca_utils.errors import DataError

Task = TypeVar('Task')
Result = TypeVar('Result')


def ordered_map(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Generator[Result, None, None]:
    """Apply a function to tasks in several processes and yield the results in order.

    Args:
        function: picklable function.
        tasks: its arguments; only a few are read ahead of the results.
        workers: number of processes.

    Raises:
        DataError: if a process dies, most likely for lack of memory.
    """
    # Forking this process could deadlock: OpenCV, PyTorch and LibRaw may have threads, which a fork does not copy.
    context = multiprocessing.get_context('spawn' if sys.platform == 'win32' else 'forkserver')
    if sys.platform != 'win32':
        # Import the function's module once for all workers; a partial has its function as ``func``.
        context.set_forkserver_preload([__name__, getattr(function, 'func', function).__module__])
    pool = ProcessPoolExecutor(workers, context, initializer=_init_worker)
    try:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError('a worker process died, perhaps for lack of memory; use fewer --workers') from None
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker() -> None:
    # Silence OpenCV, libpng and LibRaw, whose errors are reported as exceptions.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """End this worker when its parent is killed and so cannot shut down the pool."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this is a worker
    parent.join()
    os._exit(1)
