"""The data that the networks train on: LMDB tiles, and photographs."""
