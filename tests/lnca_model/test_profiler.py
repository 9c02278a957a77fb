"""Time and peak memory of training."""

import subprocess
import sys
import time

import pytest
import torch

from lnca_model.training.profiler import CLEAR_REFS, PeakMemory, TrainingProfiler

MEGABYTE = 2**20
# Prints the page faults of the last of three allocations of 200 MB.
USE_TWICE = """
import resource, sys, torch
from lnca_model.training.profiler import keep_freed_memory
if sys.argv[1] == 'keep':
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(50 * 2**20, dtype=torch.uint8) for _ in range(4)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
CPU = torch.device('cpu')


def use(megabytes):
    torch.ones(megabytes * MEGABYTE, dtype=torch.uint8)


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason='the peak is known on Linux alone')
def test_peak_memory_since_the_last_reset():
    memory = PeakMemory(CPU)
    use(300)
    assert 290 * MEGABYTE < memory.read() < 400 * MEGABYTE
    memory.reset()
    assert memory.read() < 200 * MEGABYTE


def test_only_iterations_count():
    resources = TrainingProfiler(CPU)
    use(200)  # before the first iteration
    resources.start()
    time.sleep(0.02)
    resources.stop()
    time.sleep(0.5)
    resources.stop()  # without a start
    assert 0.02 <= resources.seconds < 0.5
    assert resources.peak_bytes < 150 * MEGABYTE
    resources.start()
    use(200)
    resources.stop()
    assert resources.peak_bytes > 190 * MEGABYTE or not CLEAR_REFS.exists()


def test_goes_on_from_what_was_saved():
    resources = TrainingProfiler(CPU)
    resources.load_state_dict({'seconds': 1000.0, 'peak_bytes': 10**12})
    resources.start()
    resources.stop()
    assert 1000 < resources.seconds < 1100
    assert resources.state_dict() == {'seconds': resources.seconds, 'peak_bytes': 10**12}


@pytest.mark.skipif(sys.platform != 'linux', reason='for glibc')
def test_freed_memory_is_kept():
    def pages(how):
        command = [sys.executable, '-c', USE_TWICE, how]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    assert pages('keep') < pages('as it is') / 2
