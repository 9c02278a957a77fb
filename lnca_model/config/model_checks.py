"""Checks of a model's options: network, checkpoint, phases, losses and metrics."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lnca_data.corruptions import build_corruption
from lnca_data.io.lmdb_store import image_sizes
from lnca_model.metrics import check_sizes
from lnca_model.training.optimizers import OPTIMIZERS, build_scheduler
from lnca_model.training.phases import Phase, phases_of
from lnca_utils import checkpoint
from lnca_utils.errors import ConfigError, LNCAError
from lnca_utils.option_checks import check_all, check_known, construct

from basicsr.utils.registry import ARCH_REGISTRY, METRIC_REGISTRY

if TYPE_CHECKING:
    from lnca_model.models.restoration_model import RestorationModel

Options = Mapping[str, Any]


def check_model(model: 'type[RestorationModel]', opt: Options) -> None:
    """Check the options of a model.

    Args:
        model: the class of the model.
        opt: options that passed :func:`lnca_model.config.checks.validate_schema`.

    Raises:
        LNCAError: if the model could not be created or trained, with one line per mistake.
    """
    check_all(_checks(model, opt))


def _checks(model: 'type[RestorationModel]', opt: Options) -> Iterator[Callable[[], object]]:
    """Yield functions that raise LNCAError if a check fails."""
    yield partial(_check_network, model, opt)
    validation = opt.get('val') or {}
    metrics = validation.get('metrics') or {}
    for name, options in metrics.items():
        yield partial(check_known, options.get('type'), METRIC_REGISTRY.keys(), f'val.metrics.{name}: type')
        yield partial(check_sizes, options, validation_sizes(opt), f'val.metrics.{name}')
    if opt['is_train']:
        if selected := validation.get('selection_metric'):
            yield partial(check_known, selected, metrics, 'val.selection_metric:')
        for phase in phases_of(opt['train'], model.phase_names):
            yield partial(_check_phase, model, phase, opt)
        yield partial(_check_corruption, opt['datasets'].get('train', {}))


def _check_network(model: 'type[RestorationModel]', opt: Options) -> None:
    with torch.device('meta'):  # without time and memory for the parameters
        network = construct(opt['network_g'], ARCH_REGISTRY, 'network_g')
    pretrained_weights(network, opt)
    model.check_network(network, opt)


def pretrained_weights(network: nn.Module, opt: Options) -> checkpoint.Weights:
    """Return the weights that a network loads from ``path.pretrain_network_g``; empty if no checkpoint is named.

    Args:
        network: the network; only the names and shapes of its parameters matter.
        opt: the options.

    Raises:
        CheckpointError: if the checkpoint cannot be read or does not match the network.
    """
    paths = opt['path']
    if not paths.get('pretrain_network_g'):
        return {}
    return checkpoint.read_weights(
        network, paths['pretrain_network_g'], paths.get('strict_load_g', True), paths.get('param_key_g', 'params')
    )


def _check_phase(model: 'type[RestorationModel]', phase: Phase, opt: Options) -> None:
    parameters = [nn.Parameter(torch.ones(1))]
    optimizer = construct(phase.options.get('optim_g'), OPTIMIZERS.items(), f'{phase.where}.optim_g', parameters)
    build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
    for name, loss in model.build_losses(phase).items():
        least_side = getattr(loss, 'least_side', 1)
        for height, width in sorted(training_sizes(opt)):
            if min(height, width) < least_side:
                raise ConfigError(
                    f'{phase.where}.{name}_opt: {type(loss).__name__} needs images of at least '
                    f'{least_side}×{least_side} pixels, datasets.train has {height}×{width}; choose another loss, or '
                    'pack the dataset with a larger --tile-size'
                )
    model.check_phase(phase, opt)


def _check_corruption(train_set: Options) -> None:
    """Raise ConfigError unless the training set has pairs or a valid corruption."""
    if train_set.get('corruption'):
        build_corruption(train_set['corruption'])
    elif not train_set.get('dataroot_lq'):
        raise ConfigError(
            'datasets.train: with no dataroot_lq a corruption is needed, such as corruption: {type: noise}'
        )


def training_sizes(opt: Options) -> set[tuple[int, int]]:
    """Return the known heights and widths of training images: ``gt_size`` if set, else the sizes in an LMDB."""
    train_set = opt['datasets'].get('train', {})
    if train_set.get('gt_size'):
        return {(train_set['gt_size'], train_set['gt_size'])}
    return _stored_sizes(train_set)


def validation_sizes(opt: Options) -> set[tuple[int, int]]:
    """Return the known heights and widths of validation images: the sizes in LMDBs."""
    scored = (dataset for name, dataset in opt['datasets'].items() if name != 'train')
    return set().union(*(_stored_sizes(dataset) for dataset in scored))


def _stored_sizes(dataset: Options) -> set[tuple[int, int]]:
    root = str(dataset.get('dataroot_gt'))
    with contextlib.suppress(LNCAError):  # LMDB errors are reported by the dataset check
        return image_sizes(root) if root.endswith('.lmdb') else set()
    return set()
