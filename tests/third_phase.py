"""Options with the phase that is not the paper's."""

import copy
from typing import Any


def with_joint_phase(opt: dict[str, Any], iters: int = 3) -> dict[str, Any]:
    """Options and so many iterations of ``train.joint``, with every loss that it knows."""
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
