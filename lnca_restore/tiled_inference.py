"""Images too large to restore at once: tiles that overlap, and are blended where they do."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# ``(N, h, w, C)`` of tiles → as many of the same shape, for each of the steps that are asked for.
RestoreTiles = Callable[[np.ndarray], list[np.ndarray]]


class TileWindow(NamedTuple):
    """Rows or columns of a tile: those that are read, those that are written, and with which share, float32."""

    read: slice
    written: slice
    share: np.ndarray


def windows(length: int, tile: int, overlap: int, stride: int, exact: bool = False) -> list[TileWindow]:
    """The tiles along a side of ``length`` pixels: all of one length, whose shares add up to 1 everywhere.

    Neighbours see ``overlap`` pixels in common, of which they blend the middle half. A tile begins where the latent
    grid of the whole image has a cell.

    Args:
        tile: pixels, a multiple of ``stride``; the most that a tile has.
        overlap: pixels, a multiple of 4 and of ``2 * stride``; at most half of ``tile``.
        stride: what the network divides an image's sides by.
        exact: whether tiles must be as long as ``tile`` says; else they are no longer than it takes.
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
        share = np.ones(written.stop - written.start, np.float32)
        rising = (np.arange(overlap // 2, dtype=np.float32) + 0.5) / (overlap // 2)
        if first is not None and overlap:
            share[: overlap // 2] *= rising
        if end is not None and overlap:
            share[len(share) - overlap // 2 :] *= rising[::-1]
        found.append(TileWindow(slice(start, min(start + tile, length)), written, share))
    return found


def restore_tiled(
    image: np.ndarray,
    restore: RestoreTiles,
    outputs: list[np.ndarray],
    rows: list[TileWindow],
    columns: list[TileWindow],
    at_once: int,
) -> None:
    """Restore an image tile by tile.

    Above the image and the outputs, memory is that of the tiles and of one row of them.

    Args:
        image: ``(H, W, C)``.
        outputs: for each step that is asked for, an array of the image's shape that takes the result; of integers, it
            is rounded and what is out of range clipped.
        rows, columns: from :func:`windows`.
        at_once: tiles of one row that are restored in one call.
    """
    height, width, channels = image.shape
    waiting = [np.zeros((0, width, channels), np.float32) for _ in outputs]  # what the next row of tiles adds to
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        top, bottom = row.written.start, row.written.stop
        bands = [np.zeros((bottom - top, width, channels), np.float32) for _ in outputs]
        for band, rest in zip(bands, waiting, strict=True):
            band[: len(rest)] = rest
        for group in _of_one_width(columns, at_once):
            tiles = np.stack([image[row.read, column.read] for column in group])
            for band, results in zip(bands, restore(tiles), strict=True):
                for column, result in zip(group, results, strict=True):
                    share = row.share[:, None, None] * column.share[:, None]
                    band[:, column.written] += share * result[_within(row), _within(column)]
        complete = height if following is None else following.written.start
        for index, (band, output) in enumerate(zip(bands, outputs, strict=True)):
            output[top:complete] = _as_stored(band[: complete - top], output.dtype)
            waiting[index] = band[complete - top :].copy()  # not a view, which would keep all of the band


def _within(window: TileWindow) -> slice:
    """Where in a tile the pixels are that it writes."""
    return slice(window.written.start - window.read.start, window.written.stop - window.read.start)


def _of_one_width(columns: list[TileWindow], at_once: int) -> Iterator[list[TileWindow]]:
    group: list[TileWindow] = []
    for column in columns:
        if group and (len(group) == at_once or _width(column) != _width(group[0])):
            yield group
            group = []
        group.append(column)
    yield group


def _width(window: TileWindow) -> int:
    return window.read.stop - window.read.start


def _as_stored(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.floating):
        return values
    limit = np.iinfo(dtype).max
    return np.clip(np.rint(values * np.float32(limit)), 0, limit).astype(dtype)
