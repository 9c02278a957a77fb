"""The data that the networks train on: LMDB tiles, read through BasicSR's DATASET_REGISTRY."""

import lnca_arch  # noqa: F401  first: it mends what keeps BasicSR from being imported
from lnca_data.tile_dataset import TileDataset

__all__ = ['TileDataset']
