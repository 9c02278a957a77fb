"""Restoration of photograph files and folders."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from lnca_data.io.animation import ANIMATION_SUFFIXES, write_animation
from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.images import to_8_bits
from lnca_data.io.photographs import SUFFIXES, Photograph, check_format, read_photograph, write_photograph
from lnca_restore.restorer import Restorer
from lnca_utils.errors import ConfigError

ANIMATION_FRAMES = 9
RESTORED = '_restored'  # suffix of the name of a restored photograph beside the original
PREVIEW_SIDE = 1024  # largest height or width of pictures, in pixels


class Job(NamedTuple):
    """Paths of a photograph and of the restored photograph."""

    source: Path
    target: Path


class Pictures(NamedTuple):
    """Pictures to make of one photograph.

    Attributes:
        animation: path of an animation of the restoration, or None.
        animation_steps: numbers of steps that it shows. Default: nine, evenly spaced.
        side_by_side: path of a PNG of the photograph before and after, or None.
    """

    animation: Path | None = None
    animation_steps: Sequence[int] | None = None
    side_by_side: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Paths of the pictures."""
        return [path for path in (self.animation, self.side_by_side) if path]


def plan_jobs(inputs: Iterable[Path], output: Path | None, pictures: Pictures, overwrite: bool = False) -> list[Job]:
    """Return the photographs to restore and the paths to write them to.

    Args:
        inputs: photographs, and folders of them.
        output: a file for one photograph, or a folder. Default: beside each photograph, as ``NAME_restored``.
        pictures: pictures to make.
        overwrite: whether existing files may be replaced.

    Raises:
        LNCAError: if there are no photographs, or a file would be written twice or replaced.
    """
    inputs = list(inputs)
    sources = [file for path in inputs for file in _list_photographs(path, with_restored=output is not None)]
    _check_pictures(pictures, len(sources))
    is_folder = len(sources) > 1 or any(path.is_dir() for path in inputs)
    if output and (is_folder or output.is_dir() or not output.suffix):
        jobs = [Job(source, output / source.name) for source in sources]
    elif output:
        check_format(output)
        jobs = [Job(sources[0], output)]
    else:
        jobs = [Job(source, source.with_stem(source.stem + RESTORED)) for source in sources]
    _check_outputs(jobs, pictures.paths, overwrite)
    return jobs


def plan_steps(restorer: Restorer, steps: int | None, pictures: Pictures) -> tuple[list[int] | None, int]:
    """Return the steps to compute, and the index of the step that gives the restored photograph.

    Args:
        restorer: the restorer.
        steps: number of steps of the restored photograph. Default: the network's.
        pictures: pictures to make.

    Returns:
        The argument ``steps`` of :meth:`Restorer.intermediate_outputs`, and an index into its result.
    """
    if steps is None and not pictures.animation:
        return None, 0
    last = getattr(restorer.network, 'steps', 0) if steps is None else steps
    shown: list[int] = []
    if pictures.animation:
        evenly = np.linspace(0, last, ANIMATION_FRAMES).round().astype(int).tolist()
        shown = list(pictures.animation_steps or evenly)
    counts = restorer.check_steps(sorted({*shown, last}))
    return counts, counts.index(last)


def restore_file(
    restorer: Restorer, job: Job, steps: Sequence[int] | None, restored_index: int, pictures: Pictures
) -> None:
    """Restore a photograph, and write it and its pictures.

    Args:
        restorer: the restorer.
        job: from :func:`plan_jobs`.
        steps, restored_index: from :func:`plan_steps`.
        pictures: pictures to make.

    Raises:
        LNCAError: if the photograph cannot be read, or the output format does not support it.
        OSError: if a file cannot be written.
    """
    photograph = read_photograph(job.source)
    check_format(job.target, photograph.pixels.shape[-1])
    frames = restorer.intermediate_outputs(photograph.pixels, steps, progress=True)
    restored = photograph.with_pixels(frames[restored_index])
    for path in (job.target, *pictures.paths):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_photograph(job.target, restored)
    if pictures.animation:
        shown = [_preview(photograph.with_pixels(frame)) for frame in frames]
        write_animation(pictures.animation, shown, [f'{count} steps' for count in steps or ()])
    if pictures.side_by_side:
        columns = {'before': [_preview(photograph)], 'after': [_preview(restored)]}
        write_contact_sheet(pictures.side_by_side, columns)


def _list_photographs(path: Path, with_restored: bool) -> list[Path]:
    """Return a file, or the photographs in a folder; ``with_restored`` includes those named ``NAME_restored``."""
    if not path.is_dir():
        return [path]
    # Skip hidden files: temporary files of killed runs, or files of the file manager.
    files = [
        file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and not file.name.startswith('.')
    ]
    files = files if with_restored else [file for file in files if not file.stem.endswith(RESTORED)]
    if not files:
        raise ConfigError(f'{path}: contains no photographs; supported: {", ".join(SUFFIXES)}')
    return files


def _check_pictures(pictures: Pictures, photographs: int) -> None:
    if photographs > 1 and pictures.paths:
        raise ConfigError('--animate and --side-by-side: only for one photograph at a time')
    if pictures.animation and pictures.animation.suffix.lower() not in ANIMATION_SUFFIXES:
        raise ConfigError(f'--animate {pictures.animation}: must end in {" or ".join(ANIMATION_SUFFIXES)}')
    if pictures.side_by_side and pictures.side_by_side.suffix.lower() != '.png':
        raise ConfigError(f'--side-by-side {pictures.side_by_side}: must end in .png')
    if pictures.animation_steps and not pictures.animation:
        raise ConfigError('--animate-steps: needs --animate')


def _check_outputs(jobs: list[Job], pictures: list[Path], overwrite: bool) -> None:
    """Raise ConfigError if a file would be written twice, would replace another, or cannot be written."""
    sources = {job.source.resolve(): job.source for job in jobs}
    outputs: set[Path] = set()
    for path, source in [*((job.target, job.source) for job in jobs), *((path, None) for path in pictures)]:
        resolved = path.resolve()
        if resolved in outputs:
            raise ConfigError(f'{path}: would be written twice; use two folders, or other names')
        if resolved in sources and (source is None or source.resolve() != resolved):
            raise ConfigError(f'{path}: is itself to be restored; choose another name')
        outputs.add(resolved)
        if path.exists() and not overwrite:
            raise ConfigError(f'{path}: exists; choose another name with -o, or add --overwrite')
        if path.is_dir():
            raise ConfigError(f'{path}: is a folder; choose another name')
        parent = next(parent for parent in resolved.parents if parent.exists())
        if not parent.is_dir():
            raise ConfigError(f'{path}: cannot be written, since {parent} is not a folder')


def _preview(photograph: Photograph) -> np.ndarray:
    """Return a photograph upright, as 8-bit RGB on white, of at most :data:`PREVIEW_SIDE` pixels a side."""
    pixels = to_8_bits(photograph.upright())
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    height, width = pixels.shape[:2]
    scale = min(1.0, PREVIEW_SIDE / max(height, width))
    if scale == 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
