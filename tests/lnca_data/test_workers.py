"""The parallel, ordered map."""

import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import cv2
import pytest

from lnca_data.prepare.workers import ordered_map
from lnca_utils.errors import LNCAError

ROOT = Path(__file__).resolve().parents[2]


def square(number):
    return number * number


def slow_at_first(number):
    time.sleep(0.1 if number < 2 else 0.001)
    return number


def meet(folder):
    """Return how many processes are here before this one leaves."""
    (folder / str(os.getpid())).touch()
    end = time.monotonic() + 30
    while len(list(folder.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return len(list(folder.iterdir()))


def refuses_three(number):
    if number == 3:
        raise LNCAError('three is bad')
    return number


def dies_at_three(number):
    if number == 3:
        os._exit(1)
    return number


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    assert not multiprocessing.active_children()
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(before)


@pytest.mark.parametrize('workers', [1, 2, 3])
def test_results_are_in_order(workers):
    assert list(ordered_map(slow_at_first, range(12), workers)) == list(range(12))


def test_two_at_once(tmp_path):
    assert list(ordered_map(meet, [tmp_path] * 2, 2)) == [2, 2]


def test_no_tasks():
    assert not list(ordered_map(square, [], 2))


def test_tasks_are_taken_as_they_are_needed():
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    for count, _ in enumerate(ordered_map(square, tasks(), 2), 1):
        assert len(taken) <= count + 2 * 2


def test_exception_passes_through():
    results = []
    with pytest.raises(LNCAError, match='^three is bad$'):
        for result in ordered_map(refuses_three, range(1000), 2):
            results.append(result)
    assert results == [0, 1, 2]


def test_exception_of_the_tasks_passes_through():
    def tasks():
        yield from range(5)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(square, tasks(), 2))


def test_process_that_dies():
    with pytest.raises(LNCAError, match='a worker process died') as caught:
        list(ordered_map(dies_at_three, range(1000), 2))
    assert '\n' not in str(caught.value)


def test_closed_early():
    with closing(ordered_map(square, iter(range(1000)), 2)) as results:
        assert next(results) == 0
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def script(folder, text):
    """Return arguments that run a script, whose functions spawned processes can import."""
    (folder / 'script.py').write_text(text)
    return {'args': [sys.executable, folder / 'script.py'], 'env': {**os.environ, 'PYTHONPATH': str(ROOT)}}


THREADED = """
import cv2, numpy as np, torch
from torch.nn.functional import conv2d
from lnca_data.prepare.workers import ordered_map

def work(number):
    cv2.GaussianBlur(np.zeros((1500, 1500, 3), np.uint8), (0, 0), 5)
    conv2d(torch.ones(8, 16, 128, 128), torch.ones(16, 16, 3, 3))
    return number, cv2.getNumThreads(), torch.get_num_threads()

if __name__ == '__main__':
    cv2.setNumThreads(2)
    torch.set_num_threads(2)
    work(0)
    print(*ordered_map(work, range(4), 2), work(4))
"""


def test_after_threads_were_used(tmp_path):
    # In a subprocess with a timeout: a failure is a deadlock.
    child = subprocess.run(**script(tmp_path, THREADED), capture_output=True, text=True, timeout=120, check=True)
    assert child.stdout.strip() == '(0, 1, 1) (1, 1, 1) (2, 1, 1) (3, 1, 1) (4, 2, 2)'


KILLED = """
import os, time
from lnca_data.prepare.workers import ordered_map

def work(number):
    os.write(1, b'%d\\n' % os.getpid())
    time.sleep(60)

if __name__ == '__main__':
    list(ordered_map(work, range(2), 2))
"""


def is_running(process):
    with suppress(FileNotFoundError), open(f'/proc/{process}/stat') as stat:
        return stat.read().rpartition(')')[2].split()[0] != 'Z'
    return False


def test_processes_end_with_a_parent_that_is_killed(tmp_path):
    with subprocess.Popen(**script(tmp_path, KILLED), stdout=subprocess.PIPE, text=True) as parent:
        try:
            workers = [int(parent.stdout.readline()) for _ in range(2)]
            assert all(map(is_running, workers))
        finally:
            parent.kill()
    end = time.monotonic() + 10
    while any(map(is_running, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(is_running, workers))
