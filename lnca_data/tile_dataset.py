"""Dataset of LMDB tiles for BasicSR's data loaders."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import lnca_arch.registration  # noqa: F401  makes BasicSR importable
from lnca_data.io.lmdb_store import TileStore, check_pair
from lnca_utils.errors import DataError
from lnca_utils.option_checks import check_known

from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY

CACHES = ('memory',)
MAX_CACHE_FRACTION = 0.5  # of the free memory; the network and the loaders need some, too
JITTER_PROBABILITY = 0.5
MIN_JITTER_SCALE = 0.25


class Augmentation(NamedTuple):
    """A random augmentation of a tile.

    Attributes:
        flip: whether to flip the tile horizontally, before the rotations.
        rotations: number of rotations by 90°.
        channels: source channel, offset and scale of each channel; empty to keep the colours.
    """

    flip: bool
    rotations: int
    channels: list[tuple[int, float, float]]


@DATASET_REGISTRY.register()
class TileDataset(Dataset):
    """Tiles of BasicSR-format LMDBs: pairs, or clean tiles that the model corrupts in training.

    An item is a dict with ``gt`` and, for pairs, ``lq``: tensors ``(3, H, W)`` in [0, 1], RGB. ``gt_path`` and
    ``lq_path`` are the tile's key.

    Args:
        opt: options of the dataset:

            - ``dataroot_gt``: LMDB of ground-truth tiles.
            - ``dataroot_lq``: LMDB of corrupted tiles with the same keys; optional in training.
            - ``use_hflip``, ``use_rot``: whether to flip horizontally, and to rotate by multiples of 90°, at random; in
              training only.
            - ``use_channel_jitter``: whether to permute the channels of half of the tiles and to map each channel to a
              random interval within [0, 1]; in training only. For training on few photographs.
            - ``cache``: ``memory`` to keep all tiles in memory shared with the loader's workers, 3 bytes per pixel.
              Ignored with a warning if the tiles exceed half of the free memory, or differ in size.

    Raises:
        ConfigError: if ``cache`` is unknown.
        DataError: if an LMDB is missing, empty or damaged, or the tiles do not suit the options.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.stores = self.check_options(opt)
        self.keys = self.stores['gt'].key_array
        is_training = opt['phase'] == 'train'
        self.use_hflip, self.use_rot, self.use_channel_jitter = (
            bool(is_training and opt.get(name)) for name in ('use_hflip', 'use_rot', 'use_channel_jitter')
        )
        # Tensors, since spawned workers share these but not arrays.
        self.cached: dict[str, Tensor] = self._read_all() if opt.get('cache') else {}

    def _read_all(self) -> dict[str, Tensor]:
        """Return the tiles of each side, ``(N, H, W, 3)`` uint8; an empty dict if they cannot be kept in memory."""
        name, logger = self.opt.get('name'), get_root_logger()
        sizes = set().union(*(store.sizes for store in self.stores.values()))
        if len(sizes) > 1:
            logger.warning(f'Dataset {name}: tiles differ in size, so they are read from the LMDB, not kept in memory.')
            return {}
        shape = (len(self), *sizes.pop(), 3)
        needed, free = len(self.stores) * np.prod(shape, dtype=np.int64), psutil.virtual_memory().available
        size = f'{len(self):,} tiles, {needed / 1e9:.2f} GB'
        if needed > MAX_CACHE_FRACTION * free:
            logger.warning(f'Dataset {name}: {size}, are read from the LMDB: only {free / 1e9:.2f} GB are free.')
            return {}
        cached = {side: torch.empty(shape, dtype=torch.uint8) for side in self.stores}
        with tqdm(total=len(self.stores) * len(self), desc=f'reading {name}', unit='tile', leave=False) as bar:
            for side, store in self.stores.items():
                pixels = cached[side].numpy()
                for index, key in enumerate(self.keys):
                    pixels[index] = store[key.decode()]
                    bar.update()
        logger.info(f'Dataset {name}: {size}, kept in memory.')
        return cached

    @staticmethod
    def check_options(opt: Mapping[str, Any]) -> dict[str, TileStore]:
        """Check the options of a dataset and open its LMDBs.

        Returns:
            Side (``gt``, ``lq``) → LMDB.

        Raises:
            ConfigError: if ``cache`` is unknown.
            DataError: if an LMDB is missing or damaged, or the tiles do not suit the options.
        """
        gt, lq = opt.get('dataroot_gt'), opt.get('dataroot_lq')
        if opt.get('cache') is not None:
            check_known(opt['cache'], CACHES, f'dataset {opt.get("name")}: cache')
        if not gt:
            raise DataError(f'dataset {opt.get("name")}: dataroot_gt is missing; name an LMDB of clean tiles')
        if lq:
            stores = dict(zip(('gt', 'lq'), check_pair(gt, lq), strict=True))
        elif opt['phase'] != 'train':
            raise DataError(f'dataset {opt.get("name")}: dataroot_lq is missing; validation and test need pairs')
        else:
            stores = {'gt': TileStore(gt)}
        if opt['phase'] == 'train':
            sizes = set().union(*(store.sizes for store in stores.values()))
            if len(sizes) > 1:
                found = ', '.join(f'{height}×{width}' for height, width in sorted(sizes))
                raise DataError(f'{gt}: a batch needs tiles of one size, found {found}; pack them to one size')
            height, width = sizes.pop()
            if opt.get('use_rot') and height != width:
                raise DataError(f'{gt}: use_rot needs square tiles, not {height}×{width}; set use_rot: false')
        return stores

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items of a batch, whose tiles have one size; faster than one by one.

        Args:
            indices: index of each tile. If a multiple of the number of tiles is added, the sum seeds the augmentation.
        """
        augmentations = [self._augmentation(index) for index in indices]
        indices = [index % len(self) for index in indices]
        keys = [self.keys[index].decode() for index in indices]
        items: list[dict[str, Any]] = [{} for _ in indices]
        for side, store in self.stores.items():
            cached = self.cached[side].numpy() if self.cached else None
            tiles = [store[key] if cached is None else cached[index] for index, key in zip(indices, keys, strict=True)]
            augmented = [
                np.rot90(tile[:, ::-1] if augmentation.flip else tile, augmentation.rotations)
                for tile, augmentation in zip(tiles, augmentations, strict=True)
            ]
            for item, key, tensor, augmentation in zip(
                items, keys, to_tensor(np.stack(augmented)), augmentations, strict=True
            ):
                item[side] = _jitter(tensor, augmentation) if augmentation.channels else tensor
                item[f'{side}_path'] = key
        return items

    def _augmentation(self, index: int) -> Augmentation:
        """Draw an augmentation, from a generator seeded with the index if that is at least the number of tiles."""
        rng = random.Random(index) if index >= len(self) else random
        flip, rotations = self.use_hflip and rng.random() < 0.5, rng.randrange(4) if self.use_rot else 0
        if not self.use_channel_jitter or rng.random() >= JITTER_PROBABILITY:
            return Augmentation(flip, rotations, [])
        channels = []
        for source in rng.sample(range(3), 3):
            scale = rng.uniform(MIN_JITTER_SCALE, 1)
            # Beta(0.5, 0.5) favours both ends of [0, 1], where noise is clipped.
            channels.append((source, (1 - scale) * rng.betavariate(0.5, 0.5), scale))
        return Augmentation(flip, rotations, channels)


def _jitter(tile: Tensor, augmentation: Augmentation) -> Tensor:
    return torch.stack([offset + scale * tile[source] for source, offset, scale in augmentation.channels])


def to_tensor(image: np.ndarray) -> Tensor:
    """Convert ``(…, H, W, 3)`` uint8 to ``(…, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.moveaxis(image, -1, -3).astype(np.float32, order='C') / 255)


def to_image(tensor: Tensor) -> np.ndarray:
    """Convert ``(3, H, W)`` in [0, 1] to ``(H, W, 3)`` uint8 with clipping and rounding."""
    return (tensor.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
