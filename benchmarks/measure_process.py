"""Measure a network at one size and batch in a process of its own.

Neither memory nor a failure carries over to the next measurement. ``python benchmarks/measure_process.py`` reads a
:class:`Cell` as JSON and prints its figures as JSON.
"""

import json
import math
import os
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
from network_configs import device_of, options_for, shares_of

from lnca_arch.acceleration import aot_cache
from lnca_model.training.profiler import PeakMemory, TrainingProfiler, keep_freed_memory
from lnca_utils.errors import first_line

from basicsr.models import build_model

SIGKILL = 9
MEAN_STEPS = 20  # of an automaton in training: 8 to 32
LOOK_EVERY = 0.02  # seconds, at the memory
OUT_OF_MEMORY, TIME_OVER = 'out of memory', 'longer than the timeout'
# What PyTorch, oneDNN and cuDNN say when there is no more, where it is no error of its own kind.
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
class Cell:
    """What to measure.

    Attributes:
        task, network: as in :func:`networks.options_for`.
        size, batch: height and width of the images, and images at once.
        train_images, val_images: images of an epoch, random, corrupted as the task says.
        epochs: epochs a phase, of which the first is not counted.
        runs: inference runs, of which the first is not counted.
        steps: of an automaton, while training is timed; drawn anew each time, as its options say, if None.
        memory_limit: bytes above what the process has before the network is made; None for no limit.
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


def run(cell: Cell, timeout: float | None = None) -> dict[str, Any]:
    """Measure in a new process.

    Returns:
        The figures of :func:`measure` as far as they were reached. Then, under ``'dash'``, that memory was not enough,
        or the ``timeout``, in seconds; or, under ``'error'``, the reason of another failure.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    end: dict[str, Any] = {}
    with tempfile.TemporaryFile('w+') as output:
        try:
            result = subprocess.run(
                command,
                input=json.dumps(asdict(cell)),
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            end = {'dash': TIME_OVER, 'timeout': timeout}
        else:
            if result.returncode == -SIGKILL or 'std::bad_alloc' in result.stderr:
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


def reason(figures: Mapping[str, Any]) -> str | None:
    """Why :func:`run` gave not all figures, if so."""
    return figures.get('dash') or figures.get('error')


def measure(cell: Cell) -> Iterator[dict[str, Any]]:
    """Restore images and train on them with the models that basicsr/train.py uses.

    Yields:
        parameters: of the network.
        inference_seconds: of a batch, median of the runs; inference_bytes: peak above what the process had before the
            network was made.
        training_bytes: the same peak in training, an automaton's steps being the most there are.
        iteration_seconds, epoch_seconds: an iteration of training; an epoch, validation included: medians of the
            epochs, summed over phases, each as often as its share. validation_seconds: of an image, in the last phase.
    """
    device = device_of(cell.task)
    torch.backends.cudnn.benchmark = True  # as basicsr/train.py does
    iterations = -(-cell.train_images // cell.batch)
    shares = list(shares_of(cell.network).values())
    # An epoch more, for the iteration whose memory is measured.
    opt = options_for(cell.task, cell.network, math.ceil((cell.epochs + 1) * iterations / min(shares)))
    opt.update(is_train=True, dist=False)
    opt['datasets']['train'].setdefault('corruption', {'type': 'noise'})  # a stand-in for pairs
    opt['train']['max_consecutive_nonfinite'] = 0  # a skipped step takes less time

    torch.manual_seed(0)
    # Before the memory that is there already is noted.
    training, validation = (torch.rand(n, 3, cell.size, cell.size) for n in (cell.train_images, cell.val_images))
    memory = PeakMemory(device)
    profiler = TrainingProfiler(device)
    if cell.memory_limit:
        _limit_memory(memory, cell.memory_limit)
    model = build_model(opt)
    yield {'parameters': sum(parameter.numel() for parameter in model.network.parameters())}

    model.lq = torch.rand(cell.batch, 3, cell.size, cell.size, device=device)
    seconds = [_timed(model.test, device) for _ in range(cell.runs)][1:]
    yield {'inference_seconds': statistics.median(seconds), 'inference_bytes': memory.read()}

    drawn = getattr(model, 'steps', None)  # an automaton's
    if drawn:
        model.steps = [max(drawn)] * 2
    for phase in model.phases:
        for _ in range(2):  # the optimiser's own memory is there from the first step on
            _train_once(model, profiler, training[: cell.batch], phase.first)
    yield {'training_bytes': profiler.peak_bytes}

    if drawn:
        model.steps = [cell.steps] * 2 if cell.steps else drawn
    medians = []
    for phase in model.phases:
        epochs = []
        for epoch in range(1, cell.epochs + 1):
            first = phase.first + epoch * iterations
            trained = _timed(lambda first=first: _train(model, profiler, training, cell.batch, first), device)
            validated = _timed(lambda: _validate(model, validation, cell.batch), device)
            epochs.append((trained, validated))
        medians.append([statistics.median(column) for column in zip(*epochs[1:], strict=True)])
    trained, validated = (
        sum(share * value for share, value in zip(shares, column, strict=True)) for column in zip(*medians, strict=True)
    )
    yield {
        'iteration_seconds': trained / iterations,
        'epoch_seconds': trained + validated,
        'validation_seconds': medians[-1][1] / max(1, cell.val_images),
        'training_bytes': profiler.peak_bytes,  # by now with more of the pool
    }


def _train_once(model: Any, profiler: TrainingProfiler, gt: torch.Tensor, iteration: int) -> None:
    model.update_learning_rate(iteration)
    profiler.start()
    model.feed_data({'gt': gt})
    model.optimize_parameters(iteration)
    profiler.stop()


def _train(model: Any, profiler: TrainingProfiler, images: torch.Tensor, batch: int, first: int) -> None:
    for iteration, gt in enumerate(images.split(batch), first):
        _train_once(model, profiler, gt, iteration)


def _validate(model: Any, images: torch.Tensor, batch: int) -> None:
    if len(images):
        for gt in images.split(batch):
            model.feed_data({'gt': gt, 'lq': gt})
            model.test()


def _timed(call: Callable[[], Any], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _limit_memory(memory: PeakMemory, limit: int) -> None:
    """End the process with a dash once it takes more bytes than the limit. The system's own limits are no use on a
    processor: libraries crash when an allocation fails."""
    if memory.device.type == 'cuda':
        total = torch.cuda.get_device_properties(memory.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), memory.device)
        return

    def watch() -> None:
        while memory.read() <= limit:
            time.sleep(LOOK_EVERY)
        print(json.dumps({'dash': OUT_OF_MEMORY}), flush=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    cell = Cell(**json.load(sys.stdin))
    keep_freed_memory()
    aot_cache.CELLS_WORTH_COMPILING = 0  # compiled before it is timed, not meanwhile
    try:
        for figures in measure(cell):
            print(json.dumps(figures), flush=True)
    except (MemoryError, torch.OutOfMemoryError):
        print(json.dumps({'dash': OUT_OF_MEMORY}))
    except Exception as error:
        is_memory = any(words in str(error) for words in ALLOCATION_FAILURES)
        print(json.dumps({'dash': OUT_OF_MEMORY} if is_memory else {'error': first_line(error)}))


if __name__ == '__main__':
    main()
