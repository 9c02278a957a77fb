"""What the models that come along do to whole photographs, and what it takes: ``python benchmarks/restore_quality.py``.

Scores are those of photographs that no model was trained on; time and memory those of ``inference/restore.py`` as a
process of its own, from its start to its end.
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
from results_store import markdown_table
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
TASKS = {
    ('denoise', 'noise, p = 0.5'): Noise(),
    ('denoise', 'none'): None,
    ('deblur', 'motion blur, 7 pixels'): MotionBlur(),
    ('deblur', 'none'): None,
}
DAMAGED = [task for task, damage in TASKS.items() if damage]
METRICS = {'PSNR': calculate_psnr_batch, 'SSIM': calculate_ssim_batch}
SIZES = {1: (1000, 1000), 24: (4000, 6000)}  # megapixels → height, width
REPEATED = 1  # megapixels up to which a run is repeated; more takes minutes, and memory does not vary
# Between this process and the one that is measured: a process begins with the peak memory of the one that starts it.
PEAK_OF = (
    'import resource, subprocess, sys\n'
    'subprocess.run(sys.argv[1:], check=True)\n'
    'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
)
SEAM_SIZE, SEAM_TILES, SEAM_OVERLAP = (768, 1024), 384, 64


def main() -> None:
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), help='what to measure')
    arguments = parser.parse_args()
    figures = {'machine': machine(), **{part: PARTS[part](arguments.repeats) for part in arguments.parts}}
    print(figures['machine'])
    for part, rows in figures.items():
        if part != 'machine':
            cells = [[_text(cell) for cell in row.values()] for row in rows]
            print(f'\n{part.capitalize()}\n', markdown_table(list(rows[0]), cells), sep='\n')
    if arguments.json:
        write_json(arguments.json, figures)


def _text(figure: Any) -> str:
    return '–' if figure is None else f'{figure:.4g}' if isinstance(figure, float) else str(figure)


def _pairs(damage: Corruption | None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name, clean and damaged photograph."""
    for name, path in HELD_OUT.items():
        clean = BundledPhoto(path).read()
        yield name, clean, clean if damage is None else corrupted(clean, damage, seed=0)


def _scores(model: str, damage: str) -> Iterator[dict[str, Any]]:
    """PSNR in dB and SSIM of whole photographs before and after."""
    for photograph, clean, given in _pairs(TASKS[model, damage]):
        restored = Restorer.from_pretrained(model)(given)
        row: dict[str, Any] = {'model': model, 'damage': damage, 'photograph': photograph}
        for name, metric in METRICS.items():
            before, after = (float(metric(image, clean, crop_border=0)) for image in (given, restored))
            # JSON has no infinity, which is the PSNR of a picture that is not damaged.
            row |= {f'{name} before': before if math.isfinite(before) else None, f'{name} after': after}
        yield row


def _steps(model: str, damage: str) -> list[dict[str, Any]]:
    """Means over the photographs after more and more steps: of whole ones; of their tiles, restored as parts of a
    whole; and of the same tiles, each restored by itself, as the models were trained."""
    network = load_network(model).network
    scores: dict[int, list[dict[str, float]]] = {steps: [] for steps in STEPS}
    for _, clean, given in tqdm(list(_pairs(TASKS[model, damage])), desc=f'{model}, steps', unit='photograph'):
        with torch.no_grad():
            wholes = network.intermediate_outputs(to_tensor(given[None]), STEPS)
            alone = network.intermediate_outputs(to_tensor(_tiles(given)), STEPS)
        for steps, whole, tiles in zip(STEPS, wholes, alone, strict=True):
            (whole,), tiles, truth = to_bgr(whole)[..., ::-1], to_bgr(tiles)[..., ::-1], _tiles(clean)
            row = {name: float(metric(whole, clean, crop_border=0)) for name, metric in METRICS.items()}
            for name, found in (('tiles of the whole', _tiles(whole)), ('tiles alone', tiles)):
                row[f'SSIM, {name}'] = float(calculate_ssim_batch(found, truth, crop_border=0).mean())
            scores[steps].append(row)
    return [
        {'model': model, 'steps': steps, **{key: float(np.mean([row[key] for row in rows])) for key in rows[0]}}
        for steps, rows in scores.items()
    ]


