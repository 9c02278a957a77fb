"""The cost of packing datasets: ``python benchmarks/packing.py speed``, ``raw`` or ``growth``.

``speed``: seconds of packing a folder in GoPro's layout, compared with only decoding its images with as many workers.
The start of Python and the import of PyTorch, which both need, are not counted.
``raw``: memory and seconds of packing pairs in SID's layout, of 24 megapixels each.
``growth``: seconds, memory and disk space as the number of tiles grows, with generated images.

Memory is the peak of the proportional set size of all processes, above that of the interpreters before the work.
"""

import argparse
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from common import medians, report

from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.extraction import PackConfig
from lnca_data.prepare.packing import pack
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.workers import ordered_map

SIZE = (1280, 720)
RAW_SIZE = (6000, 4000)
GROWTH_SIDE, GROWTH_TILES = 1280, 100  # side of a generated image, and its number of tiles of 128 pixels
SAMPLE_SECONDS = 0.5  # reading the memory of a process takes 10 ms of a core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=PARTS)
    parser.add_argument('--images', type=int, default=240, help='speed: number of images; two are a pair')
    parser.add_argument('--pairs', type=int, default=8, help='raw: number of pairs')
    parser.add_argument('--tiles', type=int, nargs='+', default=[20_000, 200_000], help='growth: pairs of tiles')
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--repeats', type=int, default=3, help='speed: timed runs; the median is reported')
    parser.add_argument('--json', type=Path, help='also write the figures to this file')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # The first call starts the process that workers are forked from.
        pack('benchmark', _generated_pairs(3 * GROWTH_TILES), Path(folder) / 'first', PackConfig(split='tile'))
        figures = PARTS[arguments.what](Path(folder), arguments)
    report({'workers': arguments.workers, **figures}, arguments.json)


