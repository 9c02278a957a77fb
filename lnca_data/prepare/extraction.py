"""Extraction of tiles from pairs of images, in worker processes: read, tile, downscale, filter, corrupt, encode."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from lnca_data.corruptions import Corruption, build_corruption
from lnca_data.io.images import Image
from lnca_data.io.lmdb_writer import encode_png
from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.split import draw, split_of_tile
from lnca_data.prepare.tiling import TileGrid, TilingSpec, estimate_offset, is_flat, perceptual_hash
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_utils.errors import DataError, LNCAError

Task = list[tuple[Pair, str | None]]  # pairs with their splits; None if the tiles are split one by one


@dataclass(frozen=True)
class PackConfig:
    """How to convert images to a dataset.

    Attributes:
        tiling: how to divide images into tiles.
        corruption: options of :func:`build_corruption` for validation and test; None for sources with corrupted images.
        flat_threshold: standard deviation (0 … 255) below which a tile is dropped as flat.
        duplicate_threshold: Hamming distance, of 64 bits, up to which a tile is dropped as a near-duplicate of an
            earlier tile of its scene; negative to keep all.
        split: ``scene``, ``tile`` or ``official``; see :func:`split_pairs`.
        seed: seed of the split and the corruption.
    """

    tiling: TilingSpec = field(default_factory=TilingSpec)
    corruption: Mapping[str, Any] | None = None
    flat_threshold: float = 4.0
    duplicate_threshold: int = 4
    split: str = 'scene'
    seed: int = 0

    @property
    def is_filtered(self) -> bool:
        """Whether flat tiles and near-duplicates are dropped; whole images are all kept (paper section 4.1)."""
        return not self.tiling.whole


class PackedTile(NamedTuple):
    """An encoded tile.

    Attributes:
        key: its key in the LMDBs.
        position: its position in the image, a suffix of the key.
        split: ``train``, ``val`` or ``test``.
        hash: perceptual hash of the ground truth; None if near-duplicates are kept.
        images: side (``gt``, ``lq``) → PNG file.
        digests: side → SHA-256 of the pixels.
    """

    key: str
    position: str
    split: str
    hash: int | None
    images: dict[str, bytes]
    digests: dict[str, bytes]


class ExtractedPair(NamedTuple):
    """The tiles of a pair.

    Attributes:
        tiles: the tiles.
        flat: number of tiles dropped as flat.
        offset: offset of ``lq`` from ``gt``, down and to the right, in pixels of the image; (0, 0) if at most one pixel
            of a packed tile.
        is_too_small: whether no tile fits into the image.
        error: why the pair cannot be read; empty if it can.
    """

    tiles: list[PackedTile]
    flat: int = 0
    offset: tuple[int, int] = (0, 0)
    is_too_small: bool = False
    error: str = ''


def extract_task(task: Task, options: PackConfig, skip_bad: bool) -> list[ExtractedPair]:
    """Extract the tiles of some pairs.

    Args:
        task: pairs and their splits.
        options: how to extract them.
        skip_bad: whether to return errors in :attr:`ExtractedPair.error` instead of raising them.

    Raises:
        DataError: if an image cannot be read, or the images of a pair differ in size.
    """
    extracted = []
    for pair, split in task:
        try:
            extracted.append(_extract_pair(pair, split, options))
        except (LNCAError, OSError) as error:
            if not skip_bad:
                raise DataError(f'{error}; fix it, or pass --skip-bad') from None
            extracted.append(ExtractedPair([], error=str(error)))
    return extracted


def _extract_pair(pair: Pair, split: str | None, options: PackConfig) -> ExtractedPair:
    shape, gt_grids = _read_tile_grids_cached(pair.gt, options.tiling)
    lq_grids: list[TileGrid] = []
    if pair.lq:
        lq_shape, lq_grids = _read_tile_grids(pair.lq, options.tiling)
        if lq_shape != shape:
            raise DataError(
                f'{pair.lq.path}: {lq_shape[1]}×{lq_shape[0]} pixels, but {pair.gt.path} has {shape[1]}×{shape[0]}'
            )
    corruption = build_corruption(options.corruption) if options.corruption else None
    tiles, flat = [], 0
    for index, grid in enumerate(gt_grids):
        lq_tiles = [tile for _, tile in lq_grids[index].tiles()] if lq_grids else None
        for number, (position, tile) in enumerate(grid.tiles()):
            if options.is_filtered and is_flat(tile, options.flat_threshold):
                flat += 1
                continue
            key = f'{pair.name}{position}'
            tile_split = split or split_of_tile(options.seed, key)
            images = {'gt': tile}
            if lq_tiles:
                images['lq'] = lq_tiles[number]
            elif corruption is not None and tile_split != 'train':
                images['lq'] = corrupted(tile, corruption, draw(options.seed, f'corruption/{key}'))
            tiles.append(
                PackedTile(
                    key,
                    position,
                    tile_split,
                    perceptual_hash(tile) if options.is_filtered and options.duplicate_threshold >= 0 else None,
                    {side: encode_png(image) for side, image in images.items()},
                    {side: pixel_digest(image) for side, image in images.items()},
                )
            )
    offset = (0, 0)
    if lq_grids and options.is_filtered:
        grid = gt_grids[0]
        down, right = estimate_offset(grid.image, lq_grids[0].image)
        if max(abs(down), abs(right)) > 1:
            offset = (round(down * grid.height / grid.size), round(right * grid.width / grid.size))
    return ExtractedPair(tiles, flat, offset, is_too_small=not gt_grids)


def _read_tile_grids(image: Image, tiling: TilingSpec) -> tuple[tuple[int, ...], list[TileGrid]]:
    pixels = image.read()
    return pixels.shape, tiling.extract(pixels)


# Cached, since successive noisy photographs of a scene share the clean one.
_read_tile_grids_cached = lru_cache(maxsize=1)(_read_tile_grids)


def corrupted(tile: np.ndarray, corruption: Corruption, seed: int) -> np.ndarray:
    """Return an image ``(H, W, 3)`` uint8 RGB, corrupted as in validation and test."""
    generator = torch.Generator().manual_seed(seed)
    return to_image(corruption(to_tensor(tile)[None], generator=generator)[0])


def pixel_digest(image: np.ndarray) -> bytes:
    """Return the SHA-256 of the pixels of an image."""
    return hashlib.sha256(np.ascontiguousarray(image).data).digest()
