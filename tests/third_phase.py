"""Options of a training that has a third phase, which the paper does not have."""

import copy
from typing import Any


def with_joint_phase(opt: dict[str, Any], iters: int = 3) -> dict[str, Any]:
    """Return options with ``iters`` iterations of ``train.joint``, with every loss that the phase supports."""
    opt = copy.deepcopy(opt)
    automaton = opt['train']['automaton']
    names = ('optim_g', 'reconstruction_opt', 'output_overflow_opt', 'hidden_overflow_opt')
    opt['train']['joint'] = {
        'iters': iters,
        'ssim_opt': {'type': 'SSIMLoss'},
        **{name: copy.deepcopy(automaton[name]) for name in names},
    }
    opt['train']['total_iter'] += iters
    return opt
