"""Optimisers, schedules and the gradients' normalisation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import construct

from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR


def _unsuitable(reason: str) -> Callable[..., Optimizer]:
    def refuse(*_: object, **__: object) -> Optimizer:
        raise ValueError(f'does not work here, since it {reason}; use Adam, for example')

    return refuse


# BasicSR 1.4.2 knows Adam alone.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
} | {
    'LBFGS': _unsuitable('computes the losses several times a step'),
    'SparseAdam': _unsuitable('takes sparse gradients alone'),
}
SCHEDULERS = {
    'CosineAnnealingRestartLR': CosineAnnealingRestartLR,
    'MultiStepLR': MultiStepRestartLR,
    'MultiStepRestartLR': MultiStepRestartLR,
}


def build_optimizer(options: Mapping[str, Any], where: str, parameters: Iterable[nn.Parameter]) -> Optimizer:
    """An optimiser of torch.optim from ``{type: Adam, lr: 0.01, ...}``.

    Raises:
        ConfigError: a type that is unknown or does not work here, or arguments that do not suit it.
    """
    return construct(options, OPTIMIZERS.items(), where, list(parameters))


def build_scheduler(options: Mapping[str, Any] | None, where: str, optimizer: Optimizer, iters: int) -> LRScheduler:
    """A schedule of the learning rate, stepped once an iteration.

    Args:
        options: as in BasicSR; a cosine without ``periods`` falls over the whole phase. None is a cosine to 0.
        where: the block's place in the option file, for messages.
        optimizer: whose rate.
        iters: length of the phase, in iterations.

    Raises:
        ConfigError: unknown type, periods that end before the phase, or arguments that do not suit it.
    """
    options = {'type': 'CosineAnnealingRestartLR'} if options is None else dict(options)
    if options.get('type') == 'CosineAnnealingRestartLR':
        periods = options.setdefault('periods', [max(iters, 1)])
        if isinstance(periods, list) and all(isinstance(period, int) for period in periods) and sum(periods) < iters:
            raise ConfigError(f'{where}: periods {periods} end before the phase, which has {iters:,} iterations')
    return construct(options, SCHEDULERS.items(), where, optimizer)


def normalize_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Divide each parameter's gradient by its L2 norm (+ 1e-8), so that every tensor takes steps of one size."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        norms = torch._foreach_norm(gradients)
        torch._foreach_add_(norms, 1e-8)
        torch._foreach_div_(gradients, norms)
