"""Division of a grid into blocks, which are computed one by one and read with a halo of one cell."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Limits of a block on a CPU: its cells, so that intermediate results stay in the CPU's cache, and its columns, since
# the cells of the halo are computed twice, and long, thin blocks have more of them.
CELLS_PER_BLOCK, MAX_COLUMNS = 2048, 64


class HaloSlice(NamedTuple):
    """One axis of a block.

    Attributes:
        written: slice of the grid that the block computes.
        read: that slice with its halo.
        interior: position of ``written`` within ``read``.
    """

    written: slice
    read: slice
    interior: slice


class HaloBlock(NamedTuple):
    """A block: a range of images, rows and columns."""

    images: slice
    rows: HaloSlice
    columns: HaloSlice

    def read_from(self, tensor: Tensor) -> Tensor:
        """Return the block with its halo, of ``(N, H, W, C)`` or of ``(1, H, W, C)`` shared by all images."""
        return tensor[self.images if len(tensor) > 1 else slice(None), self.rows.read, self.columns.read]

    def write_to(self, tensor: Tensor, computed: Tensor) -> None:
        """Write the interior of ``computed``, a block with its halo, to its place in ``(N, H, W, C)``."""
        interior = computed[:, self.rows.interior, self.columns.interior]
        tensor[self.images, self.rows.written, self.columns.written] = interior


def halo_blocks(shape: torch.Size, device: torch.device) -> Iterator[HaloBlock]:
    """Divide a grid ``(N, H, W)`` into blocks: of whole images, or of rows and columns of larger images.

    All blocks of a grid are read with the same height and width, so that one compiled step fits all of them.
    """
    count, height, width = shape
    cells = CELLS_PER_BLOCK if device.type == 'cpu' else count * height * width
    if height * width <= cells:
        rows, columns = height, width
    else:
        columns = min(width, MAX_COLUMNS)
        rows = max(1, cells // columns)
    images = max(1, cells // (height * width))
    for first in range(0, count, images):
        for row_slice in _halo_slices(height, rows):
            for column_slice in _halo_slices(width, columns):
                yield HaloBlock(slice(first, first + images), row_slice, column_slice)


def _halo_slices(length: int, largest: int) -> Iterator[HaloSlice]:
    """Divide an axis into equal slices of at most ``largest`` cells."""
    size = -(-length // -(-length // largest))
    read_size = min(size + 2, length)
    for first in range(0, length, size):
        last = min(first + size, length)
        start = min(max(first - 1, 0), length - read_size)
        yield HaloSlice(slice(first, last), slice(start, start + read_size), slice(first - start, last - start))
