"""The state of all random number generators that training uses."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """Return the state of the random number generators of Python, NumPy and PyTorch, as tensors and plain data."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        'python': random.getstate(),
        'numpy': (kind, np.asarray(keys).tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def load_rng_state(state: dict[str, Any]) -> None:
    """Restore a state from :func:`rng_state`; without a CUDA state, the GPU's generator stays unchanged."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if torch.cuda.is_available() and state['cuda'] is not None:
        torch.cuda.set_rng_state(state['cuda'])


@contextmanager
def fork_rng() -> Iterator[None]:
    """Restore the state of all random number generators on exit."""
    state = rng_state()
    try:
        yield
    finally:
        load_rng_state(state)
