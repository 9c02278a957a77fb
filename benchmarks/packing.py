"""What packing costs: ``python benchmarks/packing.py speed``, ``raw`` or ``growth``.

``speed``: packing a folder in GoPro's layout against only decoding the same images with as many workers. What both
need before, to start Python and import PyTorch, is not counted.
``raw``: memory and time of pairs in SID's layout, of 24 megapixels each.
``growth``: seconds, memory and disk as the number of tiles grows, of generated images.

Memory is the peak of the proportional set size of all processes, above that of the interpreters before work begins.
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
GROWTH_SIDE, GROWTH_TILES = 1280, 100  # an image, and how many tiles of 128 pixels it is
SAMPLE_SECONDS = 0.5  # reading the memory of a process takes 10 ms of a core


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('speed', 'raw', 'growth'))
    parser.add_argument('--images', type=int, default=240, help='of speed; two are a pair')
    parser.add_argument('--pairs', type=int, default=8, help='of raw')
    parser.add_argument('--tiles', type=int, nargs='+', default=[20_000, 200_000], help='pairs of tiles, of growth')
    parser.add_argument('--workers', type=int, default=os.cpu_count())
    parser.add_argument('--repeats', type=int, default=3, help='of speed; the median counts')
    parser.add_argument('--json', type=Path, help='write the figures there, too')
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Starts the process that the workers are forked from.
        pack('benchmark', generated(3 * GROWTH_TILES), Path(folder) / 'first', PackConfig(split='tile'))
        figures = {'speed': speed, 'raw': raw, 'growth': growth}[arguments.what](Path(folder), arguments)
    report({'workers': arguments.workers, **figures}, arguments.json)


def speed(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    for index in range(arguments.images // 2):
        sequence = folder / 'gopro' / 'train' / f'GOPR{index % 10:04d}_11_00'
        for side, image in zip(('sharp', 'blur'), photograph(index), strict=True):
            (sequence / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(sequence / side / f'{index:06d}.png'), image)
    pairs = SOURCES['gopro'].list(folder / 'gopro', blur='blur')
    images = [image for pair in pairs for image in (pair.gt, pair.lq)]
    memory = measured(pairs, folder / 'packed', arguments.workers)['memory, MB']
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


def photograph(index: int) -> tuple[np.ndarray, np.ndarray]:
    """A sharp and a blurred image of the size of GoPro's, with grain that makes its PNG as large as a photograph's."""
    from skimage import data  # here, since each worker imports this module

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
            write_dng(folder / 'sid' / name, exposed)
        lines.append(f'{names[0]} {names[1]} ISO200 F8\n')
    (folder / 'sid' / 'Sony_train_list.txt').write_text(''.join(lines))
    figures = measured(SOURCES['sid'].list(folder / 'sid', cameras=None), folder / 'packed', arguments.workers)
    return {'pairs': arguments.pairs, 'megapixels': width * height / 1e6, **figures}


def write_dng(path: Path, light: np.ndarray) -> None:
    """A raw file with an RGGB mosaic, black at 512 and white at 16383."""
    import tifffile

    identity = [int(row == column) for row in range(3) for column in range(3)]
    tags: Sequence[tuple] = [
        (33421, 'H', 2, (2, 2), True),  # repetition and colours of the mosaic
        (33422, 'B', 4, bytes([0, 1, 1, 2]), True),
        (50706, 'B', 4, bytes([1, 4, 0, 0]), True),  # version of the format
        (50708, 's', 0, 'Benchmark', True),
        (50714, 'H', 1, 512, True),
        (50717, 'H', 1, 16383, True),
        (50721, '2i', 9, [part for value in identity for part in (value, 1)], True),  # colour matrix
        (50728, '2I', 3, [1] * 6, True),  # white balance
    ]
    mosaic = (512 + light).astype(np.uint16)
    tifffile.imwrite(path, mosaic, photometric='cfa', extratags=tags, metadata=None, software=False)


@dataclass(frozen=True)
class Generated:
    """An image that takes no time to read, unlike any other."""

    path: str
    index: int

    def read(self) -> np.ndarray:
        random = np.random.default_rng(self.index)
        coarse = random.integers(0, 256, (GROWTH_SIDE // 32, GROWTH_SIDE // 32, 3), dtype=np.uint8)
        return cv2.resize(coarse, (GROWTH_SIDE, GROWTH_SIDE), interpolation=cv2.INTER_LINEAR)

    def stored_bytes(self) -> int:
        return 1 << 20


def generated(tiles: int) -> list[Pair]:
    return [
        Pair(f'{index:06d}', f'{index // 20:06d}', *(Generated('generated', 2 * index + side) for side in (0, 1)))
        for index in range(tiles // GROWTH_TILES)
    ]


def growth(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for tiles in arguments.tiles:
        figures[f'{tiles:,} pairs of tiles'] = measured(generated(tiles), folder / 'packed', arguments.workers)
    first, last = (figures[f'{tiles:,} pairs of tiles'] for tiles in (arguments.tiles[0], arguments.tiles[-1]))
    more = arguments.tiles[-1] - arguments.tiles[0]
    if more:
        figures['each pair more, µs'] = (last['seconds'] - first['seconds']) / more * 1e6
        figures['each pair more, bytes of memory'] = (last['memory, MB'] - first['memory, MB']) / more * 1e6
        figures['each pair more, bytes of disk'] = (last['disk, MB'] - first['disk, MB']) / more * 1e6
    return figures


def measured(pairs: Sequence[Pair], output: Path, workers: int) -> dict[str, float]:
    """Pack, and say what it took."""
    start = time.perf_counter()
    summary, memory = peak_memory(
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


def peak_memory(call: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returns, and by how many bytes it and its processes grow at most."""
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
        except psutil.Error:  # it has just ended
            continue
    return total


if __name__ == '__main__':
    main()
