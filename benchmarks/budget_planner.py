"""Estimate how long the runs of a comparison take, and how many iterations a time budget allows."""

import bisect
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import measure_process
from network_configs import Options, dataset_options, phase_iterations, shared_training
from results_store import read_json
from tqdm import tqdm

from lnca_data.io.lmdb_store import image_sizes
from lnca_utils.errors import ConfigError

ESTIMATES = 'estimates.json'
MIN_ITERATIONS = 2
PLANNED_RATIO = 0.8  # part of a budget that is planned for, since a machine may slow down after the measurement
STARTUP_SECONDS = 20  # per run, before and after the training itself


class Planner:
    """Estimates the duration of runs from short measurements of each network.

    Args:
        task: the option file.
        networks: network → its options.
        tiles: number of ``'train'``, ``'val'`` and ``'test'`` tiles.
        output: folder of the results, which may hold estimates of an earlier call.

    Attributes:
        estimates: network → figures of :func:`measure_process.measure`.
    """

    def __init__(self, task: Options, networks: Mapping[str, Options], tiles: Mapping[str, int], output: Path) -> None:
        self._task, self._networks, self._tiles = task, networks, tiles
        self.estimates: dict[str, dict[str, Any]] = read_json(output / ESTIMATES) or {}

    def measure(self, names: Iterable[str]) -> None:
        """Measure the networks that have no estimate yet."""
        missing = [name for name in names if name not in self.estimates]
        for name in tqdm(missing, desc='measuring the speed of each network', unit='network', leave=False):
            train_set = dataset_options(self._task, 'train')
            batch = train_set['batch_size_per_gpu']
            measurement = measure_process.Measurement(
                self._task,
                self._networks[name],
                size=max(max(image_sizes(train_set['dataroot_gt']))),
                batch=batch,
                train_images=batch,
                val_images=batch,
                epochs=3,
                runs=2,
                steps=measure_process.MEAN_STEPS,
            )
            figures = measure_process.run(measurement)
            if 'iteration_seconds' in figures:
                self.estimates[name] = figures
            else:
                tqdm.write(f'{name} cannot be measured: {measure_process.failure_reason(figures)}', file=sys.stderr)

    def seconds(self, name: str, iters: int) -> float:
        """Return the estimated seconds of a run.

        Args:
            name: a network. One without an estimate failed to be measured, so its run will end at once.
            iters: iterations of a phase of ratio 1.
        """
        estimate = self.estimates.get(name)
        if estimate is None:
            return STARTUP_SECONDS
        network = self._networks[name]
        validations = sum(phase_iterations(network, iters).values()) // validation_interval(self._task, network, iters)
        images = validations * self._tiles['val'] + self._tiles['test']
        return STARTUP_SECONDS + iters * estimate['iteration_seconds'] + images * estimate['validation_seconds']

    def iterations(self, seeds: int, epochs: float | None, budget: float | None) -> int:
        """Return the number of iterations of a phase of ratio 1.

        Args:
            seeds: runs per network.
            epochs: epochs of a phase; None for those of the option file.
            budget: minutes for all runs; reduces the iterations where they would take longer. None for no limit.

        Raises:
            ConfigError: if the budget is too small for any training.
        """
        _, most = shared_training(self._task)
        if epochs is not None:
            most = max(MIN_ITERATIONS, round(epochs * epoch_iterations(self._task, self._tiles['train'])))
        if budget is not None:
            most = self._within_budget(seeds, most, budget)
        # Divisible by the number of validations: they are then equally far apart, and equally many in each phase.
        return most - most % validations_per_phase(self._task, most)

    def _within_budget(self, seeds: int, most: int, budget: float) -> int:
        def total_seconds(iters: int) -> float:
            return seeds * sum(self.seconds(name, iters) for name in self._networks)

        start = time.monotonic()
        self.measure(self._networks)
        spent = time.monotonic() - start
        available = PLANNED_RATIO * (60 * budget - spent)
        choices = range(MIN_ITERATIONS, max(MIN_ITERATIONS, most) + 1)
        affordable = bisect.bisect_right(choices, available, key=total_seconds)
        if not affordable:
            minutes = (total_seconds(MIN_ITERATIONS) / PLANNED_RATIO + spent) / 60
            raise ConfigError(
                f'--budget: {budget:g} minutes given, these networks need at least {minutes:.1f} minutes here, and '
                'more to learn anything; raise it'
            )
        return choices[affordable - 1]


def epoch_iterations(task: Options, images: int) -> int:
    """Return the iterations of an epoch, which has whole batches only.

    Args:
        task: the option file.
        images: number of training images.
    """
    train_set = dataset_options(task, 'train')
    return max(1, images * train_set.get('dataset_enlarge_ratio', 1) // train_set['batch_size_per_gpu'])


def validations_per_phase(task: Options, iters: int) -> int:
    """Return the validations in a phase of ``iters`` iterations: about one per ``val_freq``, the last at its end."""
    return max(1, round(iters / task['val']['val_freq']))


def validation_interval(task: Options, network: Options, iters: int) -> int:
    """Return the iterations between two validations of a network.

    The best network is chosen in the last phase. Whatever its length, that phase has as many validations as that of
    every other network: :func:`validations_per_phase`.

    Args:
        task: the option file.
        network: options of the network.
        iters: iterations of a phase of ratio 1.
    """
    lengths = list(phase_iterations(network, iters).values())
    total = sum(lengths)
    return total // max(1, round(total / lengths[-1] * validations_per_phase(task, iters)))
