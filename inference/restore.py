"""Restore photographs: ``python inference/restore.py photo.jpg``."""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from lnca_data.io.animation import ANIMATION_SUFFIXES, write_animation
from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.images import to_8_bits
from lnca_data.io.photographs import SUFFIXES, Photograph, check_format, read_photograph, write_photograph
from lnca_restore.pretrained import BUNDLED, DEFAULT_MODEL
from lnca_restore.restorer import Restorer
from lnca_utils.errors import DISK_FULL, ConfigError, LNCAError, first_line, install_excepthook

ANIMATION_FRAMES = 9
RESTORED = '_restored'  # ends the name of a photograph that goes beside the one that it was
SHEET_SIDE = 1024  # of what is to be looked at, not kept


class Job(NamedTuple):
    """A photograph and where it goes once restored."""

    source: Path
    target: Path


def main() -> int:
    install_excepthook()
    for stream in (sys.stdout, sys.stderr):  # names of files may have letters that a terminal has not
        stream.reconfigure(errors='backslashreplace')
    arguments = _parser().parse_args()
    jobs = _jobs(arguments)
    restorer = Restorer.from_pretrained(
        arguments.model, arguments.opt, arguments.device, tile=arguments.tile, overlap=arguments.overlap
    )
    at, restored_at = _steps(restorer, arguments)
    failed = 0
    bar = tqdm(jobs, unit='photo', disable=len(jobs) == 1)
    for job in bar:
        try:
            _restore(restorer, job, at, restored_at, arguments)
        except (LNCAError, OSError) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            failed += 1
            bar.write(f'error: {error}', file=sys.stderr)
        except (MemoryError, RuntimeError, cv2.error) as error:  # torch, too, is out of memory by a RuntimeError
            failed += 1
            advice = 'if there was not enough memory, --tile 256 needs less'
            bar.write(f'error: {job.source}: {first_line(error)}; {advice}', file=sys.stderr)
        else:
            bar.write(f'{job.source} → {job.target}')
    if failed and len(jobs) > 1:
        print(f'{failed} of {len(jobs)} photographs could not be restored', file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('inputs', nargs='+', type=Path, help=f'photographs ({", ".join(SUFFIXES)}) or folders of them')
    parser.add_argument(
        '-o',
        '--output',
        type=Path,
        help='a file, for one photograph, or a folder; beside each photograph, as NAME_restored, if left out',
    )
    parser.add_argument('--model', default=DEFAULT_MODEL, help=f'{", ".join(BUNDLED)}, or a checkpoint')
    parser.add_argument(
        '--opt', type=Path, help="a checkpoint's option file, if it cannot be found from the checkpoint"
    )
    parser.add_argument('--steps', type=int, help="steps of the automaton; the network's own if left out")
    parser.add_argument('--tile', type=int, help='side of the tiles in pixels; less takes less memory')
    parser.add_argument('--overlap', type=int, help='what neighbouring tiles see in common, in pixels')
    parser.add_argument('--device', help='cpu or cuda; CUDA if there is one')
    parser.add_argument('--overwrite', action='store_true', help='replace files that are there')
    parser.add_argument(
        '--animate', type=Path, help=f'of one photograph, the way it is restored: a {", ".join(ANIMATION_SUFFIXES)}'
    )
    parser.add_argument(
        '--animate-steps', type=int, nargs='+', help=f'at which steps; {ANIMATION_FRAMES} equal ones if left out'
    )
    parser.add_argument('--side-by-side', type=Path, help='of one photograph, a PNG with before and after side by side')
    return parser


def _jobs(arguments: argparse.Namespace) -> list[Job]:
    """What to restore, and where to; what would go wrong later is said before anything is done."""
    into = arguments.output
    sources = [file for path in arguments.inputs for file in _files_of(path, with_restored=into is not None)]
    _check_pictures(arguments, len(sources))
    is_folder = len(sources) > 1 or any(path.is_dir() for path in arguments.inputs)
    if into and (is_folder or into.is_dir() or not into.suffix):
        jobs = [Job(source, into / source.name) for source in sources]
    elif into:
        check_format(into)
        jobs = [Job(sources[0], into)]
    else:
        jobs = [Job(source, source.with_stem(source.stem + RESTORED)) for source in sources]
    _check_outputs(jobs, [path for path in (arguments.animate, arguments.side_by_side) if path], arguments.overwrite)
    return jobs


def _files_of(path: Path, with_restored: bool) -> list[Path]:
    """The photographs in a folder; unless they go elsewhere, without those that an earlier run has restored."""
    if not path.is_dir():
        return [path]
    # Hidden ones are what a killed run or a file manager has left.
    files = [
        file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and not file.name.startswith('.')
    ]
    files = files if with_restored else [file for file in files if not file.stem.endswith(RESTORED)]
    if not files:
        raise ConfigError(f'{path}: holds no photographs ({", ".join(SUFFIXES)})')
    return files


def _check_pictures(arguments: argparse.Namespace, photographs: int) -> None:
    if photographs > 1 and (arguments.animate or arguments.side_by_side):
        raise ConfigError('--animate and --side-by-side are for one photograph at a time')
    if arguments.animate and arguments.animate.suffix.lower() not in ANIMATION_SUFFIXES:
        raise ConfigError(f'--animate {arguments.animate}: must end in {" or ".join(ANIMATION_SUFFIXES)}')
    if arguments.side_by_side and arguments.side_by_side.suffix.lower() != '.png':
        raise ConfigError(f'--side-by-side {arguments.side_by_side}: must end in .png')
    if arguments.animate_steps and not arguments.animate:
        raise ConfigError('--animate-steps: says at which steps --animate shows the photograph; name that, too')


def _check_outputs(jobs: list[Job], pictures: list[Path], overwrite: bool) -> None:
    """Raise ConfigError if a file is to be written twice, or over a photograph that it does not replace, or where none
    can be."""
    sources = {job.source.resolve(): job.source for job in jobs}
    outputs: dict[Path, Path] = {}
    for path, source in [*((job.target, job.source) for job in jobs), *((path, None) for path in pictures)]:
        place = path.resolve()
        if place in outputs:
            raise ConfigError(f'{path} would be written twice; restore into two folders, or choose other names')
        if place in sources and (source is None or source.resolve() != place):
            raise ConfigError(f'{path} is itself to be restored; choose another name')
        outputs[place] = path
        if path.exists() and not overwrite:
            raise ConfigError(f'{path} exists; choose another name with -o, or add --overwrite')
        if path.is_dir():
            raise ConfigError(f'{path} is a folder; choose another name')
        there = next(parent for parent in place.parents if parent.exists())
        if not there.is_dir():
            raise ConfigError(f'{path} cannot be written, since {there} is no folder')


def _steps(restorer: Restorer, arguments: argparse.Namespace) -> tuple[list[int] | None, int]:
    """After which steps a picture is wanted, None for a network's own; and which of these is the restored one."""
    if arguments.steps is None and not arguments.animate:
        return None, 0
    last = arguments.steps
    if last is None:
        last = getattr(restorer.network, 'steps', 0)  # a network without is refused below
    shown = []
    if arguments.animate:
        shown = arguments.animate_steps or np.linspace(0, last, ANIMATION_FRAMES).round().astype(int).tolist()
    at = restorer.checked_steps(sorted({*shown, last}))
    return at, at.index(last)


def _restore(
    restorer: Restorer, job: Job, at: list[int] | None, restored_at: int, arguments: argparse.Namespace
) -> None:
    photograph = read_photograph(job.source)
    check_format(job.target, photograph.pixels.shape[-1])
    frames = restorer.intermediate_outputs(photograph.pixels, at, progress=True)
    restored = photograph.with_pixels(frames[restored_at])
    for path in (job.target, arguments.animate, arguments.side_by_side):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
    write_photograph(job.target, restored)
    if arguments.animate:
        shown = [_to_look_at(photograph.with_pixels(frame)) for frame in frames]
        write_animation(arguments.animate, shown, [f'{number} steps' for number in at])
    if arguments.side_by_side:
        write_contact_sheet(
            arguments.side_by_side, {'before': [_to_look_at(photograph)], 'after': [_to_look_at(restored)]}
        )


def _to_look_at(photograph: Photograph) -> np.ndarray:
    """Upright, 8 bits, RGB on white, no larger than a screen."""
    pixels = to_8_bits(photograph.upright())
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    pixels = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
    height, width = pixels.shape[:2]
    shrink = min(1.0, SHEET_SIDE / max(height, width))
    if shrink == 1:
        return pixels
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


if __name__ == '__main__':
    sys.exit(main())
