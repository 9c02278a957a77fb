"""The networks that are compared: a file each under options/networks, joined with an option file that holds for all."""

import argparse
import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
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
# What an option file says of its own network, and the comparison of none.
OWN = ('model_type', 'network_g', 'train')
OF_ONE_NETWORK = ('optim_g', 'scheduler', 'total_iter', 'iters')
OF_A_RECIPE = ('ema_decay',)  # what a network's file may say of its whole training

MODELS = {name: model for name, model in MODEL_REGISTRY if issubclass(model, RestorationModel)}

Options = dict[str, Any]


def known_networks() -> list[str]:
    """Names that ``--models`` takes."""
    return sorted(file.stem for file in FOLDER.glob('*.yml'))


def add_models_option(parser: argparse.ArgumentParser) -> None:
    """Have a command take ``--models``, for :func:`read_networks`."""
    parser.add_argument(
        '--models',
        nargs='+',
        default=list(published_results.NETWORKS),
        help=f'of {", ".join(known_networks())}; all of the paper',
    )


def read_networks(names: Iterable[str]) -> dict[str, Options]:
    """Name → what :func:`read_network` says of it, each once."""
    return {name: read_network(name) for name in dict.fromkeys(names)}


def read_network(name: str) -> Options:
    """The model type, network, losses and rates of a network.

    Raises:
        ConfigError: there is no such file, or what it says makes no network.
        InstallationError: the network comes with an extra that is not installed.
    """
    check_known(name, known_networks(), '--models:')
    file = FOLDER / f'{name}.yml'
    network = read_options(file)
    check_network(network, str(file))
    return network


def check_network(network: Options, where: str) -> None:
    """Raise an error as :func:`read_network` does unless a network is described in full, and nothing else is."""
    if network.keys() != set(OWN):
        raise ConfigError(f'{where}: expected {", ".join(OWN)} and nothing else, got {", ".join(network)}')
    check_known(network['model_type'], MODELS, f'{where}: model_type')
    model = MODELS[network['model_type']]
    phases = [name for name in model.phase_names if name in network['train'] or name not in model.optional_phases]
    blocks = [network['train'].get(phase) for phase in phases] if phases else [network['train']]
    for block in blocks:
        if not isinstance(block, dict) or set(block.get('optim_g') or ()) != {'lr'}:
            raise ConfigError(f'{where}: train: expected optim_g: {{lr: NUMBER}} and losses{_in_each(phases)}')
        share = block.get('share', 1)
        if not isinstance(share, int | float) or not share > 0:
            raise ConfigError(f'{where}: train: a share of the iterations of a phase must be above 0, got {share!r}')
    known = (*OF_A_RECIPE, *(phases or ('optim_g',)))
    stray = [key for key in network['train'] if key not in known and not key.endswith('_opt')]
    if stray:
        raise ConfigError(f'{where}: train.{stray[0]} does not belong there: it holds for all networks, or for none')
    with torch.device('meta'):
        made = construct(network['network_g'], ARCH_REGISTRY, f'{where}: network_g')
    if hasattr(made, 'licence_notice'):
        print(made.licence_notice)


def _in_each(phases: Sequence[str]) -> str:
    return f' in each of {", ".join(phases)}' if phases else ''


def read_task(path: Path) -> Options:
    """An option file, its paths found, its tiles there.

    Raises:
        ConfigError: it is not one, has no test set that is scored at the end, or its tiles are not packed yet.
    """
    opt = read_options(path)
    validate_schema(opt, path, is_train=True)
    resolve_paths(opt, ROOT)
    check_known(opt['model_type'], MODELS, f'{path}: model_type')
    final_test = {bool(d.get('final_test')) for name, d in opt['datasets'].items() if name.startswith('val')}
    if final_test != {True, False} or not isinstance(opt.get('val'), dict):
        raise ConfigError(
            f'{path}: a comparison needs datasets.val, to choose the best network by, and datasets.val_test with '
            'final_test: true, to score it on'
        )
    for name, dataset in opt['datasets'].items():
        for key, root in dataset.items():
            if key.startswith('dataroot') and not Path(str(root)).exists():
                raise ConfigError(f'{path}: datasets.{name}: {root} has no tiles yet; pack them: {_prepare_line(path)}')
        dataset['phase'] = name.split('_')[0]
    opt.setdefault('manual_seed', 0)
    check_options({**opt, 'is_train': True, 'num_gpu': int(uses_gpu(opt))})
    selection = opt['val'].setdefault('selection_metric', SELECTION_METRIC)
    check_known(selection, opt['val'].get('metrics') or {}, f'{path}: val.selection_metric')
    scheduler = shared_training(opt)[0].get('scheduler') or {}
    if scheduler.keys() & {'periods', 'milestones'}:
        raise ConfigError(f'{path}: a comparison needs a schedule that falls over the whole phase, without periods')
    for dataset in opt['datasets'].values():
        del dataset['phase']
    return opt


