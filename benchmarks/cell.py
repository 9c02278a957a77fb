"""One measurement of a network at one size and batch, in a process of its own, so that neither memory nor failure
carries over to the next: ``python benchmarks/cell.py`` reads a :class:`Cell` as JSON and prints its figures as JSON."""

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from networks import options_for

from lnca_model.resources import STATUS, PeakMemory, keep_freed_memory

from basicsr.models import build_model

SIGKILL = 9
OUT_OF_MEMORY = 'out of memory'
# What PyTorch says on a processor when there is no more.
ALLOCATION_FAILURES = ("can't allocate memory", 'not enough memory', 'bad_alloc', 'Cannot allocate memory')


@dataclass
class Cell:
    """What to measure.

    Attributes:
        task, network: as in :func:`networks.options_for`.
        size, batch: height and width of the images, and images at once.
        train_images, val_images: images of an epoch; without the first, only inference is measured.
        epochs: epochs a phase, of which the first is not counted.
        steps: steps of an automaton in training; drawn anew each time, as its options say, if None.
        runs: inference runs, after a first that is not counted.
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
        The figures of :func:`measure`, or ``{'dash': why}`` when memory or time was not enough, or ``{'error': line}``.
    """
    command = [sys.executable, str(Path(__file__).resolve())]
    try:
        result = subprocess.run(
            command, input=json.dumps(asdict(cell)), capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {'dash': f'longer than {timeout:g} s'}
    if result.returncode == 0:
        return json.loads(result.stdout.splitlines()[-1])
    if result.returncode == -SIGKILL:
        return {'dash': f'{OUT_OF_MEMORY} (killed by the system)'}
    return {'error': (result.stderr.strip().splitlines() or [f'exit code {result.returncode}'])[-1]}


def measure(cell: Cell) -> dict[str, Any]:
    """Train and restore random images with the models that basicsr/train.py trains.

    Returns:
        training_bytes, inference_bytes: peaks above what the process had before the network was made.
        epoch_seconds: training and validation, median of the epochs, summed over phases.
        iteration_seconds: an iteration of training, the same.
        validation_seconds: validation of an image, of the last phase.
        inference_seconds: median of the runs.
        parameters: of the network.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if cell.memory_limit:
        _limit_memory(device, cell.memory_limit)
    iterations = -(-cell.train_images // cell.batch)
    phase_iters = max(1, cell.epochs * iterations)
    if cell.steps:
        cell.network['train'].get('automaton', {})['steps'] = [cell.steps] * 2
    opt = options_for(cell.task, cell.network, phase_iters)
    opt.update(is_train=True, dist=False, num_gpu=int(device.type == 'cuda'))

    memory = PeakMemory(device)
    model = build_model(opt)
    images = torch.rand(max(cell.train_images + cell.val_images, cell.batch), 3, cell.size, cell.size)
    figures: dict[str, Any] = {'parameters': sum(parameter.numel() for parameter in model.network.parameters())}

    model.lq = images[: cell.batch].to(device)
    seconds = [_timed(model.test, device) for _ in range(cell.runs + 1)][1:]
    figures |= {'inference_seconds': statistics.median(seconds), 'inference_bytes': memory.read()}
    if not cell.train_images:
        return figures

    training, validation = images[: cell.train_images], images[cell.train_images :]
    medians = []
    for phase in model.phases:
        epochs = []
        for first in range(phase.first, phase.last + 1, iterations):
            epochs.append(
                (
                    _timed(lambda first=first: _train(model, training, cell.batch, first), device),
                    _timed(lambda: _validate(model, validation, cell.batch), device) if len(validation) else 0.0,
                )
            )
        medians.append([statistics.median(column) for column in zip(*epochs[1:], strict=True)])
    trained, validated = (sum(column) for column in zip(*medians, strict=True))
    return figures | {
        'training_bytes': model.resources.peak_bytes,
        'epoch_seconds': trained + validated,
        'iteration_seconds': trained / iterations,
        'validation_seconds': medians[-1][1] / max(1, cell.val_images),
    }


def _train(model: Any, images: torch.Tensor, batch: int, first: int) -> None:
    for iteration, gt in enumerate(images.split(batch), first):
        model.update_learning_rate(iteration)
        model.feed_data({'gt': gt} if model.corruption else {'gt': gt, 'lq': gt.flip(-1)})
        model.optimize_parameters(iteration)


def _validate(model: Any, images: torch.Tensor, batch: int) -> None:
    for gt in images.split(batch):
        model.feed_data({'gt': gt, 'lq': gt})
        model.test()


def _timed(call: Any, device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _limit_memory(device: torch.device, limit: int) -> None:
    if device.type == 'cuda':
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    elif STATUS.exists():
        import resource

        data = next(line for line in STATUS.read_text().splitlines() if line.startswith('VmData:'))
        size = int(data.split()[1]) * 1024 + limit
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def main() -> None:
    cell = Cell(**json.load(sys.stdin))
    keep_freed_memory()
    try:
        figures = measure(cell)
    except (MemoryError, torch.OutOfMemoryError):
        figures = {'dash': OUT_OF_MEMORY}
    except RuntimeError as error:
        if not any(words in str(error) for words in ALLOCATION_FAILURES):
            raise
        figures = {'dash': OUT_OF_MEMORY}
    print(json.dumps(figures))


if __name__ == '__main__':
    main()
