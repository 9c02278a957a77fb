"""Measure a network at one image size and batch size in a process of its own.

Neither memory nor a failure carries over to the next measurement. ``python benchmarks/measure_process.py`` reads a
:class:`Measurement` as JSON from its standard input and prints the figures as JSON.
"""

import functools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from network_configs import device_for, phase_ratios, training_options

from lnca_arch.acceleration import aot_cache
from lnca_model.training.profiler import PeakMemory, TrainingProfiler, keep_freed_memory
from lnca_utils.errors import first_line

from basicsr.models import build_model

MEAN_STEPS = 20  # of an automaton in training, which takes 8 to 32
MEMORY_POLL_SECONDS = 0.02
OUT_OF_MEMORY, TIMED_OUT = 'out of memory', 'longer than the timeout'
# Messages of PyTorch, oneDNN and cuDNN when an allocation fails without an error class of its own.
ALLOCATION_FAILURES = (
    "can't allocate memory",
    'not enough memory',
    'bad_alloc',
    'Cannot allocate memory',
    'could not create a memory',
    'out of memory',
    'ALLOC_FAILED',
)


@dataclass
class Measurement:
    """What to measure.

    Attributes:
        task, network: see :func:`network_configs.training_options`.
        size: height and width of the images.
        batch: images per batch.
        train_images, val_images: images per epoch; random, and corrupted as the task says.
        epochs: epochs per phase, the first of which is not counted.
        runs: inference runs, the first of which is not counted.
        steps: steps of an automaton while training is timed; None to draw them as its options say.
        memory_limit: bytes above the memory of the process before the network is created; None for no limit.
    """

    task: dict[str, Any]
    network: dict[str, Any]
    size: int
    batch: int
    train_images: int
    val_images: int
    epochs: int
    runs: int
    steps: int | None = None
    memory_limit: int | None = None