def uses_gpu(opt: Options) -> bool:
    """Whether a network trains on a GPU: one, also where there are more, so that a batch is as large as it says."""
    return opt.get('num_gpu') != 0 and torch.cuda.is_available()


def device_of(opt: Options) -> torch.device:
    """Where a network trains and restores."""
    return torch.device('cuda' if uses_gpu(opt) else 'cpu')


def with_batch(task: Options, batch: int | None) -> Options:
    """A task in batches of another size, unless that is None, for as many epochs as before."""
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


def _prepare_line(path: Path) -> str:
    """The command that packs what an option file reads; it stands at the file's top."""
    lines = (line.lstrip('# ') for line in path.read_text(encoding='utf-8').splitlines())
    return next((line for line in lines if line.startswith(PREPARE)), f'{PREPARE} NAME --source FOLDER')


def shared_training(task: Options) -> tuple[Options, int]:
    """What holds for every network of an option file's ``train:`` block, its optimiser without the rate, and the
    iterations of a phase, of the longest if there are several, the last of equals."""
    phases = _phases_in(task)
    blocks = [task['train'][name] for name in reversed(phases)] or [task['train']]
    block = max(blocks, key=lambda phase: phase['iters'] if phases else 0)
    shared = {key: value for key, value in task['train'].items() if key not in (*phases, *OF_ONE_NETWORK)}
    shared = {key: value for key, value in shared.items() if not key.endswith('_opt')}
    shared['optim_g'] = {key: value for key, value in block['optim_g'].items() if key != 'lr'}
    if block.get('scheduler'):
        shared['scheduler'] = block['scheduler']
    return shared, block['iters' if phases else 'total_iter']


def options_for(task: Options, network: Options, iters: int) -> Options:
    """An option file of a task for a network, with ``iters`` iterations in a phase of share 1: what basicsr/train.py
    takes."""
    opt, network = copy.deepcopy(task), copy.deepcopy(network)
    shared, _ = shared_training(opt)
    common = {key: shared.pop(key) for key in ('optim_g', 'scheduler') if key in shared}
    lengths = lengths_of(network, iters)
    for name, length in lengths.items():
        block = network['train'][name] if name else network['train']
        block.pop('share', None)
        block.update({**common, 'optim_g': {**common['optim_g'], **block['optim_g']}})
        if name:
            block['iters'] = length
    network['train']['total_iter'] = sum(lengths.values())
    opt.update({**network, 'train': {**shared, **network['train']}})
    opt['num_gpu'] = int(uses_gpu(opt))
    opt['path'] = {'pretrain_network_g': None, 'strict_load_g': True, 'resume_state': None}
    return opt


def shares_of(network: Options) -> dict[str | None, float]:
    """The phases in which a network trains, None for one without a name → its share: how long it is, a phase of the
    paper's recipe being 1."""
    return {name: network['train'][name].get('share', 1) for name in _phases_in(network)} or {None: 1}


def lengths_of(network: Options, iters: int) -> dict[str | None, int]:
    """The phases as in :func:`shares_of` → their iterations, of which a phase of share 1 has ``iters``."""
    return {name: max(1, round(iters * share)) for name, share in shares_of(network).items()}


def _phases_in(options: Options) -> list[str]:
    """The phases that an option file, or a network's, has a block of."""
    return [name for name in MODELS[options['model_type']].phase_names if name in options['train']]


def dataset_of(task: Options, kind: str) -> Options:
    """The block of the ``'train'``, ``'val'`` (which chooses the best network) or ``'test'`` tiles."""
    if kind == 'train':
        return task['datasets']['train']
    blocks = [block for name, block in task['datasets'].items() if name.startswith('val')]
    return next(block for block in blocks if bool(block.get('final_test')) == (kind == 'test'))


def fingerprint(dataset: Mapping[str, Any]) -> tuple[int, str]:
    """Number of tiles, and SHA-256 of the keys and bytes of all of them."""
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
