"""The networks that are compared: a file each under options/networks, joined with an option file that holds for all."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import lnca_model  # noqa: F401  registers the plug-in
from lnca_arch.errors import InputError, check_known, construct
from lnca_data.lmdb_store import TileStore
from lnca_model.pipeline import check_blocks, find_paths, read_options

from basicsr.utils.registry import ARCH_REGISTRY, MODEL_REGISTRY

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'options' / 'networks'
PREPARE = 'python datasets/prepare.py'
# What an option file says of its own network, and the comparison of none.
OF_ONE_NETWORK = ('optim_g', 'scheduler', 'total_iter', 'iters')

Options = dict[str, Any]


def known_networks() -> list[str]:
    """Names that ``--models`` takes."""
    return sorted(file.stem for file in FOLDER.glob('*.yml'))


def read_network(name: str) -> Options:
    """The model type, network, losses and rates of a network.

    Raises:
        InputError: there is no such file, or what it says makes no network.
        InstallationError: the network comes with an extra that is not installed.
    """
    check_known(name, known_networks(), '--models:')
    network = read_options(FOLDER / f'{name}.yml')
    with torch.device('meta'):
        construct(network['network_g'], ARCH_REGISTRY, f'{name}.yml: network_g')
    return network


def read_task(path: Path) -> Options:
    """An option file, its paths found, its tiles there.

    Raises:
        InputError: it is not one, has no test set that is scored at the end, or its tiles are not packed yet.
    """
    opt = read_options(path)
    check_blocks(opt, path, is_train=True)
    find_paths(opt, ROOT)
    kinds = [name.split('_')[0] for name in opt['datasets']]
    if kinds.count('val') < 2 or not any(dataset.get('at_end') for dataset in opt['datasets'].values()):
        raise InputError(
            f'{path}: a comparison needs datasets.val, to choose the best network by, and datasets.val_test with '
            'at_end: true, to score it on'
        )
    for name, dataset in opt['datasets'].items():
        for key, root in dataset.items():
            if key.startswith('dataroot') and not Path(str(root)).exists():
                raise InputError(f'{path}: datasets.{name}: {root} has no tiles yet; pack them: {_prepare_line(path)}')
    return opt


def with_batch(task: Options, batch: int) -> Options:
    """A task in batches of another size, for as many epochs as before."""
    task = copy.deepcopy(task)
    train_set = task['datasets']['train']
    factor = train_set['batch_size_per_gpu'] / batch
    train_set['batch_size_per_gpu'] = batch
    for block in (task['train'], *(value for value in task['train'].values() if isinstance(value, Mapping))):
        for key in ('total_iter', 'iters'):
            if key in block:
                block[key] = round(block[key] * factor)
    task['val']['val_freq'] = round(task['val']['val_freq'] * factor)
    task['logger']['save_checkpoint_freq'] = round(task['logger']['save_checkpoint_freq'] * factor)
    return task


def _prepare_line(path: Path) -> str:
    """The command that packs what an option file reads; it stands at the file's top."""
    lines = (line.lstrip('# ') for line in path.read_text(encoding='utf-8').splitlines())
    return next((line for line in lines if line.startswith(PREPARE)), f'{PREPARE} NAME --source FOLDER')


def shared_training(task: Options) -> tuple[Options, int]:
    """What holds for every network of an option file's ``train:`` block, its optimiser without the rate, and the
    iterations of a phase, of the last one if there are several."""
    phases = getattr(MODEL_REGISTRY.get(task['model_type']), 'phase_names', ())
    block = task['train'][phases[-1]] if phases else task['train']
    shared = {key: value for key, value in task['train'].items() if key not in (*phases, *OF_ONE_NETWORK)}
    shared = {key: value for key, value in shared.items() if not key.endswith('_opt')}
    shared['optim_g'] = {key: value for key, value in block['optim_g'].items() if key != 'lr'}
    if block.get('scheduler'):
        shared['scheduler'] = block['scheduler']
    return shared, block['iters' if phases else 'total_iter']


def options_for(task: Options, network: Options, iters: int) -> Options:
    """An option file of a task for a network, with ``iters`` iterations a phase: what basicsr/train.py takes."""
    opt, network = copy.deepcopy(task), copy.deepcopy(network)
    shared, _ = shared_training(opt)
    common = {key: shared.pop(key) for key in ('optim_g', 'scheduler') if key in shared}
    phases = MODEL_REGISTRY.get(network['model_type']).phase_names
    for name in phases or (None,):
        block = network['train'][name] if name else network['train']
        block.update({**common, 'optim_g': {**common['optim_g'], **block['optim_g']}})
        block['iters' if name else 'total_iter'] = iters
    if phases:
        network['train']['total_iter'] = iters * len(phases)
    opt.update({**network, 'train': {**shared, **network['train']}})
    opt['path'] = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}
    return opt


def phase_count(network: Options) -> int:
    """Phases in which a network trains."""
    return len(MODEL_REGISTRY.get(network['model_type']).phase_names) or 1


def dataset_of(task: Options, kind: str) -> Options:
    """The block of the ``'train'``, ``'val'`` (which chooses the best network) or ``'test'`` tiles."""
    if kind == 'train':
        return task['datasets']['train']
    blocks = [block for name, block in task['datasets'].items() if name.startswith('val')]
    return next(block for block in blocks if bool(block.get('at_end')) == (kind == 'test'))


def fingerprint(dataset: Mapping[str, Any]) -> tuple[int, str]:
    """Number of tiles, and SHA-256 of the keys and bytes of all of them."""
    digest, count = hashlib.sha256(), 0
    for side in ('gt', 'lq'):
        root = dataset.get(f'dataroot_{side}')
        if root:
            store = TileStore(root)
            count = len(store.keys)
            for key in tqdm(store.keys, desc=f'reading {root}', unit='tile', leave=False):
                digest.update(f'{side}/{key}'.encode())
                digest.update(store[key].tobytes())
    return count, digest.hexdigest()
