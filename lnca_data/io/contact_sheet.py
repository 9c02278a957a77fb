"""Sheets: the same tiles side by side, for people who would rather look than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from lnca_data.io.images import write_image

MARGIN = 6
TITLE_HEIGHT = 26
TARGET_SIDE = 128


def write_contact_sheet(path: Path | str, columns: Mapping[str, Sequence[np.ndarray]], rows: int = 10) -> None:
    """Write a PNG with a titled column a kind of image and a row a tile; more tiles than ``rows`` go beside them.

    Args:
        path: where to.
        columns: title → images ``(H, W, 3)`` uint8 RGB, all of one size and number.
        rows: rows before a new group of columns begins.

    Raises:
        OSError: it cannot be written.
    """
    side = max(max(image.shape[:2]) for images in columns.values() for image in images)
    enlarge = max(1, TARGET_SIDE // side)
    groups = []
    count = len(next(iter(columns.values())))
    rows = min(rows, count)
    for start in range(0, count, rows):
        groups += [_column(title, images[start : start + rows], rows, enlarge) for title, images in columns.items()]
    write_image(path, cv2.cvtColor(np.concatenate(groups, axis=1), cv2.COLOR_RGB2BGR))


def _column(title: str, images: Sequence[np.ndarray], rows: int, enlarge: int) -> np.ndarray:
    height, width = images[0].shape[0] * enlarge, images[0].shape[1] * enlarge
    column = np.full((TITLE_HEIGHT + rows * (height + MARGIN), width + MARGIN, 3), 255, np.uint8)
    cv2.putText(column, title, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    for row, image in enumerate(images):
        top = TITLE_HEIGHT + row * (height + MARGIN)
        column[top : top + height, :width] = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
    return column
