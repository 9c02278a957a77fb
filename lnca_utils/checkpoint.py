"""Saving and loading networks and training states so that nothing is lost and nothing is run."""

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lnca_utils.atomic import atomic_file
from lnca_utils.errors import CheckpointError, first_line

Weights = dict[str, Tensor]

OPTIONS = 'network_g'  # what makes the network: in checkpoints, in a file's metadata and in an option file


def save(content: Mapping[str, Any], path: Path | str) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        CheckpointError: it cannot be written; what was at ``path`` is still there.
    """
    try:
        with atomic_file(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
    # torch wraps a failed write in a RuntimeError of its own.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise CheckpointError(
            f'cannot save {path}, of about {_bytes_of(content) / 1e6:,.0f} MB ({reason}); earlier '
            'checkpoints are untouched: make room, then go on with --auto_resume'
        ) from error


def _bytes_of(content: Any) -> int:
    """Of the tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(map(_bytes_of, values))


def load(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain data only.

    Raises:
        CheckpointError: missing, truncated, or holding anything else.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f'{path}: there is no such checkpoint')
    try:
        _check_sums(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # what is damaged can raise anything
        if isinstance(error, pickle.UnpicklingError) and 'GLOBAL' in str(error):
            raise CheckpointError(
                f'{path}: refused: beside tensors and plain data it holds what could run code when it is read; nothing '
                'was run'
            ) from None
        # PyTorch's own words advise to run whatever the file holds.
        reason = 'no file of PyTorch' if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(
            f'{path}: not a readable checkpoint, perhaps truncated ({reason}); use an earlier one'
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: not a checkpoint: it holds a {type(content).__name__}, not named parameters')
    return content


def _check_sums(path: Path | str) -> None:
    """torch.save stores a checksum with every tensor, and torch.load does not look at it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile('it is compressed, as no checkpoint of PyTorch is')
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f'the checksum of {damaged} is wrong')


def read_weights(network: nn.Module, path: Path | str, strict: bool, param_key: str | None) -> Weights:
    """The weights in a file that belong to a network: :func:`read_params`, of them those that are :func:`fitting`."""
    return fitting(network, read_params(path, param_key), path, strict)


def read_params(path: Path | str, param_key: str | None = None) -> Weights:
    """The weights in a file of BasicSR's layout (``{param_key: state dict}``) or in a bare state dict.

    Args:
        path: the file.
        param_key: ``'params'`` or ``'params_ema'``; if the file has no such entry, what it has.

    Raises:
        CheckpointError: the file is not readable, or holds something else.
    """
    return extract_state_dict(load(path), path, param_key)


def extract_state_dict(content: Mapping[str, Any], path: Path | str, param_key: str | None = None) -> Weights:
    """:func:`read_params` of what :func:`load` has read from ``path``."""
    weights = content
    for key in (param_key, 'params_ema', 'params'):
        if key in weights:
            weights = weights[key]
            break
    if not isinstance(weights, dict) or not all(_is_parameter(*item) for item in weights.items()):
        raise CheckpointError(f'{path}: holds no parameters of a network; training states, for one, do not')
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def _is_parameter(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_nested or value.is_complex())
    )


def fitting(network: nn.Module, weights: Weights, path: Path | str, strict: bool) -> Weights:
    """Of the weights those that belong to a network.

    Args:
        network: whose; only the names and sizes of its parameters matter.
        weights: what a file holds.
        path: the file, for messages.
        strict: whether the weights must be the network's parameters, all and no others. If not, those that have the
            name and size of the network's are returned.

    Raises:
        CheckpointError: they are of another network; the message names the first differences.
    """
    sizes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    differences = {
        'are missing': [name for name in sizes if name not in weights],
        'are unknown': [name for name in weights if name not in sizes],
        'have another size': [name for name in sizes if name in weights and weights[name].shape != sizes[name]],
    }
    if strict and any(differences.values()):
        found = [f'{len(names)} {what}, such as {names[0]}' for what, names in differences.items() if names]
        raise CheckpointError(
            f'{path}: not a checkpoint of this {type(network).__name__}: of its parameters {"; ".join(found)}. '
            'Name the network and the sizes that it was trained with under network_g'
        )
    return {name: value for name, value in weights.items() if name in sizes and value.shape == sizes[name]}
