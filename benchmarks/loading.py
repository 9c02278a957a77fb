"""Pairs of 32×32 tiles per second from the data loader: ``python benchmarks/loading.py``."""

import tempfile
from pathlib import Path
from typing import Any

from common import argument_parser, medians, random_pairs, report

import lnca_model  # noqa: F401  registers the plug-in

from basicsr.data import build_dataloader, build_dataset


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument('--tiles', type=int, default=40_000, help='pairs of 32×32 tiles')
    parser.add_argument('--batch', type=int, default=32, help='batch_size_per_gpu')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        roots = random_pairs(Path(folder), arguments.tiles)
        loaders = {
            f'{name}, {workers} workers': _loader(roots, cache, arguments.batch, workers)
            for name, cache in (('in memory', 'memory'), ('from the LMDB', None))
            for workers in (0, 2)
        }
        calls = {name: lambda loader=loader: sum(1 for _ in loader) for name, loader in loaders.items()}
        seconds = medians(calls, arguments.repeats)
    figures: dict[str, Any] = {f'{name}, pairs/s': arguments.tiles / value for name, value in seconds.items()}
    report({'tiles': arguments.tiles, 'batch': arguments.batch, **figures}, arguments.json)


def _loader(roots: dict[str, str], cache: str | None, batch: int, workers: int) -> Any:
    options = {'name': 'tiles', 'type': 'TileDataset', 'phase': 'train', 'cache': cache, **roots}
    options |= {'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': batch, 'num_worker_per_gpu': workers}
    return build_dataloader(build_dataset(options), options | {'persistent_workers': workers > 0})


if __name__ == '__main__':
    main()
