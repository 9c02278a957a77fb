"""Utilities of all packages: errors, atomic writes, checkpoint I/O and option checks."""
