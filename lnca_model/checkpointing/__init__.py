"""Saving and resuming of runs."""
