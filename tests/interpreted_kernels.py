"""Differences between rollouts of lnca_arch.acceleration.persistent_kernel's kernels and reference rollouts.

Without a GPU, Triton interprets kernels if TRITON_INTERPRET is set before its import; hence a process of its own:
``TRITON_INTERPRET=1 python tests/interpreted_kernels.py`` prints one number for each case, as JSON.
"""

import json

import torch

from lnca_arch import NAFCA, ViTCA
from lnca_arch.acceleration.fused_form import fused_form
from lnca_arch.acceleration.persistent_kernel import take_steps
from lnca_arch.automata.cellular_automaton import CellularAutomaton

SIZES = {'nafca': {'embed_channels': 16}, 'vitca': {'embed_channels': 24, 'heads': 3, 'mlp_channels': 20}}
STEPS = 3
#: Rule, precision of the products, (images, height, width), channels of input and answer, and of memory.
CASES = [
    *((rule, 'float32', size, 3, 4) for rule in SIZES for size in ((2, 8, 8), (1, 1, 1), (3, 5, 7), (1, 2, 9))),
    *((rule, 'float16', (2, 8, 8), 3, 4) for rule in SIZES),
    *((rule, 'float32', (1, 8, 8), 16, 32) for rule in ('nafca, as published', 'vitca, as published')),
]


def rule_of(name: str, channels: int, hidden: int) -> CellularAutomaton:
    """Return a rule with random parameters, since the updates of a new one are zero."""
    kind = NAFCA if name.startswith('nafca') else ViTCA
    rule = kind(channels, channels, hidden, **SIZES.get(name, {})).eval()
    with torch.no_grad():
        for parameter in rule.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return rule


def difference(name: str, precision: str, size: tuple[int, int, int], channels: int, hidden: int) -> float:
    """Return the largest absolute difference, relative to the largest value."""
    count, height, width = size
    rule = rule_of(name, channels, hidden)
    with torch.no_grad():
        state = rule.seed(torch.rand(count, channels, height, width))
        plain = rule.reference_rollout(state, STEPS)
        cells = state.permute(0, 2, 3, 1).contiguous()
        form, dtype = fused_form(rule), getattr(torch, precision)
        packed = form.kernel.pack(rule, form.fuse_params(rule))
        take_steps(form.kernel.kernel, packed, cells, rule.static_features(cells), STEPS, dtype)
    return ((cells.permute(0, 3, 1, 2) - plain).abs().max() / plain.abs().max()).item()


if __name__ == '__main__':
    torch.manual_seed(0)
    print(json.dumps([difference(*case) for case in CASES]))
