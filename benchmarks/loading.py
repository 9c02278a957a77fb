"""How many pairs of 32×32 tiles a second come out of the loader: ``python benchmarks/loading.py``."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import medians, report

import lnca_model  # noqa: F401  registers the plug-in
from lnca_data.lmdb_store import write_lmdb

from basicsr.data import build_dataloader, build_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--tiles', type=int, default=40_000, help='pairs of 32×32 tiles')
    parser.add_argument('--batch', type=int, default=32, help='batch_size_per_gpu')
    parser.add_argument('--repeats', type=int, default=5, help='epochs, of which the median counts')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.tiles)
        loaders = {
            f'{name}, {workers} workers': loader(Path(folder), cache, arguments.batch, workers)
            for name, cache in (('in memory', 'memory'), ('from the LMDB', None))
            for workers in (0, 2)
        }
        seconds = medians(
            {name: lambda data=data: sum(1 for _ in data) for name, data in loaders.items()}, arguments.repeats
        )
    figures: dict[str, Any] = {f'{name}, pairs/s': arguments.tiles / value for name, value in seconds.items()}
    report({'tiles': arguments.tiles, 'batch': arguments.batch, **figures}, arguments.json)


def write(folder: Path, tiles: int) -> None:
    random = np.random.default_rng(0)
    for side in ('gt', 'lq'):
        images = ((f'{index:06d}', random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for index in range(tiles))
        write_lmdb(folder / f'{side}.lmdb', images)


def loader(folder: Path, cache: str | None, batch: int, workers: int) -> Any:
    roots = {f'dataroot_{side}': str(folder / f'{side}.lmdb') for side in ('gt', 'lq')}
    options = {'name': 'tiles', 'type': 'TileDataset', 'phase': 'train', 'cache': cache, **roots}
    options |= {'use_hflip': True, 'use_rot': True, 'batch_size_per_gpu': batch, 'num_worker_per_gpu': workers}
    return build_dataloader(build_dataset(options), options | {'persistent_workers': workers > 0})


if __name__ == '__main__':
    main()
