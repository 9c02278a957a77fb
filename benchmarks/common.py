"""What the benchmarks share: medians, the machine that gave them, and output as text and JSON."""

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
from lnca_data.io.lmdb_store import write_lmdb
from lnca_utils.atomic import write_json

# What is measured is what a long run has: compiled before it begins, not in its middle.
aot_cache.CELLS_WORTH_COMPILING = 0


def argument_parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes: ``--repeats`` and ``--json``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--repeats', type=int, default=repeats, help='runs, of which the median counts')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    return parser


def random_pairs(folder: Path, tiles: int) -> dict[str, str]:
    """Write LMDBs of 32×32 tiles of noise; what a dataset's options say of them."""
    random = np.random.default_rng(0)
    roots = {}
    for side in ('gt', 'lq'):
        images = ((f'{index:06d}', random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for index in range(tiles))
        roots[f'dataroot_{side}'] = str(folder / f'{side}.lmdb')
        write_lmdb(roots[f'dataroot_{side}'], images)
    return roots


def medians(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds a call takes: medians of ``repeats``, the calls taking turns so that a busy moment hits all alike; one
    turn before is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_gflops(device: torch.device) -> tuple[str, Callable[[], Any], Callable[[float], float]]:
    """A yardstick for the machine: the name of a 2048² torch.mm in float32, the call, and seconds → GFLOP/s."""
    matrix = torch.rand(2048, 2048, device=device)
    return 'torch.mm 2048²', lambda: torch.mm(matrix, matrix), lambda seconds: 2 * 2048**3 / seconds / 1e9


def machine() -> dict[str, Any]:
    """What a figure depends on."""
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


def in_one_line(where: Mapping[str, Any]) -> str:
    """What :func:`machine` says, for a note under a table."""
    return '; '.join(f'{key}: {value}' for key, value in where.items()) + '.'


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def report(figures: Mapping[str, Any], path: Path | None) -> None:
    """Print figures, a line each, and write them as JSON if a path is given."""
    figures = {**figures, 'machine': machine()}
    for name, value in figures.items():
        print(f'{name}: {value:.4g}' if isinstance(value, float) else f'{name}: {value}')
    if path:
        write_json(path, figures)
