"""The models that option files name: a network, its losses and one optimiser step."""
