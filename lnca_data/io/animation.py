"""Pictures on their way: as an animation, a film, or a strip."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_utils.atomic import atomic_file

FRAMES_PER_SECOND = 4
LAST_FRAME_REPEATS = 6  # is shown as long as so many others
ANIMATION_SUFFIXES = ('.gif', '.mp4', '.png')


def write_animation(path: Path | str, frames: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Write frames as an animation (.gif), a film (.mp4) or a strip with titles (.png), whole or not at all.

    Args:
        path: where to.
        frames: ``(H, W, 3)`` uint8 RGB, all of one size.
        titles: of each frame, for the strip.

    Raises:
        OSError: it cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == '.png':
        write_contact_sheet(path, {title: [frame] for title, frame in zip(titles, frames, strict=True)})
        return
    with atomic_file(path) as temporary:
        (_write_gif if suffix == '.gif' else _write_film)(temporary, frames)


def _write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    each = 1000 // FRAMES_PER_SECOND
    durations = [each] * (len(frames) - 1) + [each * LAST_FRAME_REPEATS]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def _write_film(path: Path, frames: Sequence[np.ndarray]) -> None:
    # The encoder wants even sides.
    height, width = (max(2, side // 2 * 2) for side in frames[0].shape[:2])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), FRAMES_PER_SECOND, (width, height))
    if not writer.isOpened():
        raise OSError(f'cannot write {path}')
    frames = [*frames, *[frames[-1]] * (LAST_FRAME_REPEATS - 1)]
    for frame in frames:
        writer.write(cv2.cvtColor(cv2.resize(frame, (width, height)), cv2.COLOR_RGB2BGR))
    writer.release()
    # The writer says nothing of a full disk.
    written = cv2.VideoCapture(str(path))
    if written.get(cv2.CAP_PROP_FRAME_COUNT) != len(frames):
        raise OSError(f'cannot write all of {path}; is there room?')