def run(measurement: Measurement, timeout: float | None = None) -> dict[str, Any]:
    """Measure in a new process.

    Args:
        measurement: what to measure.
        timeout: limit in seconds; None for no limit.

    Returns:
        The figures of :func:`measure` that were reached; besides them ``'dash'``, if memory or time was exceeded, or
        ``'error'``, the reason of another failure.
    """
    end: dict[str, Any] = {}
    with tempfile.TemporaryFile('w+') as output:
        try:
            result = subprocess.run(
                [sys.executable, str(Path(__file__).resolve())],
                input=json.dumps(asdict(measurement)),
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            end = {'dash': TIMED_OUT, 'timeout': timeout}
        else:
            if result.returncode == -signal.SIGKILL or 'std::bad_alloc' in result.stderr:
                end = {'dash': OUT_OF_MEMORY}
            elif result.returncode:
                lines = result.stderr.strip().splitlines()
                end = {'error': lines[-1] if lines else f'exit code {result.returncode}'}
        output.seek(0)
        figures: dict[str, Any] = {}
        for line in output:
            if line.startswith('{') and line.endswith('}\n'):
                figures |= json.loads(line)
    return figures | end


def failure_reason(figures: Mapping[str, Any]) -> str | None:
    """Return why :func:`run` could not measure all figures, or None if it could."""
    return figures.get('dash') or figures.get('error')


def measure(measurement: Measurement) -> Iterator[dict[str, Any]]:
    """Measure inference and training with the models that ``basicsr/train.py`` uses.

    Yields:
        parameters: number of parameters.
        inference_seconds: of a batch, median of the runs.
        inference_bytes: peak memory above that of the process before the network was created.
        training_bytes: the same in training, with the largest number of steps of an automaton.
        iteration_seconds, epoch_seconds: of a training iteration, and of an epoch with its validation; medians of the
            epochs, summed over phases, weighted with their ratios.
        validation_seconds: of an image, in the last phase.
    """
    device = device_for(measurement.task)
    torch.backends.cudnn.benchmark = True  # as basicsr/train.py does
    iterations = -(-measurement.train_images // measurement.batch)
    ratios = list(phase_ratios(measurement.network).values())
    # One more epoch: the first iterations measure memory.
    iters = math.ceil((measurement.epochs + 1) * iterations / min(ratios))
    opt = training_options(measurement.task, measurement.network, iters)
    opt.update(is_train=True, dist=False)
    opt['datasets']['train'].setdefault('corruption', {'type': 'noise'})  # stands in for pairs
    opt['train']['max_consecutive_nonfinite'] = 0  # a skipped step would take less time

    torch.manual_seed(0)
    # The images are created first: their memory is not the network's.
    shape = (3, measurement.size, measurement.size)
    training, validation = (torch.rand(n, *shape) for n in (measurement.train_images, measurement.val_images))
    memory = PeakMemory(device)
    profiler = TrainingProfiler(device)
    if measurement.memory_limit:
        _limit_memory(memory, measurement.memory_limit)
    model = build_model(opt)
    yield {'parameters': sum(parameter.numel() for parameter in model.network.parameters())}

    def train(images: torch.Tensor, first: int) -> None:
        for iteration, gt in enumerate(images.split(measurement.batch), first):
            model.update_learning_rate(iteration)
            profiler.start()
            model.feed_data({'gt': gt})
            model.optimize_parameters(iteration)
            profiler.stop()

    def validate() -> None:
        for gt in validation.split(measurement.batch) if len(validation) else ():
            model.feed_data({'gt': gt, 'lq': gt})
            model.test()

    model.lq = torch.rand(measurement.batch, *shape, device=device)
    seconds = [_timed(model.test, device) for _ in range(measurement.runs)][1:]
    yield {'inference_seconds': statistics.median(seconds), 'inference_bytes': memory.read()}

    steps_range = getattr(model, 'steps', None)  # of an automaton
    if steps_range:
        model.steps = [max(steps_range)] * 2
    for phase in model.phases:
        for _ in range(2):  # the optimizer allocates its state in the first step
            train(training[: measurement.batch], phase.first)
    yield {'training_bytes': profiler.peak_bytes}

    if steps_range:
        model.steps = [measurement.steps] * 2 if measurement.steps else steps_range
    medians = []
    for phase in model.phases:
        epochs = []
        for epoch in range(1, measurement.epochs + 1):
            trained = _timed(functools.partial(train, training, phase.first + epoch * iterations), device)
            validated = _timed(validate, device)
            epochs.append((trained, validated))
        medians.append([statistics.median(column) for column in zip(*epochs[1:], strict=True)])
    trained, validated = (
        sum(ratio * value for ratio, value in zip(ratios, column, strict=True)) for column in zip(*medians, strict=True)
    )
    yield {
        'iteration_seconds': trained / iterations,
        'epoch_seconds': trained + validated,
        'validation_seconds': medians[-1][1] / max(1, measurement.val_images),
        'training_bytes': profiler.peak_bytes,  # by now with more of the pool
    }


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _limit_memory(memory: PeakMemory, limit: int) -> None:
    """End the process, after printing that it is out of memory, once it takes more than ``limit`` bytes.

    On a CPU the memory is polled: libraries crash when an allocation fails at a limit of the operating system.
    """
    if memory.device.type == 'cuda':
        total = torch.cuda.get_device_properties(memory.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), memory.device)
        return

    def watch() -> None:
        while memory.read() <= limit:
            time.sleep(MEMORY_POLL_SECONDS)
        print(json.dumps({'dash': OUT_OF_MEMORY}), flush=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    measurement = Measurement(**json.load(sys.stdin))
    keep_freed_memory()
    aot_cache.CELLS_WORTH_COMPILING = 0  # compile before the timing starts
    try:
        for figures in measure(measurement):
            print(json.dumps(figures), flush=True)
    except (MemoryError, torch.OutOfMemoryError):
        print(json.dumps({'dash': OUT_OF_MEMORY}))
    except Exception as error:
        is_memory = any(words in str(error) for words in ALLOCATION_FAILURES)
        print(json.dumps({'dash': OUT_OF_MEMORY} if is_memory else {'error': first_line(error)}))


if __name__ == '__main__':
    main()
