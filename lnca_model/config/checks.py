"""Reading and checking of a run's options, before anything is created."""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from lnca_data.io.lmdb_store import check_pair
from lnca_model.config import schema
from lnca_model.config.model_checks import check_model
from lnca_model.config.yaml_options import (
    Options,
    add_derived_dataset_options,
    add_derived_options,
    apply_overrides,
    check_blocks,
    read_options,
)
from lnca_model.models.restoration_model import RestorationModel
from lnca_utils.errors import ConfigError, LNCAError
from lnca_utils.option_checks import check_all, check_known

from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY


def load_options(args: argparse.Namespace, root: Path, is_train: bool) -> Options:
    """Read, complete and check the options of a run.

    Args:
        args: from :func:`lnca_model.config.yaml_options.read_command_line`.
        root: folder that relative paths are resolved against and that results are written to.
        is_train: whether the run is a training.

    Raises:
        LNCAError: if the options, or a checkpoint or dataset that they name, are invalid; one line per mistake.
    """
    opt = read_options(args.opt)
    apply_overrides(opt, args.force_yml)
    try:
        validate_schema(opt, args.opt, is_train)
    except LNCAError:
        check_all([partial(validate_schema, opt, args.opt, is_train), partial(_check_valid_datasets, opt, root)])
    add_derived_options(opt, args, root, is_train)
    check_options(opt)
    opt['root_path'] = str(root)
    return opt


def is_ours(model_type: object) -> bool:
    """Return whether a ``model_type`` is one of the plug-in's models."""
    model = dict(iter(MODEL_REGISTRY)).get(model_type)
    return isinstance(model, type) and issubclass(model, RestorationModel)


def validate_schema(opt: Options, path: str | Path, is_train: bool) -> None:
    """Raise ConfigError, with one line per mistake, unless options are complete and fit the schema.

    Args:
        opt: the options.
        path: their file, for messages.
        is_train: whether they are for a training.
    """
    check_blocks(opt, path, is_train)
    check_known(opt['model_type'], MODEL_REGISTRY.keys(), 'model_type:')
    if is_ours(opt['model_type']):
        schema.check(opt)


def _check_valid_datasets(opt: Options, root: Path) -> None:
    """Check the datasets that fit the schema in options that do not, so that all mistakes are reported at once."""
    datasets = copy.deepcopy(schema.valid_datasets(opt))
    add_derived_dataset_options({**opt, 'path': {}, 'datasets': datasets}, root)
    check_all(partial(_check_dataset, name, dataset) for name, dataset in datasets.items())


def check_options(opt: Options) -> None:
    """Check what the schema does not cover: datasets, model, GPUs and data loading.

    Args:
        opt: options that passed :func:`validate_schema`.

    Raises:
        LNCAError: if a check fails, with one line per mistake.
    """
    model = MODEL_REGISTRY.get(opt['model_type'])
    checks: list[Callable[[], object]] = [
        partial(_check_dataset, name, dataset) for name, dataset in opt['datasets'].items()
    ]
    if is_ours(opt['model_type']):
        checks.append(partial(check_model, model, opt))
    checks.append(partial(_check_gpus, opt['num_gpu']))
    if opt['is_train']:
        checks.append(partial(_check_loading, opt))
    check_all(checks)


def _check_gpus(requested: int) -> None:
    available = torch.cuda.device_count()
    if requested > available:
        raise ConfigError(f'num_gpu: {requested} requested, {available} available; auto uses all, 0 trains on the CPU')


def _check_loading(opt: Options) -> None:
    """Raise ConfigError for options that BasicSR's loaders do not accept."""
    train = opt['datasets']['train']
    for name in opt['datasets']:
        if name != 'train' and name.split('_')[0] != 'val':
            raise ConfigError(
                f'datasets.{name}: only datasets named val_… are scored in training; name it val_…, with final_test: '
                'true to score it once, at the end'
            )
    if train.get('persistent_workers') and not train.get('num_worker_per_gpu'):
        raise ConfigError(
            'datasets.train.persistent_workers: there are no workers; set num_worker_per_gpu, or leave it out'
        )
    if train.get('prefetch_mode') == 'cuda' and not (train.get('pin_memory') and opt['num_gpu']):
        raise ConfigError('datasets.train.prefetch_mode: cuda needs a GPU and pin_memory: true')
    if opt.get('val') and 'val_freq' not in opt['val']:
        raise ConfigError('val.val_freq is missing; set the number of iterations between validations')


def _check_dataset(name: str, options: Options) -> None:
    check_known(options.get('type'), DATASET_REGISTRY.keys(), f'datasets.{name}: type')
    check = getattr(DATASET_REGISTRY.get(options['type']), 'check_options', None)
    if check is not None:
        check(options)
        return
    if options['type'] == 'PairedImageDataset':
        for key in ('dataroot_gt', 'dataroot_lq', 'io_backend'):
            if not options.get(key):
                raise ConfigError(f'datasets.{name}.{key} is missing; PairedImageDataset needs it')
        if 'scale' not in options:
            raise ConfigError(f'datasets.{name}: PairedImageDataset needs a scale; set scale: 1, beside model_type')
    if {'dataroot_gt', 'dataroot_lq'} <= options.keys() and (options.get('io_backend') or {}).get('type') == 'lmdb':
        check_pair(options['dataroot_gt'], options['dataroot_lq'])
