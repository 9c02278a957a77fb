"""What the models that come along do to whole photographs, and what it takes: ``python benchmarks/restoring.py``.

Scores are those of the photograph that no model was trained on; time and memory those of ``inference/restore.py`` as a
process of its own, from its start to its end.
"""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from measure import argument_parser, machine
from results_folder import markdown_table

from lnca_data.atomic import write_json
from lnca_data.corruption import MotionBlur, Noise
from lnca_data.cutting import corrupted
from lnca_data.images import Bundled
from lnca_data.photographs import Photograph, write_photograph
from lnca_model.metrics import calculate_psnr_batch, calculate_ssim_batch
from lnca_restore import Restorer
from lnca_restore.tiling import windows

RESTORE = Path(__file__).parents[1] / 'inference' / 'restore.py'
HELD_OUT = 'chelsea'
TASKS = {
    ('denoise', 'noise, p = 0.5'): Noise(),
    ('denoise', 'none'): None,
    ('deblur', 'motion blur, 7 pixels'): MotionBlur(),
    ('deblur', 'none'): None,
}
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


def _score(model: str, damage: str) -> dict[str, Any]:
    """PSNR in dB and SSIM of the whole photograph before and after."""
    clean = Bundled(HELD_OUT).read()
    corruption = TASKS[model, damage]
    given = clean if corruption is None else corrupted(clean, corruption, seed=0)
    restored = Restorer.from_pretrained(model)(given)
    row: dict[str, Any] = {'model': model, 'damage': damage}
    for name, metric in (('PSNR', calculate_psnr_batch), ('SSIM', calculate_ssim_batch)):
        before, after = (float(metric(image, clean, crop_border=0)) for image in (given, restored))
        # JSON has no infinity, which is the PSNR of a picture that is not damaged.
        row |= {f'{name} before': before if math.isfinite(before) else None, f'{name} after': after}
    return row


def _photograph(height: int, width: int) -> np.ndarray:
    """The held-out photograph, noisy, in another size."""
    resized = cv2.resize(Bundled(HELD_OUT).read(), (width, height), interpolation=cv2.INTER_CUBIC)
    return corrupted(resized, Noise(), seed=0)


def _seams(model: str) -> dict[str, Any]:
    """A photograph restored in tiles and at once: how the two differ, and the steps from one row or column of pixels to
    the next, the largest on a border of tiles and the largest elsewhere, each the mean along the border."""
    height, width = SEAM_SIZE
    image = _photograph(height, width).astype(np.float32) / 255
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
        'tiled − whole, largest': float(np.abs(tiled - whole).max()),
        'tiled − whole, mean': float(np.abs(tiled - whole).mean()),
        'step on a border': float(max(on_borders)),
        'step elsewhere': float(max(elsewhere)),
    }


def _process(megapixels: int, repeats: int) -> dict[str, Any]:
    """Seconds, medians, and peak memory of a whole process; the first run, which may have to compile, by itself."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / 'photo.png', Path(folder) / 'restored.png'
        write_photograph(source, Photograph(_photograph(*SIZES[megapixels])))
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
    'scores': lambda repeats: [_score(model, damage) for model, damage in TASKS],
    'seams': lambda repeats: [_seams(model) for model in ('denoise', 'deblur')],
    'processes': lambda repeats: [_process(size, repeats if size <= REPEATED else 0) for size in SIZES],
}


if __name__ == '__main__':
    main()
