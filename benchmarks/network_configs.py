"""The compared networks: one file each under ``options/networks``, combined with the option file of a task."""

import argparse
import copy
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import published_results
import torch
from tqdm import tqdm

import lnca_model  # noqa: F401  registers the plug-in
from lnca_data.io.lmdb_store import TileStore
from lnca_model.config.checks import check_options, validate_schema
from lnca_model.config.yaml_options import read_options, resolve_paths
from lnca_model.evaluation.evaluator import SELECTION_METRIC
from lnca_model.models.restoration_model import RestorationModel
from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import check_known, construct

from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'options' / 'networks'
PREPARE = 'python datasets/prepare.py'
NETWORK_KEYS = ('model_type', 'network_g', 'train')  # all that a network's file holds
RECIPE_KEYS = ('ema_decay',)  # options of train: that a network's file may set for all phases
PER_NETWORK_KEYS = ('optim_g', 'scheduler', 'total_iter', 'iters')  # options of train: that are not shared as they are

MODELS = {name: model for name, model in MODEL_REGISTRY if issubclass(model, RestorationModel)}

Options = dict[str, Any]


def known_networks() -> list[str]:
    """Return the names that ``--models`` accepts."""
    return sorted(file.stem for file in FOLDER.glob('*.yml'))


def add_models_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--models``; its value is for :func:`read_networks`."""
    parser.add_argument(
        '--models',
        nargs='+',
        default=list(published_results.NETWORKS),
        help=f"from {', '.join(known_networks())}; default: all of the paper's",
    )


def read_networks(names: Iterable[str]) -> dict[str, Options]:
    """Return name → :func:`read_network` for distinct names."""
    return {name: read_network(name) for name in dict.fromkeys(names)}


def read_network(name: str) -> Options:
    """Return the model type, network, losses and learning rates of a network.

    Args:
        name: one of :func:`known_networks`.

    Raises:
        ConfigError: if there is no such file, or its network cannot be constructed.
        InstallationError: if the network is part of an extra that is not installed.
    """
    check_known(name, known_networks(), '--models:')
    file = FOLDER / f'{name}.yml'
    network = read_options(file)
    check_network(network, str(file))
    return network


def check_network(network: Options, where: str) -> None:
    """Check that the options of a network are complete and hold nothing else.

    Args:
        network: the options.
        where: their place, for messages.

    Raises:
        ConfigError: if an option is missing, unknown or invalid.
        InstallationError: if the network is part of an extra that is not installed.
    """
    if network.keys() != set(NETWORK_KEYS):
        raise ConfigError(f'{where}: expected {", ".join(NETWORK_KEYS)} and nothing else, got {", ".join(network)}')
    check_known(network['model_type'], MODELS, f'{where}: model_type')
    model = MODELS[network['model_type']]
    phases = [name for name in model.phase_names if name in network['train'] or name not in model.optional_phases]
    blocks = [network['train'].get(phase) for phase in phases] if phases else [network['train']]
    for block in blocks:
        if not isinstance(block, dict) or set(block.get('optim_g') or ()) != {'lr'}:
            in_each = f' in each of {", ".join(phases)}' if phases else ''
            raise ConfigError(f'{where}: train: expected optim_g: {{lr: NUMBER}} and losses{in_each}')
        ratio = block.get('phase_ratio', 1)
        if not isinstance(ratio, int | float) or not ratio > 0:
            raise ConfigError(f'{where}: train: phase_ratio must be a number above 0, got {ratio!r}')
    known = (*RECIPE_KEYS, *(phases or ('optim_g',)))
    unknown = [key for key in network['train'] if key not in known and not key.endswith('_opt')]
    if unknown:
        raise ConfigError(
            f'{where}: train.{unknown[0]} does not belong there; set it in the option file, for all networks'
        )
    with torch.device('meta'):
        constructed = construct(network['network_g'], ARCH_REGISTRY, f'{where}: network_g')
    if hasattr(constructed, 'licence_notice'):
        print(constructed.licence_notice)


def read_task(path: Path) -> Options:
    """Return an option file with absolute paths, after checking that a comparison can use it.

    Args:
        path: the option file.

    Raises:
        ConfigError: if the option file is invalid, has no final test set, or its tiles are not packed yet.
    """
    opt = read_options(path)
    validate_schema(opt, path, is_train=True)
    resolve_paths(opt, ROOT)
    check_known(opt['model_type'], MODELS, f'{path}: model_type')
    final_test = {bool(d.get('final_test')) for name, d in opt['datasets'].items() if name.startswith('val')}
    if final_test != {True, False} or not isinstance(opt.get('val'), dict):
        raise ConfigError(
            f'{path}: a comparison needs datasets.val, to select the best network, and datasets.val_test with '
            'final_test: true, to score it'
        )
    for name, dataset in opt['datasets'].items():
        for key, root in dataset.items():
            if key.startswith('dataroot') and not Path(str(root)).exists():
                raise ConfigError(
                    f'{path}: datasets.{name}: {root} has no tiles yet; pack them: {_prepare_command(path)}'
                )
        dataset['phase'] = name.split('_')[0]
    opt.setdefault('manual_seed', 0)
    check_options({**opt, 'is_train': True, 'num_gpu': int(uses_gpu(opt))})
    selection = opt['val'].setdefault('selection_metric', SELECTION_METRIC)
    check_known(selection, opt['val'].get('metrics') or {}, f'{path}: val.selection_metric')
    scheduler = shared_training(opt)[0].get('scheduler') or {}
    if scheduler.keys() & {'periods', 'milestones'}:
        raise ConfigError(f'{path}: a comparison needs a scheduler without periods and milestones')
    for dataset in opt['datasets'].values():
        del dataset['phase']
    return opt


def _prepare_command(path: Path) -> str:
    """Return the command that packs the dataset of an option file, from the comment at the top of the file."""
    lines = (line.lstrip('# ') for line in path.read_text(encoding='utf-8').splitlines())
    return next((line for line in lines if line.startswith(PREPARE)), f'{PREPARE} NAME --source FOLDER')


def uses_gpu(opt: Options) -> bool:
    """Return whether to train on a GPU: on one at most, which keeps the batch size of the option file."""
    return opt.get('num_gpu') != 0 and torch.cuda.is_available()


def device_for(opt: Options) -> torch.device:
    """Return the device for training and inference."""
    return torch.device('cuda' if uses_gpu(opt) else 'cpu')


def with_batch_size(task: Options, batch: int | None) -> Options:
    """Return a task with another batch size and the same number of epochs; unchanged if ``batch`` is None."""
    if batch is None:
        return task
    task = copy.deepcopy(task)
    train_set = task['datasets']['train']
    factor = train_set['batch_size_per_gpu'] / batch
    train_set['batch_size_per_gpu'] = batch
    for block in (task['train'], *(value for value in task['train'].values() if isinstance(value, Mapping))):
        for key in ('total_iter', 'iters'):
            if key in block:
                block[key] = round(block[key] * factor)
    for block, key in ((task['val'], 'val_freq'), (task['logger'], 'save_checkpoint_freq')):
        block[key] = max(1, round(block[key] * factor))
    return task


def shared_training(task: Options) -> tuple[Options, int]:
    """Return the training options that all networks share, and the iterations of a phase of ratio 1.

    The optimizer (without its learning rate), the scheduler and the iterations are those of the longest phase of the
    option file, the last of equally long ones.

    Args:
        task: the option file.
    """
    phases = _phase_names(task)
    blocks = [task['train'][name] for name in reversed(phases)] or [task['train']]
    block = max(blocks, key=lambda phase: phase['iters'] if phases else 0)
    shared = {key: value for key, value in task['train'].items() if key not in (*phases, *PER_NETWORK_KEYS)}
    shared = {key: value for key, value in shared.items() if not key.endswith('_opt')}
    shared['optim_g'] = {key: value for key, value in block['optim_g'].items() if key != 'lr'}
    if block.get('scheduler'):
        shared['scheduler'] = block['scheduler']
    return shared, block['iters' if phases else 'total_iter']


def training_options(task: Options, network: Options, iters: int) -> Options:
    """Return an option file for ``basicsr/train.py`` that trains a network on a task.

    Args:
        task: the option file of the task.
        network: options of the network.
        iters: iterations of a phase of ratio 1.
    """
    opt, network = copy.deepcopy(task), copy.deepcopy(network)
    shared, _ = shared_training(opt)
    common = {key: shared.pop(key) for key in ('optim_g', 'scheduler') if key in shared}
    lengths = phase_iterations(network, iters)
    for name, length in lengths.items():
        block = network['train'][name] if name else network['train']
        block.pop('phase_ratio', None)
        block.update({**common, 'optim_g': {**common['optim_g'], **block['optim_g']}})
        if name:
            block['iters'] = length
    network['train']['total_iter'] = sum(lengths.values())
    opt.update({**network, 'train': {**shared, **network['train']}})
    opt['num_gpu'] = int(uses_gpu(opt))
    opt['path'] = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}
    return opt


def phase_ratios(network: Options) -> dict[str | None, float]:
    """Return phase → its length relative to a phase of the paper's recipe; the key is None for a single phase."""
    return {name: network['train'][name].get('phase_ratio', 1) for name in _phase_names(network)} or {None: 1}


