"""Option files and command lines of train.py and test.py: read as data, never run."""

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
LARGEST_FILE = 1 << 20  # bytes
MOST_VALUES = 10_000
LARGEST_NUMBER = 64  # bits

Options = dict[str, Any]


class SafeLoader(yaml.SafeLoader):
    """Reads plain data only, mappings in their order, and ``1e-2`` as the number that people mean by it."""


def _mapping(loader: SafeLoader, node: yaml.MappingNode) -> OrderedDict:
    mapping = OrderedDict()
    for key, value in loader.construct_pairs(node, deep=True):
        if key in mapping:
            raise yaml.constructor.ConstructorError(None, None, f'{key} is there twice', node.start_mark)
        mapping[key] = value
    return mapping


SafeLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
SafeLoader.add_implicit_resolver(
    'tag:yaml.org,2002:float', re.compile(r'[-+]?[0-9]+[eE][-+]?[0-9]+'), list('-+0123456789')
)


def read_command_line(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """BasicSR's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument('-opt', required=True, metavar='FILE', help='the option file, in YAML')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm'],
        default='none',
        help='what has started this process as one of several: torchrun (pytorch) or srun (slurm)',
    )
    parser.add_argument('--auto_resume', action='store_true', help='go on from the newest checkpoint, if there is one')
    parser.add_argument('--debug', action='store_true', help='log, validate and save often')
    parser.add_argument('--local_rank', type=int, default=0, help=argparse.SUPPRESS)  # of older launchers
    parser.add_argument(
        '--force_yml', nargs='+', default=[], metavar='BLOCK:KEY=VALUE', help='options to change: train:ema_decay=0.999'
    )
    return parser.parse_args(arguments)


def read_options(path: str | Path) -> Options:
    """Read an option file as plain data.

    Raises:
        ConfigError: it is missing, not YAML, or carries anything but plain data.
    """
    try:
        with open(path, 'rb') as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f'{path}: cannot read the option file ({error.strerror})') from None
    if len(content) > LARGEST_FILE:
        raise ConfigError(f'{path}: not an option file: it is larger than {LARGEST_FILE >> 20} MB')
    opt = _parse(content, str(path))
    if not isinstance(opt, dict):
        raise ConfigError(f'{path}: not an option file: expected NAME: VALUE lines, got {type(opt).__name__}')
    return opt


def _parse(content: bytes | str, where: str) -> Any:
    """Plain data from YAML.

    Raises:
        ConfigError: it is something else; or aliases make it endless, or much larger than its file.
    """
    try:
        value = yaml.load(content, Loader=SafeLoader)
        size = _size(value, {})
    # ValueError: a date that is none, or bytes that are no text. RecursionError: brackets in brackets, or an alias of
    # what it is in.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f'{where}: not a plain YAML file: {one_line(error)}') from None
    if size > MOST_VALUES:
        raise ConfigError(f'{where}: not an option file: written out it has more than {MOST_VALUES:,} values')
    return value


def _size(value: Any, known: dict[int, int]) -> int:
    """How many values there are in nested containers if each is counted wherever it stands.

    Raises:
        ValueError: of a number that is so large that Python does not even print it.
    """
    if isinstance(value, int) and value.bit_length() > LARGEST_NUMBER:
        raise ValueError(f'a number of more than {LARGEST_NUMBER} bits')
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        entries = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(entry, known) for entry in entries)
    return known[id(value)]


def apply_overrides(opt: Options, entries: Sequence[str]) -> None:
    """Change options as ``--force_yml`` asks, in place.

    Args:
        opt: the options.
        entries: ``BLOCK:KEY=VALUE``, the value in YAML. The blocks must be there, the key need not.

    Raises:
        ConfigError: an entry is none, or its block is not there.
    """
    for entry in entries:
        keys, is_one, text = entry.partition('=')
        *blocks, key = (name.strip() for name in keys.split(':'))
        if not is_one or not key:
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
    """Raise ConfigError unless everything is there that BasicSR reads without asking."""
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
    """Add what BasicSR's pipeline expects beside what an option file says, in place.

    Args:
        opt: checked by :func:`check_blocks`.
        args: from :func:`read_command_line`.
        root: where paths are looked for, see :func:`resolve_paths`, and what a run writes is written.
        is_train: for train.py.
    """
    opt.update(auto_resume=args.auto_resume, is_train=is_train)
    if args.debug and not opt['name'].startswith(DEBUG):
        opt['name'] = f'{DEBUG}_{opt["name"]}'
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = torch.cuda.device_count()
    add_derived_dataset_options(opt, root)
    folder = root / ('experiments' if is_train else 'results') / opt['name']
    paths = {'log': folder, 'visualization': folder / 'visualization'}
    if is_train:
        paths |= {
            'experiments_root': folder,
            'models': folder / 'models',
            'training_states': folder / 'training_states',
        }
    else:
        paths['results_root'] = folder
    opt['path'].update({name: str(path) for name, path in paths.items()})
    if is_train and DEBUG in opt['name']:
        opt['logger'].update(print_freq=1, save_checkpoint_freq=8)
        if opt.get('val'):
            opt['val']['val_freq'] = 8


def add_derived_dataset_options(opt: Options, root: Path) -> None:
    """Add what the blocks of datasets take from elsewhere, in place, and :func:`resolve_paths`."""
    for name, dataset in opt['datasets'].items():
        dataset['phase'] = name.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']
    resolve_paths(opt, root)


def resolve_paths(opt: Options, root: Path) -> None:
    """Look for relative paths in the current directory, then under ``root``, so that a command works from anywhere."""
    for block in [opt['path'], *opt['datasets'].values()]:
        for key, value in block.items():
            if key.startswith(('dataroot', 'pretrain_network', 'resume_state')) and isinstance(value, str):
                path = Path(value).expanduser()
                block[key] = str(path if path.exists() or not (root / path).exists() else root / path)
