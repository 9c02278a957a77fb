"""The state of all random number generators that a process draws from in training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Tensors and plain data, as checkpoints hold them."""
    kind, keys, *rest = np.random.get_state()
    return {
        'python': random.getstate(),
        'numpy': (kind, keys.tolist(), *rest),
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The opposite. A GPU where there was none goes on from where it is."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if torch.cuda.is_available() and state['cuda'] is not None:
        torch.cuda.set_rng_state(state['cuda'])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """What is drawn within changes nothing for what is drawn after it."""
    state = random_state()
    try:
        yield
    finally:
        restore_random_state(state)
