"""Errors, atomic files and safe checkpoints: what all packages share."""
