"""Quality, time and memory of the bundled models on whole photographs: ``python benchmarks/restore_quality.py``.

The photographs are held out: no model was trained on them. Time and memory are those of ``inference/restore.py`` in a
process of its own, from start to end.
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import argument_parser, machine
from results_store import markdown_of_rows
from tqdm import tqdm

from lnca_data.corruptions import Corruption, MotionBlur, Noise
from lnca_data.io.images import BundledPhoto
from lnca_data.io.photographs import Photograph, write_photograph
from lnca_data.prepare.extraction import corrupted
from lnca_data.prepare.sources import photos
from lnca_data.tile_dataset import to_tensor
from lnca_model.evaluation.scores import to_bgr
from lnca_model.metrics import calculate_psnr_batch, calculate_ssim_batch
from lnca_restore import Restorer
from lnca_restore.pretrained import load_network
from lnca_restore.tiled_inference import windows
from lnca_utils.atomic import write_json

RESTORE = Path(__file__).parents[1] / 'inference' / 'restore.py'
HELD_OUT = photos.TEST
STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1000)
TILE = 32
# (model, name of the corruption) → the corruption.
TASKS = {
    ('denoise', 'noise, p = 0.5'): Noise(),
    ('denoise', 'none'): None,
    ('deblur', 'motion blur, 7 pixels'): MotionBlur(),
    ('deblur', 'none'): None,
}
CORRUPTED_TASKS = [task for task, corruption in TASKS.items() if corruption]
METRICS = {'PSNR': calculate_psnr_batch, 'SSIM': calculate_ssim_batch}
SIZES = {1: (1000, 1000), 24: (4000, 6000)}  # megapixels → height, width
MAX_REPEATED_MEGAPIXELS = 1  # a larger image takes minutes, and its memory does not vary
# Started between this process and the measured one: a process inherits the peak memory of the one that starts it.
PRINT_PEAK = (
    'import resource, subprocess, sys\n'
    'subprocess.run(sys.argv[1:], check=True)\n'
    'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
)
SEAM_SIZE, SEAM_TILE, SEAM_OVERLAP = (768, 1024), 384, 64


def main() -> None:
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='what to measure')
    arguments = parser.parse_args()
    parts = {part: PARTS[part](arguments.repeats) for part in arguments.parts}
    print(machine())
    for part, rows in parts.items():
        print(f'\n{part.capitalize()}\n', markdown_of_rows(rows, digits=4), sep='\n')
    if arguments.json:
        write_json(arguments.json, {'machine': machine(), **parts})


def _photographs(corruption: Corruption | None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, ground truth and corrupted image of the held-out photographs."""
    for name, path in HELD_OUT.items():
        gt = BundledPhoto(path).read()
        yield name, gt, gt if corruption is None else corrupted(gt, corruption, seed=0)


def _scores(model: str, corruption: str) -> Iterator[dict[str, Any]]:
    """Yield PSNR in dB and SSIM of each photograph before and after restoration."""
    for photograph, gt, lq in _photographs(TASKS[model, corruption]):
        restored = Restorer.from_pretrained(model)(lq)
        row: dict[str, Any] = {'model': model, 'corruption': corruption, 'photograph': photograph}
        for name, metric in METRICS.items():
            before, after = (float(metric(image, gt, crop_border=0)) for image in (lq, restored))
            # JSON has no infinity, the PSNR of an uncorrupted image.
            row |= {f'{name} before': before if math.isfinite(before) else None, f'{name} after': after}
        yield row


def _steps(model: str, corruption: str) -> list[dict[str, Any]]:
    """Return mean scores after each number of steps.

    They are those of the whole photographs, of the tiles of these, and of tiles that were restored one by one, as in
    training.
    """
    network = load_network(model).network
    scores: dict[int, list[dict[str, float]]] = {steps: [] for steps in STEPS}
    photographs = list(_photographs(TASKS[model, corruption]))
    for _, gt, lq in tqdm(photographs, desc=f'{model}, steps', unit='photograph'):
        with torch.no_grad():
            wholes = network.intermediate_outputs(to_tensor(lq[None]), STEPS)
            singles = network.intermediate_outputs(to_tensor(_tiles(lq)), STEPS)
        for steps, whole, tiles in zip(STEPS, wholes, singles, strict=True):
            (whole,), tiles, gt_tiles = to_bgr(whole)[..., ::-1], to_bgr(tiles)[..., ::-1], _tiles(gt)
            row = {name: float(metric(whole, gt, crop_border=0)) for name, metric in METRICS.items()}
            for name, restored in (('tiles of the whole', _tiles(whole)), ('tiles alone', tiles)):
                row[f'SSIM, {name}'] = float(calculate_ssim_batch(restored, gt_tiles, crop_border=0).mean())
            scores[steps].append(row)
    return [
        {'model': model, 'steps': steps, **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}
        for steps, rows in scores.items()
    ]