def _tiles(image: np.ndarray) -> np.ndarray:
    """``(H, W, C)`` → ``(N, 32, 32, C)``, without what is left over at the right and the bottom."""
    rows, columns = (side // TILE for side in image.shape[:2])
    image = image[: rows * TILE, : columns * TILE].reshape(rows, TILE, columns, TILE, -1)
    return image.swapaxes(1, 2).reshape(rows * columns, TILE, TILE, -1)


def _photograph(height: int, width: int, damage: Corruption) -> np.ndarray:
    """A held-out photograph, damaged, in another size."""
    resized = cv2.resize(BundledPhoto(HELD_OUT['chelsea']).read(), (width, height), interpolation=cv2.INTER_CUBIC)
    return corrupted(resized, damage, seed=0)


def _seams(model: str, damage: str) -> dict[str, Any]:
    """A photograph restored in tiles and at once: how the two differ, and the steps from one row or column of pixels to
    the next, the largest on a border of tiles and the largest elsewhere, each the mean along the border."""
    image = _photograph(*SEAM_SIZE, TASKS[model, damage]).astype(np.float32) / 255
    whole = Restorer.from_pretrained(model)(image)
    tiled = Restorer.from_pretrained(model, tile=SEAM_TILES, overlap=SEAM_OVERLAP)(image)
    on_borders, elsewhere = [], []
    for axis, length in enumerate(SEAM_SIZE):
        steps = np.abs(np.diff(tiled, axis=axis)).mean(axis=(1 - axis, 2))
        blended = [
            np.arange(first.written.stop - SEAM_OVERLAP // 2, first.written.stop)
            for first in windows(length, SEAM_TILES, SEAM_OVERLAP, 4)[:-1]
        ]
        is_border = np.zeros(len(steps), bool)
        is_border[np.concatenate(blended)] = True
        on_borders.append(steps[is_border].max())
        elsewhere.append(steps[~is_border].max())
    return {
        'model': model,
        'damage': damage,
        'tiled − whole, largest': float(np.abs(tiled - whole).max()),
        'tiled − whole, mean': float(np.abs(tiled - whole).mean()),
        'step on a border': float(max(on_borders)),
        'step elsewhere': float(max(elsewhere)),
    }


def _process(megapixels: int, repeats: int) -> dict[str, Any]:
    """Seconds, medians, and peak memory of a whole process; the first run, which may have to compile, by itself."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / 'photo.png', Path(folder) / 'restored.png'
        write_photograph(source, Photograph(_photograph(*SIZES[megapixels], Noise())))
        seconds, peaks = [], []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            run = [sys.executable, '-c', PEAK_OF, sys.executable, RESTORE, source, '-o', target, '--overwrite']
            done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
            seconds.append(time.perf_counter() - start)
            peaks.append(int(done.stdout.split()[-1]) * 1024)
    return {
        'megapixels': megapixels,
        'first run, s': seconds[0],
        'others, s': float(np.median(seconds[1:])) if repeats else None,
        'peak memory, GB': max(peaks) / 1e9,
    }


PARTS = {
    'scores': lambda repeats: [row for model, damage in TASKS for row in _scores(model, damage)],
    'steps': lambda repeats: [row for model, damage in DAMAGED for row in _steps(model, damage)],
    'seams': lambda repeats: [_seams(model, damage) for model, damage in DAMAGED],
    'processes': lambda repeats: [_process(size, repeats if size <= REPEATED else 0) for size in SIZES],
}


if __name__ == '__main__':
    main()
