"""Reading of option files and the command line; replaces BasicSR's parse_options and loads YAML safely."""

import argparse
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lnca_utils.errors import ConfigError, one_line
from lnca_utils.option_checks import did_you_mean

VALUES = ('name', 'model_type', 'num_gpu')
BLOCKS = ('network_g', 'datasets', 'path')
TRAINING_BLOCKS = ('train', 'logger')
TEST_BLOCKS = ('val',)
DEBUG = 'debug'
MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 10_000
MAX_INTEGER_BITS = 64

Options = dict[str, Any]


class SafeLoader(yaml.SafeLoader):
    """YAML loader for plain data that rejects duplicate keys and, unlike YAML 1.1, reads ``1e-2`` as a number."""


def _mapping(loader: SafeLoader, node: yaml.MappingNode) -> OrderedDict:
    mapping = OrderedDict()
    for key, value in loader.construct_pairs(node, deep=True):
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f'{key} is there twice', node.start_mark)
        mapping[key] = value
    return mapping


SafeLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
SafeLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9]+[eE][-+]?[0-9]+$'), list('-+0123456789')
)


def read_command_line(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse BasicSR's command line.

    Args:
        arguments: the command line. Default: that of the process.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('-opt', required=True, metavar='FILE', help='the option file, in YAML')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='what started this process, if there are several: torchrun (pytorch) or srun (slurm)',
    )
    parser.add_argument('--auto_resume', action='store_true', help='resume from the latest checkpoint, if there is one')
    parser.add_argument('--debug', action='store_true', help='log, validate and save often')
    parser.add_argument('--local_rank', type=int, default=0, help=argparse.SUPPRESS)  # passed by older launchers
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='BLOCK:KEY=VALUE', help='override options: train:ema_decay=0.999'
    )
    return parser.parse_args(arguments)


def read_options(path: str | Path) -> Options:
    """Read an option file as plain data.

    Args:
        path: path of the YAML file.

    Raises:
        ConfigError: if the file cannot be read, is too large, is not YAML, or holds anything but plain data.
    """
    try:
        with open(path, 'rb') as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f'{path}: cannot read the option file ({error.strerror})') from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f'{path}: not an option file: it is larger than {MAX_FILE_BYTES >> 20} MB')
    opt = _parse(content, str(path))
    if not isinstance(opt, dict):
        raise ConfigError(f'{path}: not an option file: expected NAME: VALUE lines, got {type(opt).__name__}')
    return opt


def _parse(content: bytes | str, where: str) -> Any:
    """Parse YAML as plain data.

    Args:
        content: the YAML.
        where: its source, for messages.

    Raises:
        ConfigError: if it is not plain data, or has more than :data:`MAX_VALUES` values with aliases expanded.
    """
    try:
        value = yaml.load(content, Loader=SafeLoader)
        size = _size(value, {})
    # ValueError: an impossible date, or bytes that are not UTF-8. RecursionError: deeply nested brackets, or an alias
    # to a container that holds it.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f'{where}: not a plain YAML file: {one_line(error)}') from None
    if size > MAX_VALUES:
        raise ConfigError(f'{where}: not an option file: with aliases expanded it has more than {MAX_VALUES:,} values')
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """Return the number of values in nested containers, with aliases expanded.

    Args:
        value: the outermost container.
        known: sizes of the containers that have been counted, by id.

    Raises:
        ValueError: if an integer has more than :data:`MAX_INTEGER_BITS` bits; Python cannot print very large ones.
    """
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise ValueError(f'a number of more than {MAX_INTEGER_BITS} bits')
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        entries = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(entry, known) for entry in entries)
    return known[id(value)]


