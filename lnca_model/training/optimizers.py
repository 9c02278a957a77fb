"""Optimizers, learning-rate schedules and gradient normalisation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lnca_utils.errors import ConfigError
from lnca_utils.option_checks import construct

from basicsr.models.lr_scheduler import CosineAnnealingRestartLR, MultiStepRestartLR


def _unsupported(reason: str) -> Callable[..., Optimizer]:
    def refuse(*_: object, **__: object) -> Optimizer:
        raise ValueError(f'does not work here, since it {reason}; use Adam, for example')

    return refuse


# BasicSR 1.4.2 has Adam only.
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
} | {
    'LBFGS': _unsupported('computes the losses several times per step'),
    'SparseAdam': _unsupported('takes sparse gradients only'),
}
#: Hyperparameter of an optimizer → entry of the state that exists only if it is set.
STATE_OF = {'amsgrad': 'max_exp_avg_sq', 'centered': 'grad_avg', 'momentum': 'momentum_buffer'}
SCHEDULERS = {
    'CosineAnnealingRestartLR': CosineAnnealingRestartLR,
    'MultiStepLR': MultiStepRestartLR,
    'MultiStepRestartLR': MultiStepRestartLR,
}


def build_scheduler(options: Mapping[str, Any] | None, where: str, optimizer: Optimizer, iters: int) -> LRScheduler:
    """Create a learning-rate schedule that is stepped once per iteration.

    Args:
        options: as in BasicSR. A cosine without ``periods`` spans the whole phase. None means a cosine to 0.
        where: the block's place in the option file, for messages.
        optimizer: the optimizer.
        iters: length of the phase, in iterations.

    Raises:
        ConfigError: if the type or an argument is unknown or invalid, or the periods end before the phase.
    """
    options = {'type': 'CosineAnnealingRestartLR'} if options is None else dict(options)
    if options.get('type') == 'CosineAnnealingRestartLR':
        periods = options.setdefault('periods', [max(iters, 1)])
        if isinstance(periods, list) and all(isinstance(period, int) for period in periods) and sum(periods) < iters:
            raise ConfigError(f'{where}: periods {periods} end before the phase, which has {iters:,} iterations')
    return construct(options, SCHEDULERS.items(), where, optimizer)


def load_optimizer_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the state of an optimizer, but keep the hyperparameters that it was created with.

    The learning rate is the saved one, scaled if the initial learning rate has changed.

    Args:
        optimizer: a new optimizer with its schedule.
        saved: the ``state_dict`` of an optimizer of the same class.
    """
    hyperparameters = [{name: value for name, value in g.items() if name != 'params'} for g in optimizer.param_groups]
    optimizer.load_state_dict(dict(saved))
    for group, own in zip(optimizer.param_groups, hyperparameters, strict=True):
        rate = group['lr'] * (own['initial_lr'] / group['initial_lr'])
        group.update(own, lr=rate)
        needed = [state for name, state in STATE_OF.items() if group.get(name)]
        for parameter in group['params']:
            if state := optimizer.state.get(parameter):
                for name in needed:
                    state.setdefault(name, torch.zeros_like(parameter))


def normalize_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Divide the gradient of each parameter by its L2 norm + 1e-8, so that gradients have equal norms."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        norms = torch._foreach_norm(gradients)
        torch._foreach_add_(norms, 1e-8)
        torch._foreach_div_(gradients, norms)
