"""The models that option files name under ``model_type``: a network, its losses and the optimizer step."""
