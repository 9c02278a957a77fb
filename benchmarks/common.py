"""What all benchmarks share: command-line options, synthetic data, timing, and a description of the machine."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lnca_arch.acceleration import aot_cache
from lnca_data.io.lmdb_writer import write_lmdb
from lnca_utils.atomic import write_json
from lnca_utils.errors import ConfigError

# Compile before the timing starts: the figures are those of a long run.
aot_cache.CELLS_WORTH_COMPILING = 0


def argument_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with the options ``--repeats`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--repeats', type=int, default=repeats, help='timed runs; the median is reported')
    parser.add_argument('--json', type=Path, help='also write the figures to this file')
    return parser


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError unless each of the arguments is above 0 or None."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f'--{name.replace("_", "-")}: must be above 0, got {value:g}')


def random_pairs(folder: Path, tiles: int) -> dict[str, str]:
    """Write LMDBs of 32×32 tiles of noise.

    Args:
        folder: where to create ``gt.lmdb`` and ``lq.lmdb``.
        tiles: number of pairs.

    Returns:
        The dataset options ``dataroot_gt`` and ``dataroot_lq``.
    """
    random = np.random.default_rng(0)
    roots = {}
    for side in ('gt', 'lq'):
        images = ((f'{index:06d}', random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for index in range(tiles))
        roots[f'dataroot_{side}'] = str(folder / f'{side}.lmdb')
        write_lmdb(roots[f'dataroot_{side}'], images)
    return roots


def medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds that each call takes.

    The calls take turns, so that a load on the machine affects all of them; one turn before is not counted.

    Args:
        calls: name → function.
        repeats: number of turns.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """Return a description of the machine and the software that the figures depend on."""
    gpu = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        convolutions = 'TF32' if torch.backends.cudnn.allow_tf32 else 'float32'
        gpu = {
            'GPU': f'{properties.name}, {properties.total_memory / 1e9:.0f} GB',
            'CUDA': f'{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {convolutions} convolutions',
        }
    return {
        **gpu,
        'processor': _processor(),
        'threads': torch.get_num_threads(),
        'precision': 'float32',
        'python': platform.python_version(),
        'torch': torch.__version__,
    }


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine_line(description: Mapping[str, Any]) -> str:
    """Return the result of :func:`machine` on one line, for a note below a table."""
    return '; '.join(f'{key}: {value}' for key, value in description.items()) + '.'


def report(figures: Mapping[str, Any], path: Path | None) -> None:
    """Print figures, one per line, and write them to a JSON file if ``path`` is not None."""
    figures = {**figures, 'machine': machine()}
    for name, value in figures.items():
        print(f'{name}: {value:.4g}' if isinstance(value, float) else f'{name}: {value}')
    if path:
        write_json(path, figures)
