"""Packing of datasets into LMDB tiles."""
