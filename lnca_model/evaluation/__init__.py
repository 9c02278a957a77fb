"""Scoring of networks on validation and test sets."""
