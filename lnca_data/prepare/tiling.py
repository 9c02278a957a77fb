"""Tile, shrink, clean: from photographs to the small tiles that networks train on (paper section 4.1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
import PIL.Image

from lnca_data.io.images import to_8_bits
from lnca_utils.errors import DataError

SHIFT_REACH = 8
SHIFT_GAIN = 0.02  # in correlation; less is chance
SHIFT_MIN_SIDE = 64  # smaller images correlate by chance


class TileGrid(NamedTuple):
    """An image of tiles, each shrunk to ``size``×``size`` pixels.

    Attributes:
        image: ``(rows·size, columns·size, 3)`` uint8 RGB.
        size: side of a shrunk tile, in pixels.
        height, width: of a tile before it was shrunk, in pixels; 0 if the image as a whole is the only tile.
    """

    image: np.ndarray
    size: int
    height: int
    width: int

    def tiles(self) -> Iterator[tuple[str, np.ndarray]]:
        """Row by row: where a tile was, as the ending of a key, and its ``(size, size, 3)`` pixels."""
        side = f'{self.height}px' if self.height == self.width else f'{self.width}x{self.height}px'
        for top in range(0, self.image.shape[0], self.size):
            for left in range(0, self.image.shape[1], self.size):
                row, column = top // self.size, left // self.size
                place = f'_{side}_y{row * self.height:05d}_x{column * self.width:05d}' if self.height else ''
                yield place, self.image[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class TilingSpec:
    """How an image becomes tiles.

    Attributes:
        size: side of a tile when it is packed, in pixels.
        pixels: sides of the tiles in the image, in pixels; one patchwork for each. What is left over at the right and
            at the bottom is not used.
        grid: rows and columns of tiles, instead of ``pixels``.
        whole: resize images as they are, with Lanczos, instead of cutting them.
    """

    size: int = 32
    pixels: tuple[int, ...] = (128,)
    grid: tuple[int, int] | None = None
    whole: bool = False

    def check(self) -> None:
        """Raise DataError for what makes no sense."""
        if self.size < 1:
            raise DataError(f'--tile-size {self.size}: must be at least 1')
        if self.grid and min(self.grid) < 1:
            raise DataError(f'--grid {self.grid[0]} {self.grid[1]}: must be at least 1 row and 1 column')
        if not self.whole and not self.grid:
            if not self.pixels or len(set(self.pixels)) < len(self.pixels):
                raise DataError(f'--tile-pixels {" ".join(map(str, self.pixels))}: each side may stand there once')
            if min(self.pixels) < self.size:
                raise DataError(
                    f'--tile-pixels {min(self.pixels)}: tiles of {min(self.pixels)} pixels cannot be shrunk to '
                    f'--tile-size {self.size}'
                )

    def extract(self, image: np.ndarray) -> list[TileGrid]:
        """The patchworks of an image ``(H, W, 3)`` uint8 or uint16 RGB; none of tiles for which it is too small."""
        if self.whole:
            resized = PIL.Image.fromarray(to_8_bits(image)).resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)
            return [TileGrid(np.asarray(resized), self.size, 0, 0)]
        image_height, image_width = image.shape[:2]
        if self.grid:
            rows, columns = self.grid
            layouts = [(image_height // rows, image_width // columns, rows, columns)]
        else:
            layouts = [(side, side, image_height // side, image_width // side) for side in self.pixels]
        patchworks = []
        for height, width, rows, columns in layouts:
            if min(height, width) < self.size or not rows or not columns:
                continue
            # All tiles at once: their borders are pixels' borders before and after, so none sees its neighbour.
            used = image[: rows * height, : columns * width]
            shrunk = cv2.resize(used, (columns * self.size, rows * self.size), interpolation=cv2.INTER_AREA)
            patchworks.append(TileGrid(to_8_bits(shrunk), self.size, height, width))
        return patchworks


def is_flat(tile: np.ndarray, threshold: float) -> bool:
    """Whether a tile shows next to nothing: the standard deviation of each channel is below ``threshold`` (0 … 255)."""
    return bool(cv2.meanStdDev(tile)[1].max() < threshold)


def perceptual_hash(tile: np.ndarray) -> int:
    """The 64 bits of the pHash of a ``(H, W, 3)`` uint8 RGB tile: alike for tiles that look alike."""
    grey = PIL.Image.fromarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY))
    return int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), 'big')


class NearDuplicates:
    """Remembers the hashes of tiles and recognises those that nearly repeat one.

    Args:
        threshold: bits, of 64, in which two tiles may differ and still be the same.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self._seen = np.empty(1024, np.uint64)
        self._count = 0

    def repeats(self, value: int) -> bool:
        """Whether a hash is like an earlier one; if not, it is remembered."""
        distances = np.bitwise_count(self._seen[: self._count] ^ np.uint64(value))
        if self._count and distances.min() <= self.threshold:
            return True
        if self._count == len(self._seen):
            self._seen = np.concatenate([self._seen, np.empty_like(self._seen)])
        self._seen[self._count] = value
        self._count += 1
        return False


def estimate_offset(gt: np.ndarray, lq: np.ndarray) -> tuple[int, int]:
    """How far the content of one image is off that of another of the same size, down and to the right, in pixels.

    The best match by normalised correlation, within 8 pixels; none for images of less than 64. A blurred image
    correlates best where it is, also when its blur is long, which does not hold for phase correlation.

    Args:
        gt, lq: ``(H, W, 3)`` uint8 RGB.
    """
    if min(gt.shape[:2]) < SHIFT_MIN_SIDE:
        return 0, 0
    inner = cv2.cvtColor(lq, cv2.COLOR_RGB2GRAY)[SHIFT_REACH:-SHIFT_REACH, SHIFT_REACH:-SHIFT_REACH]
    if inner.std() < 1:
        return 0, 0
    scores = cv2.matchTemplate(cv2.cvtColor(gt, cv2.COLOR_RGB2GRAY), inner, cv2.TM_CCOEFF_NORMED)
    top, left = np.unravel_index(scores.argmax(), scores.shape)
    if scores[top, left] < scores[SHIFT_REACH, SHIFT_REACH] + SHIFT_GAIN:
        return 0, 0
    return SHIFT_REACH - int(top), SHIFT_REACH - int(left)