def phase_iterations(network: Options, iters: int) -> dict[str | None, int]:
    """Return phase, as in :func:`phase_ratios` → its iterations, ``iters`` for a phase of ratio 1."""
    return {name: max(1, round(iters * ratio)) for name, ratio in phase_ratios(network).items()}


def _phase_names(options: Options) -> list[str]:
    """Return the phases for which an option file, or the file of a network, has a block."""
    return [name for name in MODELS[options['model_type']].phase_names if name in options['train']]


def dataset_options(task: Options, split: str) -> Options:
    """Return the dataset options of ``'train'``, ``'val'`` (which selects the best network) or ``'test'``."""
    if split == 'train':
        return task['datasets']['train']
    blocks = [block for name, block in task['datasets'].items() if name.startswith('val')]
    return next(block for block in blocks if bool(block.get('final_test')) == (split == 'test'))


def dataset_digest(dataset: Mapping[str, Any]) -> tuple[int, str]:
    """Return the number of tiles of a dataset, and the SHA-256 digest of their keys and pixels."""
    digest, count = hashlib.sha256(), 0
    for side in ('gt', 'lq'):
        root = dataset.get(f'dataroot_{side}')
        if root:
            store = TileStore(root)
            count = len(store)
            for key in tqdm(store.keys, desc=f'reading {root}', unit='tile', leave=False):
                digest.update(f'{side}/{key}'.encode())
                digest.update(store[key].tobytes())
    return count, digest.hexdigest()
