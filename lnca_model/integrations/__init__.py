"""The interface to BasicSR and to BasicSR checkouts."""