def speed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    for index in range(arguments.images // 2):
        sequence = folder / 'gopro' / 'train' / f'GOPR{index % 10:04d}_11_00'
        for side, image in zip(('sharp', 'blur'), _photographs(index), strict=True):
            (sequence / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(sequence / side / f'{index:06d}.png'), image)
    pairs = SOURCES['gopro'].list(folder / 'gopro', blur='blur')
    images = [image for pair in pairs for image in (pair.gt, pair.lq)]
    memory = _measure(pairs, folder / 'packed', arguments.workers)['memory, MB']
    seconds = medians(
        {
            'decoding': lambda: deque(ordered_map(_decode, images, arguments.workers), maxlen=0),
            'packing': lambda: pack(
                'benchmark', pairs, folder / 'packed', PackConfig(), workers=arguments.workers, overwrite=True
            ),
        },
        arguments.repeats,
    )
    return {
        'images': len(images),
        'MB an image': sum(Path(image.path).stat().st_size for image in images) / len(images) / 1e6,
        'decoding, s': seconds['decoding'],
        'packing, s': seconds['packing'],
        'times as long': seconds['packing'] / seconds['decoding'],
        'memory, MB': memory,
    }


def _decode(image: Any) -> None:
    image.read()


def _photographs(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a sharp and a blurred image of GoPro's size, with grain so that the PNG is as large as a photograph's."""
    from skimage import data  # not at the top: each worker imports this module

    random = np.random.default_rng(index)
    source = (data.astronaut, data.coffee, data.chelsea)[index % 3]()
    side = random.integers(150, 250)
    top, left = (random.integers(0, length - side) for length in source.shape[:2])
    image = cv2.resize(source[top : top + side, left : left + side], SIZE, interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + random.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
    return image, cv2.blur(image, (1 + int(random.integers(4, 20)), 1))


def raw(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    for side in ('long', 'short'):
        (folder / 'sid' / 'Sony' / side).mkdir(parents=True)
    lines = []
    width, height = RAW_SIZE
    for index in range(arguments.pairs):
        coarse = np.random.default_rng(index).uniform(0, 12_000, (height // 100, width // 100)).astype(np.float32)
        light = cv2.resize(coarse, RAW_SIZE, interpolation=cv2.INTER_CUBIC).clip(0, 15_000)
        names = f'./Sony/short/{index:05d}_00_0.1s.ARW', f'./Sony/long/{index:05d}_00_10s.ARW'
        for name, exposed in zip(names, (light / 100, light), strict=True):
            _write_dng(folder / 'sid' / name, exposed)
        lines.append(f'{names[0]} {names[1]} ISO200 F8\n')
    (folder / 'sid' / 'Sony_train_list.txt').write_text(''.join(lines))
    figures = _measure(SOURCES['sid'].list(folder / 'sid', cameras=None), folder / 'packed', arguments.workers)
    return {'pairs': arguments.pairs, 'megapixels': width * height / 1e6, **figures}


def _write_dng(path: Path, light: np.ndarray) -> None:
    """Write a raw file with an RGGB mosaic, black level 512 and white level 16383."""
    import tifffile

    identity = [int(row == column) for row in range(3) for column in range(3)]
    tags: Sequence[tuple] = [
        (33421, 'H', 2, (2, 2), True),  # size of the mosaic's pattern
        (33422, 'B', 4, bytes([0, 1, 1, 2]), True),  # its colours
        (50706, 'B', 4, bytes([1, 4, 0, 0]), True),  # DNG version
        (50708, 's', 0, 'Benchmark', True),
        (50714, 'H', 1, 512, True),
        (50717, 'H', 1, 16383, True),
        (50721, '2i', 9, [part for value in identity for part in (value, 1)], True),  # colour matrix
        (50728, '2I', 3, [1] * 6, True),  # white balance
    ]
    mosaic = (512 + light).astype(np.uint16)
    tifffile.imwrite(path, mosaic, photometric='cfa', extratags=tags, metadata=None, software=False)


@dataclass(frozen=True)
class GeneratedImage:
    """An image that takes almost no time to read."""

    path: str
    index: int

    def read(self) -> np.ndarray:
        random = np.random.default_rng(self.index)
        coarse = random.integers(0, 256, (GROWTH_SIDE // 32, GROWTH_SIDE // 32, 3), dtype=np.uint8)
        return cv2.resize(coarse, (GROWTH_SIDE, GROWTH_SIDE), interpolation=cv2.INTER_LINEAR)

    def stored_bytes(self) -> int:
        return 1 << 20


def _generated_pairs(tiles: int) -> list[Pair]:
    return [
        Pair(f'{index:06d}', f'{index // 20:06d}', *(GeneratedImage('generated', 2 * index + side) for side in (0, 1)))
        for index in range(tiles // GROWTH_TILES)
    ]


def growth(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    rows = [_measure(_generated_pairs(tiles), folder / 'packed', arguments.workers) for tiles in arguments.tiles]
    figures: dict[str, Any] = {
        f'{tiles:,} pairs of tiles': row for tiles, row in zip(arguments.tiles, rows, strict=True)
    }
    added = arguments.tiles[-1] - arguments.tiles[0]
    if added:
        for name, key in (
            ('each pair more, µs', 'seconds'),
            ('each pair more, bytes of memory', 'memory, MB'),
            ('each pair more, bytes of disk', 'disk, MB'),
        ):
            figures[name] = (rows[-1][key] - rows[0][key]) / added * 1e6
    return figures


PARTS = {'speed': speed, 'raw': raw, 'growth': growth}


def _measure(pairs: Sequence[Pair], output: Path, workers: int) -> dict[str, float]:
    """Return the number of tiles, the seconds, the memory and the disk space of packing pairs."""
    start = time.perf_counter()
    summary, memory = _peak_memory(
        lambda: pack('benchmark', pairs, output, PackConfig(), workers=workers, overwrite=True)
    )
    seconds = time.perf_counter() - start
    disk = sum(file.stat().st_blocks * 512 for file in output.rglob('*') if file.is_file())
    shutil.rmtree(output)
    return {
        'tiles': sum(summary.tiles.values()),
        'seconds': seconds,
        'memory, MB': memory / 1e6,
        'disk, MB': disk / 1e6,
    }


def _peak_memory(call: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of a call, and the peak growth in bytes of this process and its children during it."""
    process = psutil.Process()
    before = peak = _memory(process)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, _memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = call()
    finally:
        done.set()
        watcher.join()
    return result, peak - before


def _memory(process: psutil.Process) -> int:
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            total += each.memory_full_info().pss
        except psutil.Error:  # the process has just ended
            continue
    return total


if __name__ == '__main__':
    main()
