"""What several test files need."""

import ast
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import lnca_model  # noqa: F401  registers everything

torch.set_num_threads(2)


class Golden(dict[str, Tensor]):
    """The arrays of one file of tests/golden as tensors, by name."""

    config: dict

    def below(self, prefix: str) -> dict[str, Tensor]:
        """``prefix/NAME`` as NAME."""
        return {name.removeprefix(f'{prefix}/'): value for name, value in self.items() if name.startswith(f'{prefix}/')}


@pytest.fixture(scope='session')
def golden() -> Callable[[str], Golden]:
    def read(name: str) -> Golden:
        with np.load(Path(__file__).parent / 'golden' / f'{name}.npz') as arrays:
            values = Golden(
                (key, torch.from_numpy(np.asarray(arrays[key])))
                for key in arrays.files
                if arrays[key].dtype.kind != 'U'
            )
            values.config = ast.literal_eval(str(arrays['config'])) if 'config' in arrays.files else {}
        return values

    return read


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
