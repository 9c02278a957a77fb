"""Preparation of public datasets as LMDB tiles."""
