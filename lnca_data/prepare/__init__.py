"""From a dataset on disk to LMDB tiles."""