def _tiles(image: np.ndarray) -> np.ndarray:
    """Return the 32×32 tiles ``(N, 32, 32, C)`` of ``(H, W, C)``, without the rest at the right and bottom."""
    rows, columns = (side // TILE for side in image.shape[:2])
    image = image[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, -1)
    return image.swapaxes(1, 2).reshape(rows * columns, TILE, TILE, -1)


def _resized_photograph(height: int, width: int, corruption: Corruption) -> np.ndarray:
    """Return a held-out photograph, resized and corrupted: ``(height, width, 3)`` uint8."""
    resized = cv2.resize(BundledPhoto(HELD_OUT['chelsea']).read(), (width, height), interpolation=cv2.INTER_CUBIC)
    return corrupted(resized, corruption, seed=0)


def _seams(model: str, corruption: str) -> dict[str, Any]:
    """Compare a photograph that is restored in tiles with the same one restored as a whole.

    Returns:
        The differences between both; and the mean difference between adjacent rows or columns of pixels: the largest at
        a border of tiles, and the largest elsewhere.
    """
    image = _resized_photograph(*SEAM_SIZE, TASKS[model, corruption]).astype(np.float32) / 255
    whole = Restorer.from_pretrained(model)(image)
    tiled = Restorer.from_pretrained(model, tile=SEAM_TILE, overlap=SEAM_OVERLAP)(image)
    at_borders, elsewhere = [], []
    for axis, length in enumerate(SEAM_SIZE):
        differences = np.abs(np.diff(tiled, axis=axis)).mean(axis=(1 - axis, 2))
        is_border = np.zeros(len(differences), bool)
        for window in windows(length, SEAM_TILE, SEAM_OVERLAP, 4)[:-1]:
            is_border[window.written.stop - SEAM_OVERLAP // 2 : window.written.stop] = True
        at_borders.append(differences[is_border].max())
        elsewhere.append(differences[~is_border].max())
    return {
        'model': model,
        'corruption': corruption,
        'tiled − whole, largest': float(np.abs(tiled - whole).max()),
        'tiled − whole, mean': float(np.abs(tiled - whole).mean()),
        'step on a border': float(max(at_borders)),
        'step elsewhere': float(max(elsewhere)),
    }


def _process(megapixels: int, repeats: int) -> dict[str, Any]:
    """Return seconds and peak memory of a process; the first run is separate, since it may compile."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / 'photo.png', Path(folder) / 'restored.png'
        write_photograph(source, Photograph(_resized_photograph(*SIZES[megapixels], Noise())))
        command = [sys.executable, '-c', PRINT_PEAK, sys.executable, RESTORE, source, '-o', target, '--overwrite']
        seconds, peaks = [], []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(time.perf_counter() - start)
            peaks.append(int(done.stdout.split()[-1]) * 1024)
    return {
        'megapixels': megapixels,
        'first run, s': seconds[0],
        'others, s': float(np.median(seconds[1:])) if repeats else None,
        'peak memory, GB': max(peaks) / 1e9,
    }


PARTS = {
    'scores': lambda repeats: [row for task in TASKS for row in _scores(*task)],
    'steps': lambda repeats: [row for task in CORRUPTED_TASKS for row in _steps(*task)],
    'seams': lambda repeats: [_seams(*task) for task in CORRUPTED_TASKS],
    'processes': lambda repeats: [_process(size, repeats if size <= MAX_REPEATED_MEGAPIXELS else 0) for size in SIZES],
}


if __name__ == '__main__':
    main()
