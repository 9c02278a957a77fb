"""Faster rollouts with the same results."""
