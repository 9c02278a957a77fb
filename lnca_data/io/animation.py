"""Frames of a restoration as an animation, a video or a strip."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_utils.atomic import atomic_file

FRAMES_PER_SECOND = 4
LAST_FRAME_REPEATS = 6  # duration of the last frame, in frames
ANIMATION_SUFFIXES = ('.gif', '.mp4', '.png')


def write_animation(path: Path | str, frames: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Write frames atomically as an animation (.gif), a video (.mp4) or a strip with titles (.png).

    Args:
        path: file to write.
        frames: images ``(H, W, 3)`` uint8 RGB of one size.
        titles: title of each frame; only the strip shows them.

    Raises:
        OSError: if the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix == '.png':
        write_contact_sheet(path, {title: [frame] for title, frame in zip(titles, frames, strict=True)})
        return
    with atomic_file(path) as temporary:
        (_write_gif if suffix == '.gif' else _write_video)(temporary, frames)


def _write_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    duration = 1000 // FRAMES_PER_SECOND  # milliseconds
    durations = [duration] * (len(frames) - 1) + [duration * LAST_FRAME_REPEATS]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0)


def _write_video(path: Path, frames: Sequence[np.ndarray]) -> None:
    # The codec requires even sides.
    height, width = (max(2, side // 2 * 2) for side in frames[0].shape[:2])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), FRAMES_PER_SECOND, (width, height))
    if not writer.isOpened():
        raise OSError(f'{path}: OpenCV cannot write the video')
    frames = [*frames, *[frames[-1]] * (LAST_FRAME_REPEATS - 1)]
    for frame in frames:
        writer.write(cv2.cvtColor(cv2.resize(frame, (width, height)), cv2.COLOR_RGB2BGR))
    writer.release()
    # OpenCV does not report a full disk.
    if cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) != len(frames):
        raise OSError(f'{path}: the video is incomplete; the disk may be full')
