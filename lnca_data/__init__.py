"""Datasets of LMDB tiles, synthetic corruptions, and reading and writing of photographs."""
