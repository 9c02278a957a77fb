"""Atomic, weights-only checkpoint I/O."""

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

OPTIONS = 'network_g'  # key of the network's options in checkpoints, safetensors metadata and option files


def save(content: Mapping[str, Any], path: Path | str) -> None:
    """Write a checkpoint atomically.

    Raises:
        CheckpointError: if it cannot be written. ``path`` then stays unchanged.
    """
    try:
        with atomic_file(path) as temporary, open(temporary, 'wb') as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # PyTorch raises RuntimeError for failed writes
        reason = getattr(error, 'strerror', None) or first_line(error)
        raise CheckpointError(
            f'{path}: cannot save {_nbytes(content) / 1e6:,.0f} MB ({reason}); free disk space and continue with '
            '--auto_resume: earlier checkpoints are intact'
        ) from error


def _nbytes(content: Any) -> int:
    """Return the size of the tensors in nested containers."""
    if isinstance(content, Tensor):
        return content.nbytes
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(map(_nbytes, values))


def load(path: Path | str) -> dict[str, Any]:
    """Load a checkpoint of tensors and plain data onto the CPU.

    Raises:
        CheckpointError: if the file is missing, damaged, or contains anything else.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f'{path}: no such checkpoint')
    try:
        _verify_checksums(path)
        content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # damaged files can raise anything
        if isinstance(error, pickle.UnpicklingError) and 'GLOBAL' in str(error):
            raise CheckpointError(f'{path}: refused: contains pickled code; save tensors and plain data only') from None
        # PyTorch's message recommends weights_only=False, which runs code.
        reason = 'not a file of PyTorch' if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise CheckpointError(
            f'{path}: not readable, perhaps truncated ({reason}); use an earlier checkpoint'
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: contains {type(content).__name__}, not named parameters; name a checkpoint')
    return content


def _verify_checksums(path: Path | str) -> None:
    """Verify the checksums of a checkpoint, which torch.save writes but torch.load ignores."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise zipfile.BadZipFile('compressed, unlike checkpoints of PyTorch')
            damaged = archive.testzip()
        if damaged:
            raise zipfile.BadZipFile(f'wrong checksum of {damaged}')


def read_weights(network: nn.Module, path: Path | str, strict: bool, param_key: str | None) -> Weights:
    """Load the weights of a network from a file.

    Args:
        network, path, strict: see :func:`match_state_dict`.
        param_key: see :func:`extract_state_dict`.

    Raises:
        CheckpointError: if the file cannot be read, or its weights do not match the network.
    """
    return match_state_dict(network, extract_state_dict(load(path), path, param_key), path, strict)


def extract_state_dict(content: Mapping[str, Any], path: Path | str, param_key: str | None = None) -> Weights:
    """Return the state dict in a checkpoint.

    The checkpoint either has BasicSR's layout, ``{param_key: state dict}``, or is a state dict itself.

    Args:
        content: content of the checkpoint, from :func:`load`.
        path: path of the file, for messages.
        param_key: ``'params'`` or ``'params_ema'``; if there is no such entry, the other one is used. Default:
            ``'params_ema'``.

    Raises:
        CheckpointError: if there is no state dict.
    """
    weights: Any = content
    for key in (param_key, 'params_ema', 'params'):
        if key is not None and key in weights:
            weights = weights[key]
            break
    if not isinstance(weights, dict) or not all(_is_parameter(*item) for item in weights.items()):
        raise CheckpointError(f'{path}: contains no parameters of a network; name a file of the folder models/')
    return {name.removeprefix('module.'): value for name, value in weights.items()}


def _is_parameter(name: Any, value: Any) -> bool:
    return (
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_nested or value.is_complex())
    )


def match_state_dict(network: nn.Module, weights: Weights, path: Path | str, strict: bool) -> Weights:
    """Return the weights whose names and shapes match a network's state dict.

    Args:
        network: the network, which may be on the meta device.
        weights: a state dict.
        path: path of its file, for messages.
        strict: whether the names and shapes must match exactly.

    Raises:
        CheckpointError: if ``strict`` and they do not match; the message names the first differences.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    differences = {
        'missing': [name for name in shapes if name not in weights],
        'unknown': [name for name in weights if name not in shapes],
        'of another shape': [name for name in shapes if name in weights and weights[name].shape != shapes[name]],
    }
    if strict and any(differences.values()):
        found = [f'{len(names)} {what}, such as {names[0]}' for what, names in differences.items() if names]
        raise CheckpointError(
            f'{path}: not a checkpoint of this {type(network).__name__}: parameters {"; ".join(found)}; set network_g '
            'to the network and the sizes that it was trained with'
        )
    return {name: value for name, value in weights.items() if name in shapes and value.shape == shapes[name]}
