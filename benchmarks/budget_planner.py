"""How long the runs of a comparison take, and how many iterations a budget allows."""

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import measure_process
from network_configs import Options, dataset_of, lengths_of, shared_training
from results_store import read_json
from tqdm import tqdm

from lnca_data.io.lmdb_store import image_sizes
from lnca_utils.errors import ConfigError

ESTIMATES = 'estimates.json'
LEAST_ITERATIONS = 2
# Of a budget, what is planned for: a busy machine is slower than while it was measured.
PLANNED_SHARE = 0.8
START_SECONDS = 20  # of a run, until it trains and after it has


class Planner:
    """Knows how fast each network is here: each is measured for some iterations.

    Args:
        task: the option file.
        networks: name → its options.
        tiles: numbers of training, validation and test tiles.
        output: folder of the results, where the estimates of an earlier call are.
    """

    def __init__(self, task: Options, networks: Mapping[str, Options], tiles: Mapping[str, int], output: Path) -> None:
        self._task, self._networks, self._tiles = task, networks, tiles
        self.estimates: dict[str, dict[str, Any]] = read_json(output / ESTIMATES) or {}

    def measure(self, names: Iterable[str]) -> None:
        """Measure the networks that were not measured before."""
        missing = [name for name in names if name not in self.estimates]
        for name in tqdm(missing, desc='measuring how fast each network is', unit='network', leave=False):
            batch = self._task['datasets']['train']['batch_size_per_gpu']
            size = max(max(image_sizes(dataset_of(self._task, 'train')['dataroot_gt'])))
            shape = {'size': size, 'batch': batch, 'train_images': batch, 'val_images': batch}
            one = measure_process.Cell(
                self._task, self._networks[name], **shape, epochs=3, runs=2, steps=measure_process.MEAN_STEPS
            )
            figures = measure_process.run(one)
            if 'iteration_seconds' in figures:
                self.estimates[name] = figures
            else:
                tqdm.write(f'{name} cannot be measured: {measure_process.reason(figures)}', file=sys.stderr)

    def seconds(self, name: str, iters: int) -> float:
        """How long a run of a network that was measured will take, with ``iters`` iterations in a phase of share 1."""
        estimate = self.estimates.get(name)
        if estimate is None:  # it will fail at once
            return START_SECONDS
        network = self._networks[name]
        validations = sum(lengths_of(network, iters).values()) // iterations_between(self._task, network, iters)
        images = validations * self._tiles['val'] + self._tiles['test']
        return START_SECONDS + iters * estimate['iteration_seconds'] + images * estimate['validation_seconds']

    def iterations(self, seeds: int, epochs: float | None, budget: float | None) -> int:
        """Iterations a phase: those of the option file, or of so many epochs, or as many as a budget allows.

        Args:
            seeds: runs of each network.
            epochs: of a phase.
            budget: minutes for everything, in place of epochs.

        Raises:
            ConfigError: the budget is too small for any training.
        """
        _, full = shared_training(self._task)
        if epochs is not None:
            full = max(LEAST_ITERATIONS, round(epochs * iterations_of_an_epoch(self._task, self._tiles['train'])))
        if budget is None:
            return self._in_equal_parts(full)
        start = time.monotonic()
        self.measure(self._networks)
        spent = time.monotonic() - start
        available = PLANNED_SHARE * (60 * budget - spent)
        if self._all(LEAST_ITERATIONS, seeds) > available:
            least = (self._all(LEAST_ITERATIONS, seeds) / PLANNED_SHARE + spent) / 60
            raise ConfigError(
                f'--budget: these networks need at least {least:.1f} minutes here, and more to learn anything'
            )
        fewest, most = LEAST_ITERATIONS, full
        while fewest < most:
            middle = (fewest + most + 1) // 2
            fewest, most = (middle, most) if self._all(middle, seeds) <= available else (fewest, middle - 1)
        return self._in_equal_parts(fewest)

    def _in_equal_parts(self, iters: int) -> int:
        """As many, or a few less, so that validations divide each phase alike and choose from as many networks."""
        return iters - iters % validations_of(self._task, iters)

    def _all(self, iters: int, seeds: int) -> float:
        return seeds * sum(self.seconds(name, iters) for name in self._networks)


def iterations_of_an_epoch(task: Options, images: int) -> int:
    """Whole batches of a training set of so many images."""
    training = dataset_of(task, 'train')
    return max(1, images * training.get('dataset_enlarge_ratio', 1) // training['batch_size_per_gpu'])


def validations_of(task: Options, iters: int) -> int:
    """Validations in a phase of so many iterations: about every ``val_freq``, and one at its end."""
    return max(1, round(iters / task['val']['val_freq']))


def iterations_between(task: Options, network: Options, iters: int) -> int:
    """From validation to validation of a network. The best one is chosen in its last phase, which has as many of them,
    however long it is, as that of any other network: :func:`validations_of`."""
    lengths = list(lengths_of(network, iters).values())
    total = sum(lengths)
    return total // max(1, round(total / lengths[-1] * validations_of(task, iters)))
