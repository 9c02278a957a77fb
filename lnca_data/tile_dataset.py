"""The dataset of tiles that BasicSR's loaders read."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lnca_arch.errors import InputError
from lnca_data.lmdb_store import TileStore, check_pair, image_sizes

from basicsr.utils.registry import DATASET_REGISTRY


@DATASET_REGISTRY.register()
class TileDataset(Dataset):
    """Tiles from BasicSR-format LMDBs: pairs, or clean ones that the model corrupts in training.

    Options (``datasets: train:`` and so on in the YAML):
        dataroot_gt: LMDB of clean tiles.
        dataroot_lq: LMDB of the same tiles corrupted, with the same keys. Left out for synthetic training.
        use_hflip, use_rot: flip, and turn by right angles, at random; in training only.

    An item is ``{'gt', 'gt_path'}`` and, for pairs, ``{'lq', 'lq_path'}``: tensors ``(3, H, W)`` in [0, 1], RGB, and
    the key.

    Raises:
        InputError: an LMDB is missing, empty or damaged, or the two have different keys.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        self.opt = opt
        self.check_options(opt)
        self.stores = {side: TileStore(opt[f'dataroot_{side}']) for side in ('gt', 'lq') if opt.get(f'dataroot_{side}')}
        self.keys = self.stores['gt'].keys
        self.flip = bool(opt['phase'] == 'train' and opt.get('use_hflip'))
        self.turn = bool(opt['phase'] == 'train' and opt.get('use_rot'))

    @staticmethod
    def check_options(opt: Mapping[str, Any]) -> None:
        """Raise InputError for what would fail when the dataset is made or read."""
        gt, lq = opt.get('dataroot_gt'), opt.get('dataroot_lq')
        if not gt:
            raise InputError(f'dataset {opt.get("name")}: dataroot_gt is missing; name an LMDB of clean tiles')
        if lq:
            check_pair(gt, lq)
        elif opt['phase'] != 'train':
            raise InputError(f'dataset {opt.get("name")}: dataroot_lq is missing; validation and test need pairs')
        else:
            TileStore(gt)
        if opt['phase'] == 'train':
            sizes = image_sizes(gt) | (image_sizes(lq) if lq else set())
            if len(sizes) > 1:
                raise InputError(f'{gt}: a batch needs tiles of one size, found {", ".join(map(str, sorted(sizes)))}')
            height, width = sizes.pop()
            if opt.get('use_rot') and height != width:
                raise InputError(f'{gt}: use_rot turns tiles, so they must be square, not {height}×{width}')

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> dict[str, Any]:
        key = self.keys[index]
        flip = self.flip and random.random() < 0.5
        turns = random.randrange(4) if self.turn else 0
        item: dict[str, Any] = {}
        for side, store in self.stores.items():
            item[side] = to_tensor(np.rot90(store[key][:, ::-1] if flip else store[key], turns))
            item[f'{side}_path'] = key
        return item


def to_tensor(image: np.ndarray) -> Tensor:
    """``(H, W, 3)`` uint8 → ``(3, H, W)`` float32 in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)


def to_image(tensor: Tensor) -> np.ndarray:
    """``(3, H, W)`` in [0, 1] → ``(H, W, 3)`` uint8, clipped and rounded."""
    return (tensor.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
