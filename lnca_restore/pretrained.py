"""Loading and saving of trained networks."""

import functools
import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from lnca_arch import NETWORKS
from lnca_arch.networks.detection import detect
from lnca_utils import checkpoint
from lnca_utils.atomic import atomic_file
from lnca_utils.checkpoint import OPTIONS
from lnca_utils.errors import CheckpointError, one_line
from lnca_utils.option_checks import construct, did_you_mean

SUFFIX = '.safetensors'
BUNDLED = {path.stem: path for path in sorted((Path(__file__).parent / 'weights').glob(f'*{SUFFIX}'))}


class Pretrained(NamedTuple):
    """A trained network, on the CPU and in evaluation mode, and the block ``network_g`` that rebuilds it."""

    network: nn.Module
    options: dict[str, Any]


def load_network(name_or_path: Path | str, option_file: Path | str | None = None) -> Pretrained:
    """Load a trained network.

    The options of the network are the first of these that exist: those in ``option_file``; those in the checkpoint
    itself, where :func:`save_network` and the plug-in's trainings write them; those in the option file in the
    experiment's folder; or those derived from the names and shapes of the parameters.

    Args:
        name_or_path: a name in :data:`BUNDLED`, or the path of a file that :func:`save_network` wrote or that has
            BasicSR's layout. If it holds a moving average of the weights, that is loaded.
        option_file: a YAML file with a block ``network_g``.

    Raises:
        CheckpointError: if the file is missing or not readable, or does not match or determine the network.
        ConfigError: if the options of the network are invalid.
    """
    path = BUNDLED.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file or bundled model. {did_you_mean(path.name, BUNDLED)}')
    weights, options = (_read_safetensors if path.suffix.lower() == SUFFIX else _read_checkpoint)(path)
    if options is not None and not isinstance(options, dict):
        raise CheckpointError(
            f'{path}: {OPTIONS} must be a block of options, got {type(options).__name__}; name its option file with '
            '--opt'
        )
    where: Path | str | None = path
    if option_file or not options:
        where = option_file or _option_file_of(path)
        options = _read_options(where) if where else None
    if not options:
        detected = detect(weights)
        if detected is None:
            raise CheckpointError(f'{path}: the parameters are of no known network; name its option file with --opt')
        options = {'type': detected.kind.__name__, **detected.arguments}
        defaults = inspect.signature(detected.kind).parameters
        if 'heads' in defaults:
            logging.getLogger('lnca').warning(
                '%s: number of heads and update rate of %s are unknown, using the defaults %d and %g; name its option '
                'file with --opt if they differ',
                *(path, options['type'], defaults['heads'].default, defaults['update_rate'].default),
            )
    build = functools.partial(construct, options, _known_networks(options), f'{where}: {OPTIONS}')
    # Build it on the meta device first: it takes no memory there, whatever sizes the file claims.
    with torch.device('meta'):
        described = build()
    weights = checkpoint.match_state_dict(described, weights, path, strict=True)
    network = build()
    network.load_state_dict(weights)
    return Pretrained(network.eval(), options)


def _known_networks(options: Mapping[str, Any]) -> Iterable[tuple[str, type[nn.Module]]]:
    if options.get('type') in NETWORKS:
        return NETWORKS.items()
    import lnca_arch.registration  # noqa: F401  imports BasicSR, which takes seconds

    from basicsr.utils.registry import ARCH_REGISTRY

    return ARCH_REGISTRY


def save_network(network: nn.Module, options: Mapping[str, Any], path: Path | str) -> None:
    """Save a network's parameters, and the options that rebuild it, as a .safetensors file.

    Args:
        network: the network.
        options: the block ``network_g`` of its option file.
        path: path of the file.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_file(path) as temporary:
        # Not save_file, which creates files that only their owner can read.
        temporary.write_bytes(save(weights, metadata={OPTIONS: json.dumps(dict(options))}))


def _read_checkpoint(path: Path) -> tuple[checkpoint.Weights, Any]:
    content = checkpoint.load(path)
    return checkpoint.extract_state_dict(content, path), content.get(OPTIONS)


def _read_safetensors(path: Path) -> tuple[checkpoint.Weights, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            options = json.loads((file.metadata() or {}).get(OPTIONS, 'null'))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'{path}: not a readable safetensors file, perhaps truncated ({one_line(error)})'
        ) from None
    return weights, options


def _option_file_of(path: Path) -> Path | None:
    """Return the copy of the option file in the folder of the checkpoint's experiment, if there is one."""
    folder = path.resolve().parent
    if folder.name != 'models':
        return None
    found = sorted(folder.parent.glob('*.yml'))
    return found[-1] if found else None


def _read_options(path: Path | str) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    # ValueError: an invalid date, or bytes that are not text. RecursionError: deeply nested brackets.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f'{path}: not a readable option file ({one_line(error)})') from None
    options = content.get(OPTIONS) if isinstance(content, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(f'{path}: has no block {OPTIONS}; name the option file that the network was trained with')
    return options
