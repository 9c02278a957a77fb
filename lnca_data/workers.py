"""Work on all cores, with results in the order of the tasks and few of them in memory."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2
import torch

from lnca_arch.errors import InputError

Task = TypeVar('Task')
Result = TypeVar('Result')


def ordered_map(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """``map(function, tasks)`` in ``workers`` processes.

    Raises:
        InputError: a process died, most likely for want of memory.
    """
    threads = cv2.getNumThreads()
    # Before the processes are forked: OpenCV's threads would be missing there, and waiting for them would never end.
    cv2.setNumThreads(1)
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),))
    try:
        pending: deque[Future[Result]] = deque()
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) > workers + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise InputError('a worker process died, perhaps for want of memory; use fewer --workers') from None
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _begin(parent: int) -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that is killed cannot tell its processes to stop."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
