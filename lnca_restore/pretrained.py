"""Networks from files: those that come with the package, and what trainings leave behind."""

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
DEFAULT_MODEL = 'denoise'
BUNDLED = {path.stem: path for path in sorted((Path(__file__).parent / 'weights').glob(f'*{SUFFIX}'))}


class Pretrained(NamedTuple):
    """A trained network, on the CPU and in evaluation mode, and the block ``network_g`` that makes one like it."""

    network: nn.Module
    options: dict[str, Any]


def load_network(name_or_path: Path | str, option_file: Path | str | None = None) -> Pretrained:
    """A trained network from a file.

    It is made from the first of these that there is: ``option_file``; what the file says itself, as those do that
    :func:`save_network` and the plug-in's trainings write; the option file that BasicSR leaves in the folder of an
    experiment; the names and sizes of the parameters.

    Args:
        name_or_path: a name in :data:`BUNDLED`; or a file, from :func:`save_network` or in BasicSR's layout, where a
            moving average goes before the weights that it is of.
        option_file: a YAML with a block ``network_g``.

    Raises:
        CheckpointError: there is no such file, it is not readable, or it does not say of which network it is.
    """
    path = BUNDLED.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise CheckpointError(
            f'{path}: neither a file nor a model that comes along. {did_you_mean(path.name, BUNDLED)}'
        )
    weights, options = (_read_safetensors if path.suffix.lower() == SUFFIX else _read_checkpoint)(path)
    if options is not None and not isinstance(options, dict):
        raise CheckpointError(f'{path}: its {OPTIONS} is no block of options, but {type(options).__name__}')
    where = path
    if option_file or not options:
        where = option_file or _option_file_of(path)
        options = _read_options(where) if where else None
    if not options:
        detected = detect(weights)
        if detected is None:
            raise CheckpointError(f'{path}: no known network has these parameters; name its option file with --opt')
        options = {'type': detected.kind.__name__, **detected.arguments}
        defaults = inspect.signature(detected.kind).parameters
        if 'heads' in defaults:
            logging.getLogger('basicsr').warning(
                '%s does not say how many heads its %s has, nor its update rate; taken: %d and %g. If these are wrong, '
                'name its option file with --opt',
                *(path, options['type'], defaults['heads'].default, defaults['update_rate'].default),
            )
    # First where a network of any size takes no memory: a file can claim any.
    make = functools.partial(construct, options, _known(options), f'{where}: {OPTIONS}')
    with torch.device('meta'):
        described = make()
    weights = checkpoint.fitting(described, weights, path, strict=True)
    network = make()
    network.load_state_dict(weights)
    return Pretrained(network.eval(), options)


def _known(options: Mapping[str, Any]) -> Iterable[tuple[str, type[nn.Module]]]:
    if options.get('type') in NETWORKS:
        return NETWORKS.items()
    import lnca_arch.registration  # noqa: F401  takes seconds: it imports BasicSR

    from basicsr.utils.registry import ARCH_REGISTRY

    return ARCH_REGISTRY


def save_network(network: nn.Module, options: Mapping[str, Any], path: Path | str) -> None:
    """Write a network's parameters, and the options that rebuild it, as one .safetensors file.

    Args:
        network: whose.
        options: the block ``network_g`` of its option file.
        path: where to.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with atomic_file(path) as temporary:
        # save_file would make a file that nobody else can read.
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
    """The copy that BasicSR keeps of an experiment's options, beside the folder of its models."""
    folder = path.resolve().parent
    if folder.name != 'models':
        return None
    found = sorted(folder.parent.glob('*.yml'))
    return found[-1] if found else None


def _read_options(path: Path | str) -> dict[str, Any] | None:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    # ValueError: a date that is none, or bytes that are no text. RecursionError: brackets in brackets.
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f'{path}: not a readable option file ({one_line(error)})') from None
    options = content.get(OPTIONS) if isinstance(content, dict) else None
    if not isinstance(options, dict):
        raise CheckpointError(f'{path}: has no block {OPTIONS}, which says what the network is')
    return options
