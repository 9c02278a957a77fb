"""The dataset of tiles that BasicSR's loaders read."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

import lnca_arch.registration  # noqa: F401  it mends what keeps BasicSR from being imported
from lnca_data.io.lmdb_store import TileStore, check_pair
from lnca_utils.errors import DataError
from lnca_utils.option_checks import check_known

from basicsr.utils import get_root_logger
from basicsr.utils.registry import DATASET_REGISTRY

CACHES = ('memory',)
# Of the free memory, for the tiles of one dataset: the network and the loaders need some, too.
CACHE_SHARE = 0.5
COLORED = 0.5  # share of tiles that use_channel_jitter augmentations
LEAST_SPAN = 0.25  # of the values of a channel that it augmentations


class Augmentation(NamedTuple):
    """What augmentation does to a tile.

    Attributes:
        flip: from left to right, first.
        turns: by right angles, then.
        channels: for each channel of the result the one that it is made of, the value that black becomes, and how much
            higher white is; none where colours stay.
    """

    flip: bool
    turns: int
    channels: list[tuple[int, float, float]]


@DATASET_REGISTRY.register()
class TileDataset(Dataset):
    """Tiles from BasicSR-format LMDBs: pairs, or clean ones that the model corrupts in training.

    Options (``datasets: train:`` and so on in the YAML):
        dataroot_gt: LMDB of clean tiles.
        dataroot_lq: LMDB of the same tiles corrupted, with the same keys. Left out for synthetic training.
        use_hflip, use_rot: flip, and turn by right angles, at random; in training only.
        use_channel_jitter: whether to change the colours of half of the tiles, in training: permute the channels, and
            map the values of each to a random part of [0, 1]. For training on few photographs.
        cache: ``memory`` reads all tiles at once and keeps them, 3 bytes a pixel, where the loader's workers share
            them. Tiles that do not fit in half of the free memory, or differ in size, are read from the LMDB as ever.

    An item is ``{'gt', 'gt_path'}`` and, for pairs, ``{'lq', 'lq_path'}``: tensors ``(3, H, W)`` in [0, 1], RGB, and
    the key.

    Raises:
        DataError: an LMDB is missing, empty or damaged, or the two have different keys.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.stores = self._open(opt)
        self.keys = self.stores['gt'].key_array
        self.flip = bool(opt['phase'] == 'train' and opt.get('use_hflip'))
        self.turn = bool(opt['phase'] == 'train' and opt.get('use_rot'))
        self.color = bool(opt['phase'] == 'train' and opt.get('use_channel_jitter'))
        # Tensors rather than arrays: forked workers share either, spawned ones only these.
        self.cached: dict[str, Tensor] = self._read_all() if opt.get('cache') else {}

    def _read_all(self) -> dict[str, Tensor]:
        """Side → all tiles ``(N, H, W, 3)`` uint8; nothing if they do not fit."""
        name, logger = self.opt.get('name'), get_root_logger()
        sizes = set().union(*(store.sizes for store in self.stores.values()))
        if len(sizes) > 1:
            logger.warning(f'Dataset {name}: tiles differ in size, so they are read from the LMDB, not kept in memory.')
            return {}
        shape = (len(self), *sizes.pop(), 3)
        needed, free = len(self.stores) * np.prod(shape, dtype=np.int64), psutil.virtual_memory().available
        figures = f'{len(self):,} tiles, {needed / 1e9:.2f} GB'
        if needed > CACHE_SHARE * free:
            logger.warning(f'Dataset {name}: {figures}, are read from the LMDB: only {free / 1e9:.2f} GB are free.')
            return {}
        cached = {side: torch.empty(shape, dtype=torch.uint8) for side in self.stores}
        with tqdm(total=len(self.stores) * len(self), desc=f'reading {name}', unit='tile', leave=False) as bar:
            for side, store in self.stores.items():
                pixels = cached[side].numpy()
                for index, key in enumerate(self.keys):
                    pixels[index] = store[key.decode()]
                    bar.update()
        logger.info(f'Dataset {name}: {figures}, kept in memory.')
        return cached

    @staticmethod
    def check_options(opt: Mapping[str, Any]) -> None:
        """Raise DataError for what would fail when the dataset is made or read."""
        TileDataset._open(opt)

    @staticmethod
    def _open(opt: Mapping[str, Any]) -> dict[str, TileStore]:
        """Side → its LMDB, once all is checked."""
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
                raise DataError(f'{gt}: a batch needs tiles of one size, found {", ".join(map(str, sorted(sizes)))}')
            height, width = sizes.pop()
            if opt.get('use_rot') and height != width:
                raise DataError(f'{gt}: use_rot turns tiles, so they must be square, not {height}×{width}')
        return stores

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items of a batch, whose tiles are of one size. PyTorch's loader asks for them at once, which saves time."""
        augmentations = [self._augmentation(place) for place in indices]
        indices = [place % len(self) for place in indices]
        keys = [self.keys[index].decode() for index in indices]
        items: list[dict[str, Any]] = [{} for _ in indices]
        for side, store in self.stores.items():
            cached = self.cached[side].numpy() if self.cached else None
            tiles = [store[key] if cached is None else cached[index] for index, key in zip(indices, keys, strict=True)]
            turned = [
                np.rot90(tile[:, ::-1] if augmentation.flip else tile, augmentation.turns)
                for tile, augmentation in zip(tiles, augmentations, strict=True)
            ]
            for item, key, tensor, augmentation in zip(
                items, keys, to_tensor(np.stack(turned)), augmentations, strict=True
            ):
                item[side] = _colored(tensor, augmentation) if augmentation.channels else tensor
                item[f'{side}_path'] = key
        return items

    def _augmentation(self, place: int) -> Augmentation:
        """Drawn by the place in the training, if a sampler says that (an index plus a multiple of the number of tiles),
        else by the random numbers of the process."""
        draws = random.Random(place) if place >= len(self) else random
        flip, turns = self.flip and draws.random() < 0.5, draws.randrange(4) if self.turn else 0
        if not self.color or draws.random() >= COLORED:
            return Augmentation(flip, turns, [])
        channels = []
        for source in draws.sample(range(3), 3):
            span = draws.uniform(LEAST_SPAN, 1)
            # At the ends as often as anywhere between them: noise is cut off there.
            channels.append((source, (1 - span) * draws.betavariate(0.5, 0.5), span))
        return Augmentation(flip, turns, channels)


def _colored(tile: Tensor, augmentation: Augmentation) -> Tensor:
    return torch.stack([low + span * tile[source] for source, low, span in augmentation.channels])


def to_tensor(image: np.ndarray) -> Tensor:
    """``(…, H, W, 3)`` uint8 → ``(…, 3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(np.moveaxis(image, -1, -3).astype(np.float32, order='C') / 255)


def to_image(tensor: Tensor) -> np.ndarray:
    """``(3, H, W)`` in [0, 1] → ``(H, W, 3)`` uint8, clipped and rounded."""
    return (tensor.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
