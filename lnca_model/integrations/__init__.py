"""The interface to BasicSR and its checkouts."""
