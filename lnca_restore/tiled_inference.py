"""Restoration of an image in tiles, which are blended where they overlap."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

#: A function that restores tiles ``(N, h, w, C)``; returns tiles of that shape for each requested number of steps.
RestoreTiles = Callable[[np.ndarray], list[np.ndarray]]


class TileWindow(NamedTuple):
    """One axis of a tile.

    Attributes:
        read: slice of the image that the network reads.
        written: slice of the image that the weighted result is added to.
        weight: blending weight of each written row or column, float32.
    """

    read: slice
    written: slice
    weight: np.ndarray


def windows(length: int, tile: int, overlap: int, stride: int, exact: bool = False) -> list[TileWindow]:
    """Divide an axis into windows whose weights add up to 1 everywhere.

    Neighbours overlap by ``overlap`` pixels and are blended in the middle half of the overlap. Every window starts at a
    multiple of ``stride``, so that its latent grid is aligned with that of the whole image.

    Args:
        length: length of the axis in pixels.
        tile: largest size of a window in pixels, a multiple of ``stride``.
        overlap: overlap in pixels, a multiple of 4 and of ``2 * stride``, at most half of ``tile``.
        stride: stride of the network's latent grid in pixels.
        exact: whether windows must have exactly ``tile`` pixels. Otherwise they are as small as their number allows.
            An axis shorter than ``tile`` is one window either way.
    """
    if length <= tile:
        return [TileWindow(slice(0, length), slice(0, length), np.ones(length, np.float32))]
    cells = -(-length // stride)
    count = -(-cells * stride // (tile - overlap))
    borders = [index * cells // count * stride for index in range(1, count)]
    if not exact:
        tile = -(-cells // count) * stride + overlap
    found = []
    for first, end in zip([None, *borders], [*borders, None], strict=True):
        start = 0 if first is None else min(max(0, first - overlap // 2), cells * stride - tile)
        written = slice(0 if first is None else first - overlap // 4, length if end is None else end + overlap // 4)
        weight = np.ones(written.stop - written.start, np.float32)
        ramp = (np.arange(overlap // 2, dtype=np.float32) + 0.5) / (overlap // 2)
        if first is not None and overlap:
            weight[: overlap // 2] *= ramp
        if end is not None and overlap:
            weight[len(weight) - overlap // 2 :] *= ramp[::-1]
        found.append(TileWindow(slice(start, min(start + tile, length)), written, weight))
    return found


def restore_tiled(
    image: np.ndarray,
    restore: RestoreTiles,
    outputs: list[np.ndarray],
    rows: list[TileWindow],
    columns: list[TileWindow],
    batch_size: int,
) -> None:
    """Restore an image tile by tile, into given arrays.

    Beside the image and the outputs, only a batch of tiles and one row of tiles are in memory.

    Args:
        image: ``(H, W, C)``.
        restore: restores a batch of tiles.
        outputs: an array of the image's shape for each requested number of steps, which is overwritten. For integer
            arrays, the results are scaled, rounded and clipped.
        rows, columns: from :func:`windows`.
        batch_size: largest number of tiles of a row that are restored in one call.
    """
    height, width, channels = image.shape
    # Unfinished rows of pixels, which the next row of tiles adds to.
    carried = [np.zeros((0, width, channels), np.float32) for _ in outputs]
    for row, next_row in zip(rows, [*rows[1:], None], strict=True):
        top, bottom = row.written.start, row.written.stop
        bands = [np.zeros((bottom - top, width, channels), np.float32) for _ in outputs]
        for band, rest in zip(bands, carried, strict=True):
            band[: len(rest)] = rest
        for group in _batches(columns, batch_size):
            tiles = np.stack([image[row.read, column.read] for column in group])
            for band, results in zip(bands, restore(tiles), strict=True):
                for column, result in zip(group, results, strict=True):
                    weight = row.weight[:, None, None] * column.weight[:, None]
                    band[:, column.written] += weight * result[_interior(row), _interior(column)]
        complete = height if next_row is None else next_row.written.start
        for index, (band, output) in enumerate(zip(bands, outputs, strict=True)):
            output[top:complete] = _to_dtype(band[: complete - top], output.dtype)
            carried[index] = band[complete - top :].copy()  # a view would keep the whole band


def _interior(window: TileWindow) -> slice:
    """Return the slice ``written``, relative to ``read``."""
    return slice(window.written.start - window.read.start, window.written.stop - window.read.start)


def _batches(columns: list[TileWindow], size: int) -> Iterator[list[TileWindow]]:
    """Yield up to ``size`` consecutive windows of equal width."""
    batch: list[TileWindow] = []
    for column in columns:
        if batch and (len(batch) == size or _width(column) != _width(batch[0])):
            yield batch
            batch = []
        batch.append(column)
    yield batch


def _width(window: TileWindow) -> int:
    return window.read.stop - window.read.start


def _to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Convert values in [0, 1] to a dtype; for integers, scale, round and clip them."""
    if np.issubdtype(dtype, np.floating):
        return values
    limit = np.iinfo(dtype).max
    return np.clip(np.rint(values * np.float32(limit)), 0, limit).astype(dtype)
