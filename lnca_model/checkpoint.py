"""Saving and loading networks and training states so that nothing is lost and nothing is run."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnca_arch.errors import InputError
from lnca_data.atomic import whole_file


def save(content: Mapping[str, Any], path: Path | str) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        InputError: it cannot be written; what was at ``path`` is still there.
    """
    try:
        with whole_file(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
    # torch wraps a failed write in a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        raise InputError(
            f'cannot save {path} ({str(error).splitlines()[0]}); earlier checkpoints are untouched: '
            'make room, then go on with --auto_resume'
        ) from error


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain data only.

    Raises:
        InputError: missing, truncated, or holding anything else.
    """
    if not os.path.isfile(path):
        raise InputError(f'{path}: there is no such checkpoint')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, OSError, KeyError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise InputError(
            f'{path}: not a readable checkpoint, perhaps truncated ({str(error).splitlines()[0]}); use an earlier one'
        ) from None


def load_weights(network: nn.Module, path: Path | str, strict: bool = True, param_key: str | None = 'params') -> None:
    """Load a network from a file of BasicSR's layout (``{param_key: state dict}``) or a bare state dict.

    Raises:
        InputError: the file is not readable, or of another network; the message names the first difference.
    """
    content = load(path)
    weights: Mapping[str, Tensor] = content
    for key in (param_key, 'params_ema', 'params'):
        if key in content:
            weights = content[key]
            break
    weights = {name.removeprefix('module.'): value for name, value in weights.items()}
    own = network.state_dict()
    missing = sorted(own.keys() - weights.keys())
    foreign = sorted(weights.keys() - own.keys())
    resized = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    if strict and (missing or foreign or resized):
        differences = [
            f'{len(names)} {what}, such as {names[0]}'
            for what, names in (('are missing', missing), ('are unknown', foreign), ('have another size', resized))
            if names
        ]
        raise InputError(
            f'{path}: not a checkpoint of this {type(network).__name__}: of its parameters {"; ".join(differences)}. '
            'Name the network and the sizes that it was trained with under network_g'
        )
    network.load_state_dict({name: value for name, value in weights.items() if name not in resized}, strict=False)
