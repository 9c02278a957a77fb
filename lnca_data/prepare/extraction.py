"""What a worker does with a pair of images: read, tile, shrink, drop flat tiles, corrupt, encode."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from lnca_data.corruptions import Corruption, build_corruption
from lnca_data.io.images import Image
from lnca_data.io.lmdb_store import encode_png
from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.split import draw, split_of_tile
from lnca_data.prepare.tiling import TileGrid, TilingSpec, estimate_offset, is_flat, perceptual_hash
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_utils.errors import DataError, LNCAError

Task = list[tuple[Pair, str | None]]  # pairs and the split that each is of, None if its tiles have their own


@dataclass(frozen=True)
class PackConfig:
    """How images become a dataset.

    Attributes:
        tiling: how they become tiles.
        corruption: options of :func:`build_corruption` for the validation and test pairs of a source without damaged
            images; None for one that has them.
        flat_threshold: tiles whose standard deviation (0 … 255) is below it are dropped.
        duplicate_threshold: bits, of 64, in which the perceptual hash of a tile may differ from that of an earlier tile
            of its scene for it to be dropped. Negative: none is.
        split: scene, tile or official; see :func:`split_pairs`.
        seed: of the split and the corruption.
    """

    tiling: TilingSpec = field(default_factory=TilingSpec)
    corruption: Mapping[str, Any] | None = None
    flat_threshold: float = 4.0
    duplicate_threshold: int = 4
    split: str = 'scene'
    seed: int = 0

    @property
    def cleans(self) -> bool:
        """Images that are packed as they are, one tile each, are not cleaned (paper section 4.1)."""
        return not self.tiling.whole


class PackedTile(NamedTuple):
    """A tile as a worker hands it over."""

    key: str
    place: str  # where in the image it was
    split: str
    hash: int | None  # perceptual, of the clean tile
    images: dict[str, bytes]  # PNG files by side: gt, and lq where there is one
    digests: dict[str, bytes]  # SHA-256 of the pixels that they decode to


class ExtractedPair(NamedTuple):
    """What became of a pair. ``error`` says why nothing did."""

    tiles: list[PackedTile]
    flat: int = 0
    shift: tuple[int, int] = (0, 0)  # in pixels of the image, down and to the right
    is_too_small: bool = False
    error: str = ''


def extract_task(task: Task, options: PackConfig, skip_bad: bool) -> list[ExtractedPair]:
    """Cut some pairs.

    Raises:
        DataError: an image cannot be read, or the two of a pair differ in size; not if ``skip_bad``.
    """
    result = []
    for pair, split in task:
        try:
            result.append(_extract_pair(pair, split, options))
        except (LNCAError, OSError) as error:
            if not skip_bad:
                raise DataError(f'{error}; mend it, or go on without with --skip-bad') from None
            result.append(ExtractedPair([], error=str(error)))
    return result


def _extract_pair(pair: Pair, split: str | None, options: PackConfig) -> ExtractedPair:
    shape, clean = _read_and_extract_cached(pair.gt, options.tiling)
    damaged: list[TileGrid] = []
    if pair.lq:
        lq_shape, damaged = _read_and_extract(pair.lq, options.tiling)
        if lq_shape != shape:
            raise DataError(
                f'{pair.lq.path}: has {lq_shape[1]}×{lq_shape[0]} pixels, '
                f'{pair.gt.path} has {shape[1]}×{shape[0]}: they must be of one size'
            )
    corruption = build_corruption(options.corruption) if options.corruption else None
    tiles, flat = [], 0
    for index, patchwork in enumerate(clean):
        lq_tiles = [tile for _, tile in damaged[index].tiles()] if damaged else None
        for number, (place, tile) in enumerate(patchwork.tiles()):
            if options.cleans and is_flat(tile, options.flat_threshold):
                flat += 1
                continue
            key = f'{pair.name}{place}'
            its_split = split or split_of_tile(options.seed, key)
            images = {'gt': tile}
            if lq_tiles:
                images['lq'] = lq_tiles[number]
            elif its_split != 'train':
                images['lq'] = corrupted(tile, corruption, draw(options.seed, f'corruption/{key}'))
            tiles.append(
                PackedTile(
                    key,
                    place,
                    its_split,
                    perceptual_hash(tile) if options.cleans and options.duplicate_threshold >= 0 else None,
                    {side: encode_png(image) for side, image in images.items()},
                    {side: pixel_digest(image) for side, image in images.items()},
                )
            )
    off = (0, 0)
    if damaged and options.cleans:
        down, right = estimate_offset(clean[0].image, damaged[0].image)
        off = (round(down * clean[0].height / clean[0].size), round(right * clean[0].width / clean[0].size))
        off = off if max(abs(down), abs(right)) > 1 else (0, 0)
    return ExtractedPair(tiles, flat, off, is_too_small=not clean)


def _read_and_extract(image: Image, tiling: TilingSpec) -> tuple[tuple[int, ...], list[TileGrid]]:
    pixels = image.read()
    return pixels.shape, tiling.extract(pixels)


# Noisy photographs of one scene follow each other, and share the clean one.
_read_and_extract_cached = lru_cache(maxsize=1)(_read_and_extract)


def corrupted(tile: np.ndarray, corruption: Corruption, seed: int) -> np.ndarray:
    """An image ``(H, W, 3)`` uint8, damaged as in validation and test."""
    generator = torch.Generator().manual_seed(seed)
    return to_image(corruption(to_tensor(tile)[None], generator=generator)[0])


def pixel_digest(image: np.ndarray) -> bytes:
    """SHA-256 of an image's pixels, whatever they were encoded as."""
    return hashlib.sha256(np.ascontiguousarray(image)).digest()
