"""Contact sheets: tiles of several kinds side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lnca_data.io.images import write_image

MARGIN = 6
TITLE_HEIGHT = 26
TARGET_SIDE = 128


def write_contact_sheet(path: Path | str, columns: Mapping[str, Sequence[np.ndarray]], rows: int = 10) -> None:
    """Write a PNG with one titled column for each kind of image and one row for each tile.

    Args:
        path: file to write.
        columns: title → images ``(H, W, 3)`` uint8 RGB; the same number for each title, all of one size.
        rows: largest number of rows; further tiles go into further columns to the right.

    Raises:
        OSError: if the file cannot be written.
    """
    side = max(max(image.shape[:2]) for images in columns.values() for image in images)
    scale = max(1, TARGET_SIDE // side)
    groups = []
    count = len(next(iter(columns.values())))
    rows = min(rows, count)
    for start in range(0, count, rows):
        groups += [_column(title, images[start : start + rows], rows, scale) for title, images in columns.items()]
    write_image(path, cv2.cvtColor(np.concatenate(groups, axis=1), cv2.COLOR_RGB2BGR))


def _column(title: str, images: Sequence[np.ndarray], rows: int, scale: int) -> np.ndarray:
    height, width = images[0].shape[0] * scale, images[0].shape[1] * scale
    column = np.full((TITLE_HEIGHT + rows * (height + MARGIN), width + MARGIN, 3), 255, np.uint8)
    cv2.putText(column, title, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for row, image in enumerate(images):
        top = TITLE_HEIGHT + row * (height + MARGIN)
        column[top : top + height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    return column
