"""Tiling and downscaling of images, and detection of flat, duplicate and misaligned tiles (paper section 4.1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import imagehash
import numpy as np
import PIL.Image

from lnca_data.io.images import to_8_bits
from lnca_utils.errors import DataError

MAX_OFFSET = 8  # pixels
MIN_CORRELATION_GAIN = 0.02  # over no offset; smaller gains are chance
MIN_SIDE = 64  # pixels; smaller images correlate by chance


class TileGrid(NamedTuple):
    """Downscaled tiles of an image, side by side.

    Attributes:
        image: ``(rows·size, columns·size, 3)`` uint8 RGB.
        size: side of a downscaled tile, in pixels.
        height, width: size of a tile in the original image, in pixels; 0 if the whole image is the only tile.
    """

    image: np.ndarray
    size: int
    height: int
    width: int

    def tiles(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the tiles row by row: position in the original image, as a suffix of keys, and ``(size, size, 3)``."""
        side = f'{self.height}px' if self.height == self.width else f'{self.width}x{self.height}px'
        for top in range(0, self.image.shape[0], self.size):
            for left in range(0, self.image.shape[1], self.size):
                row, column = top // self.size, left // self.size
                position = f'_{side}_y{row * self.height:05d}_x{column * self.width:05d}' if self.height else ''
                yield position, self.image[top : top + self.size, left : left + self.size]


@dataclass(frozen=True)
class TilingSpec:
    """How to divide an image into tiles.

    Attributes:
        size: side of a packed tile, in pixels.
        pixels: sides of the tiles in the image, in pixels; one grid for each. Remainders at the right and at the bottom
            are not used.
        grid: rows and columns of tiles, instead of ``pixels``.
        whole: whether to resize whole images, with Lanczos, instead of cutting tiles.
    """

    size: int = 32
    pixels: tuple[int, ...] = (128,)
    grid: tuple[int, int] | None = None
    whole: bool = False

    def check(self) -> None:
        """Raise DataError if a value is out of range, or the values do not fit together."""
        if self.size < 1:
            raise DataError(f'--tile-size {self.size}: must be at least 1')
        if self.grid and min(self.grid) < 1:
            raise DataError(f'--grid {self.grid[0]} {self.grid[1]}: must be at least 1 row and 1 column')
        if not self.whole and not self.grid:
            if not self.pixels or len(set(self.pixels)) < len(self.pixels):
                raise DataError(f'--tile-pixels {" ".join(map(str, self.pixels))}: name each side once')
            if min(self.pixels) < self.size:
                raise DataError(f'--tile-pixels {min(self.pixels)}: must be at least --tile-size, which is {self.size}')

    def extract(self, image: np.ndarray) -> list[TileGrid]:
        """Return the tile grids of an image, without those whose tiles do not fit.

        Args:
            image: ``(H, W, 3)`` uint8 or uint16 RGB.
        """
        if self.whole:
            resized = PIL.Image.fromarray(to_8_bits(image)).resize((self.size, self.size), PIL.Image.Resampling.LANCZOS)
            return [TileGrid(np.asarray(resized), self.size, 0, 0)]
        image_height, image_width = image.shape[:2]
        if self.grid:
            rows, columns = self.grid
            layouts = [(image_height // rows, image_width // columns, rows, columns)]
        else:
            layouts = [(side, side, image_height // side, image_width // side) for side in self.pixels]
        grids = []
        for height, width, rows, columns in layouts:
            if min(height, width) < self.size or not rows or not columns:
                continue
            # One call for all tiles: their borders coincide with pixel borders, so area averaging does not mix tiles.
            used = image[: rows * height, : columns * width]
            shrunk = cv2.resize(used, (columns * self.size, rows * self.size), interpolation=cv2.INTER_AREA)
            grids.append(TileGrid(to_8_bits(shrunk), self.size, height, width))
        return grids


def is_flat(tile: np.ndarray, threshold: float) -> bool:
    """Return whether the standard deviation (0 … 255) of every channel is below a threshold."""
    return bool(cv2.meanStdDev(tile)[1].max() < threshold)


def perceptual_hash(tile: np.ndarray) -> int:
    """Return the 64-bit pHash of a tile ``(H, W, 3)`` uint8 RGB; similar tiles differ in few bits."""
    grey = PIL.Image.fromarray(cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY))
    return int.from_bytes(np.packbits(imagehash.phash(grey).hash).tobytes(), 'big')


class NearDuplicates:
    """Detects hashes similar to an earlier one.

    Args:
        threshold: largest Hamming distance of near-duplicates, in bits.
    """

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self._seen = np.empty(1024, np.uint64)
        self._count = 0

    def repeats(self, value: int) -> bool:
        """Return whether a hash is a near-duplicate of an earlier one; remember it if it is not."""
        distances = np.bitwise_count(self._seen[: self._count] ^ np.uint64(value))
        if self._count and distances.min() <= self.threshold:
            return True
        if self._count == len(self._seen):
            self._seen = np.concatenate([self._seen, np.empty_like(self._seen)])
        self._seen[self._count] = value
        self._count += 1
        return False


def estimate_offset(gt: np.ndarray, lq: np.ndarray) -> tuple[int, int]:
    """Estimate the offset between two images of one size.

    The offset maximizes the normalized cross-correlation, within 8 pixels. Unlike phase correlation, it is not biased
    by long blur.

    Args:
        gt, lq: ``(H, W, 3)`` uint8 RGB.

    Returns:
        Offset of the content of ``lq`` from that of ``gt``, down and to the right, in pixels; (0, 0) for images below
        64 pixels.
    """
    if min(gt.shape[:2]) < MIN_SIDE:
        return 0, 0
    inner = cv2.cvtColor(lq, cv2.COLOR_RGB2GRAY)[MAX_OFFSET:-MAX_OFFSET, MAX_OFFSET:-MAX_OFFSET]
    if inner.std() < 1:
        return 0, 0
    scores = cv2.matchTemplate(cv2.cvtColor(gt, cv2.COLOR_RGB2GRAY), inner, cv2.TM_CCOEFF_NORMED)
    top, left = np.unravel_index(scores.argmax(), scores.shape)
    if scores[top, left] < scores[MAX_OFFSET, MAX_OFFSET] + MIN_CORRELATION_GAIN:
        return 0, 0
    return MAX_OFFSET - int(top), MAX_OFFSET - int(left)