def apply_overrides(opt: Options, entries: Sequence[str]) -> None:
    """Apply the overrides of ``--force_yml`` in place.

    Args:
        opt: the options.
        entries: ``BLOCK:KEY=VALUE``, the value in YAML. The blocks must exist, the key need not.

    Raises:
        ConfigError: if an entry has another form, or its block does not exist.
    """
    for entry in entries:
        keys, separator, text = entry.partition('=')
        *blocks, key = (name.strip() for name in keys.split(':'))
        if not separator or not key:
            raise ConfigError(f'--force_yml {entry}: expected BLOCK:KEY=VALUE, such as train:ema_decay=0.999')
        value = _parse(text, f'--force_yml {entry}')
        block: Any = opt
        for name in blocks:
            if not isinstance(block, dict) or not isinstance(block.get(name), dict):
                known = block if isinstance(block, dict) else {}
                raise ConfigError(f'--force_yml {entry}: there is no block {name}. {did_you_mean(name, known)}')
            block = block[name]
        block[key] = value


def check_blocks(opt: Options, path: str | Path, is_train: bool) -> None:
    """Raise ConfigError if an option or a block is missing for which BasicSR has no default.

    Args:
        opt: the options.
        path: their file, for messages.
        is_train: whether they are for a training.
    """
    blocks = BLOCKS + (TRAINING_BLOCKS if is_train else TEST_BLOCKS)
    missing = [name for name in VALUES + blocks if name not in opt]
    if missing:
        raise ConfigError(f'{path}: {", ".join(missing)} missing; see options/lnca_photos.yml for a complete file')
    for name in blocks:
        if not isinstance(opt[name], dict):
            raise ConfigError(f'{path}: {name} must be a block of options, got {opt[name]!r}')
    for name, dataset in opt['datasets'].items():
        if not isinstance(dataset, dict):
            raise ConfigError(f'{path}: datasets.{name} must be a block of options, got {dataset!r}')
    if is_train and 'train' not in opt['datasets']:
        raise ConfigError(f'{path}: datasets.train is missing')


def add_derived_options(opt: Options, args: argparse.Namespace, root: Path, is_train: bool) -> None:
    """Add the options that BasicSR derives from an option file and the command line, in place.

    A run writes to ``experiments/NAME`` or ``results/NAME`` under ``root``. ``path.experiments_root`` and
    ``path.results_root`` replace the parent folder of ``NAME``, as in BasicSR's master branch.

    Args:
        opt: options that passed :func:`check_blocks`.
        args: from :func:`read_command_line`.
        root: folder that paths are resolved against, see :func:`resolve_paths`, and that results are written to.
        is_train: whether they are for a training.
    """
    opt.update(auto_resume=args.auto_resume, is_train=is_train)
    if args.debug and not opt['name'].startswith(DEBUG):
        opt['name'] = f'{DEBUG}_{opt["name"]}'
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = torch.cuda.device_count()
    add_derived_dataset_options(opt, root)
    # Remove both options: make_exp_dirs would create both folders, also that of the other command.
    parents = {kind: opt['path'].pop(f'{kind}_root', None) for kind in ('experiments', 'results')}
    kind = 'experiments' if is_train else 'results'
    folder = Path(parents[kind] or root / kind).expanduser() / opt['name']
    paths = {f'{kind}_root': folder, 'log': folder, 'visualization': folder / 'visualization'}
    if is_train:
        paths |= {'models': folder / 'models', 'training_states': folder / 'training_states'}
    opt['path'].update({name: str(path) for name, path in paths.items()})
    if is_train and DEBUG in opt['name']:
        opt['logger'].update(print_freq=1, save_checkpoint_freq=8)
        if opt.get('val'):
            opt['val']['val_freq'] = 8


def add_derived_dataset_options(opt: Options, root: Path) -> None:
    """Add the phase and the scale to the blocks of datasets, and resolve paths, in place."""
    for name, dataset in opt['datasets'].items():
        dataset['phase'] = name.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']
    resolve_paths(opt, root)


def resolve_paths(opt: Options, root: Path) -> None:
    """Resolve relative paths in place: against ``root`` if they exist only there, else the current directory."""
    for block in [opt['path'], *opt['datasets'].values()]:
        for key, value in block.items():
            if key.startswith(('dataroot', 'pretrain_network', 'resume_state')) and isinstance(value, str):
                path = Path(value).expanduser()
                block[key] = str(path if path.exists() or not (root / path).exists() else root / path)
