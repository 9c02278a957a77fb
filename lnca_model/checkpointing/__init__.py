"""Checkpoints: saving and resuming a run."""
