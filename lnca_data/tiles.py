"""Tile, shrink, clean: from photographs to the small tiles that networks train on (paper section 4.1)."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Tile:
    """A piece of a photograph, shrunk. ``top``, ``left`` and ``side`` are its place there, in pixels."""

    top: int
    left: int
    side: int
    image: np.ndarray  # (size, size, 3) uint8 RGB


def cut(photograph: np.ndarray, side: int, size: int) -> Iterator[Tile]:
    """The patchwork of ``side``×``side`` tiles of a photograph, each shrunk to ``size``×``size`` by area interpolation.

    Args:
        photograph: ``(H, W, 3)`` uint8 RGB; what is left over at the right and bottom is not used.
        side: side of a tile in the photograph, in pixels.
        size: side of the shrunk tile, in pixels.
    """
    height, width = photograph.shape[:2]
    for top in range(0, height - side + 1, side):
        for left in range(0, width - side + 1, side):
            tile = photograph[top : top + side, left : left + side]
            yield Tile(top, left, side, cv2.resize(tile, (size, size), interpolation=cv2.INTER_AREA))


def is_flat(tile: np.ndarray, threshold: float) -> bool:
    """Whether a tile shows next to nothing: the standard deviation of each channel is below ``threshold`` (0 … 255)."""
    return bool(tile.std(axis=(0, 1)).max() < threshold)


class NearDuplicates:
    """Remembers tiles and recognises those that repeat one.

    Args:
        threshold: root-mean-square difference, on the scale of 0 to 255, up to which two tiles are the same.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._seen: list[np.ndarray] = []

    def repeats(self, tile: np.ndarray) -> bool:
        """Whether a tile is like an earlier one; if not, it is remembered."""
        flat = tile.astype(np.float32).ravel()
        if self._seen:
            difference = np.stack(self._seen) - flat
            if np.sqrt((difference**2).mean(axis=1).min()) <= self.threshold:
                return True
        self._seen.append(flat)
        return False
