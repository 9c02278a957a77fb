"""Option files and command lines of train.py and test.py: read as data, never run."""

import argparse
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from lnca_arch.errors import InputError, nearest, one_line

VALUES = ('name', 'model_type', 'num_gpu')
BLOCKS = ('network_g', 'datasets', 'path')
TRAINING_BLOCKS = ('train', 'logger')
TEST_BLOCKS = ('val',)
DEBUG = 'debug'

Options = dict[str, Any]


class SafeLoader(yaml.SafeLoader):
    """Reads plain data only, mappings in their order, and ``1e-2`` as the number that people mean by it."""


SafeLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, lambda loader, node: OrderedDict(loader.construct_pairs(node))
)
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
        InputError: it is missing, not YAML, or carries anything but plain data.
    """
    try:
        with open(path, encoding='utf-8') as file:
            opt = yaml.load(file, Loader=SafeLoader)
    except OSError as error:
        raise InputError(f'{path}: cannot read the option file ({error.strerror})') from None
    # ValueError: a date that is none, or bytes that are no text. RecursionError: brackets in brackets.
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f'{path}: not a plain YAML file: {one_line(error)}') from None
    if not isinstance(opt, dict):
        raise InputError(f'{path}: not an option file: expected NAME: VALUE lines, got {type(opt).__name__}')
    return opt


def force(opt: Options, entries: Sequence[str]) -> None:
    """Change options as ``--force_yml`` asks, in place.

    Args:
        opt: the options.
        entries: ``BLOCK:KEY=VALUE``, the value in YAML. The blocks must be there, the key need not.

    Raises:
        InputError: an entry is none, or its block is not there.
    """
    for entry in entries:
        keys, is_one, text = entry.partition('=')
        *blocks, key = (name.strip() for name in keys.split(':'))
        if not is_one or not key:
            raise InputError(f'--force_yml {entry}: expected BLOCK:KEY=VALUE, such as train:ema_decay=0.999')
        try:
            value = yaml.load(text, Loader=SafeLoader)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise InputError(f'--force_yml {entry}: not a plain YAML value: {one_line(error)}') from None
        block: Any = opt
        for name in blocks:
            if not isinstance(block, dict) or not isinstance(block.get(name), dict):
                known = block if isinstance(block, dict) else {}
                raise InputError(f'--force_yml {entry}: there is no block {name}. {nearest(name, known)}')
            block = block[name]
        block[key] = value


def check_blocks(opt: Options, path: str | Path, is_train: bool) -> None:
    """Raise InputError unless everything is there that BasicSR reads without asking."""
    blocks = BLOCKS + (TRAINING_BLOCKS if is_train else TEST_BLOCKS)
    missing = [name for name in VALUES + blocks if name not in opt]
    if missing:
        raise InputError(f'{path}: {", ".join(missing)} missing; see options/lnca_photos.yml for a complete file')
    for name in blocks:
        if not isinstance(opt[name], dict):
            raise InputError(f'{path}: {name} must be a block of options, got {opt[name]!r}')
    for name, dataset in opt['datasets'].items():
        if not isinstance(dataset, dict):
            raise InputError(f'{path}: datasets.{name} must be a block of options, got {dataset!r}')
    if is_train and 'train' not in opt['datasets']:
        raise InputError(f'{path}: datasets.train is missing')


def complete(opt: Options, args: argparse.Namespace, root: Path, is_train: bool) -> None:
    """Add what BasicSR's pipeline expects beside what an option file says, in place.

    Args:
        opt: checked by :func:`check_blocks`.
        args: from :func:`read_command_line`.
        root: relative paths are looked for in the current directory, then here, so that a command works from anywhere;
            and here is written what a run writes.
        is_train: for train.py.
    """
    opt.update(auto_resume=args.auto_resume, is_train=is_train)
    if args.debug and not opt['name'].startswith(DEBUG):
        opt['name'] = f'{DEBUG}_{opt["name"]}'
    if opt['num_gpu'] == 'auto':
        opt['num_gpu'] = torch.cuda.device_count()
    for name, dataset in opt['datasets'].items():
        dataset['phase'] = name.split('_')[0]
        if 'scale' in opt:
            dataset['scale'] = opt['scale']
    for block in [opt['path'], *opt['datasets'].values()]:
        for key, value in block.items():
            if key.startswith(('dataroot', 'pretrain_network', 'resume_state')) and isinstance(value, str):
                path = Path(value).expanduser()
                block[key] = str(path if path.exists() or not (root / path).exists() else root / path)
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
