"""The data that the networks train on: LMDB tiles, read through BasicSR's DATASET_REGISTRY."""

from lnca_data.tile_dataset import TileDataset

__all__ = ['TileDataset']
