"""Whole rollouts without gradients in one CUDA kernel.

For grids so small that one multiprocessor holds all cells of an image: the kernel reads them once, applies all steps
and writes them once.
"""

import copy
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lnca_arch.acceleration.fused_form import FusedForm
from lnca_arch.acceleration.parameter_folding import Linear
from lnca_utils.errors import first_line

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

MAX_CELLS = 64  # an 8×8 grid: the latent of a 32×32 tile
MIN_SIDE = 16  # smallest side of a matrix on tensor cores
WARPS = 8
# Before a kernel is used, it is compared with single steps of a rule with random parameters of this standard deviation.
# Tolerances are relative to the largest value.
TRIAL_STEPS, TRIAL_STD = 2, 0.2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}

# (params, fixed channels, mutable channels, steps) → mutable channels after the steps; cells are ``(N, H, W, C)``. Both
# tensors may be overwritten.
Rollout = Callable[[Any, Tensor, Tensor, int], Tensor]

# Rule, precision, device and sizes → whether the kernel agrees with single steps.
_verified: dict[Hashable, bool] = {}


class KernelParams(NamedTuple):
    """Parameters of a rule in the layout of its kernel.

    Attributes:
        linears: weights ``(out, in)`` and biases ``(out)``, padded with zeros, in the order in which a step reads them.
        sizes: compile-time constants of the kernel.
    """

    linears: Sequence[Linear]
    sizes: Mapping[str, Any]


class PersistentKernel(NamedTuple):
    """A rule's kernel for whole rollouts.

    Attributes:
        kernel: the Triton kernel; None where Triton is not installed.
        pack: a function from the rule and its fused parameters to :class:`KernelParams`.
    """

    kernel: Any
    pack: Callable[[Any, Any], KernelParams]


def padded_side(count: int) -> int:
    """Return the power of two to which a side of a matrix is padded."""
    return max(MIN_SIDE, 1 << (count - 1).bit_length())


def pad_linear(linear: Linear, outs: int, ins: int, first_out: int = 0) -> Linear:
    """Pad a linear map with zeros to ``(outs, ins)``; its outputs start at ``first_out``."""
    weight, bias = linear
    after = outs - first_out - len(weight)
    return F.pad(weight, (0, ins - weight.shape[1], first_out, after)), F.pad(bias, (first_out, after))


def is_supported(rule: 'CellularAutomaton', form: FusedForm, fixed: Tensor, update_rate: float) -> bool:
    """Return whether one kernel can compute a rollout.

    Args:
        rule, form: the rule and its fused form.
        fixed: fixed channels of the cells, ``(N, H, W, in_channels)``.
        update_rate: probability that a cell is updated in a step.
    """
    return (
        fixed.device.type == 'cuda'
        and form.kernel is not None
        and form.kernel.kernel is not None
        and fixed.dtype == torch.float32
        and 0 not in fixed.shape
        and fixed.shape[1] * fixed.shape[2] <= MAX_CELLS
        and update_rate == 1.0
        and not rule.is_stochastic
    )


def persistent_rollout(
    rule: 'CellularAutomaton',
    form: FusedForm,
    params: Any,
    fixed: Tensor,
    mutable: Tensor,
    steps: int,
    stepwise: Rollout,
) -> Tensor:
    """Compute a rollout in one kernel, or by single steps if the kernel fails or disagrees with them.

    Args:
        rule, form: the rule and its fused form, for which :func:`is_supported` is true.
        params: the rule's fused parameters.
        fixed, mutable, steps: see :data:`Rollout`.
        stepwise: computes the rollout by single steps.
    """
    assert form.kernel is not None
    kernel, pack = form.kernel
    device_type = fixed.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else fixed.dtype
    packed = pack(rule, params)
    per_cell = rule.static_features(fixed)

    def in_kernel(packed: Any, fixed: Tensor, mutable: Tensor, steps: int) -> Tensor:
        state = torch.cat([fixed, mutable], dim=-1)
        take_steps(kernel, packed, state, per_cell, steps, dtype)
        return state[..., rule.in_channels :]

    key = (type(rule), dtype, fixed.device, fixed.shape[1:], tuple(packed.sizes.items()))
    if key not in _verified:
        if device_type == 'cuda' and torch.cuda.is_current_stream_capturing():
            return stepwise(params, fixed, mutable, steps)
        _verified[key] = _agrees(rule, form, pack, fixed, in_kernel, stepwise, TOLERANCE[dtype])
    if _verified[key]:
        return in_kernel(packed, fixed, mutable, steps)
    return stepwise(params, fixed, mutable, steps)


def _agrees(
    rule: 'CellularAutomaton',
    form: FusedForm,
    pack: Callable[[Any, Any], KernelParams],
    fixed: Tensor,
    in_kernel: Rollout,
    stepwise: Rollout,
    tolerance: float,
) -> bool:
    """Return whether a kernel runs and agrees with single steps; log a warning if not.

    The parameters are random, since zeros at the ends of an untrained rule's blocks would hide errors. The global
    random state is not touched.
    """
    generator = torch.Generator(fixed.device).manual_seed(0)
    trial = copy.deepcopy(rule)
    for parameter in trial.parameters():
        parameter.data.normal_(0, TRIAL_STD, generator=generator)
    with torch.autocast(fixed.device.type, enabled=False):
        params = form.fuse_params(trial)
    cells = torch.rand(1, *fixed.shape[1:3], rule.state_channels, device=fixed.device, generator=generator)
    fixed, mutable = cells.split([rule.in_channels, rule.mutable_channels], dim=-1)
    expected = stepwise(params, fixed.clone(), mutable.clone(), TRIAL_STEPS)
    try:
        found = in_kernel(pack(trial, params), fixed, mutable, TRIAL_STEPS)
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler, the driver and older versions of Triton raise anything
        reason = first_line(error)
    else:
        if difference <= tolerance:
            return True
        reason = f'its result differs by {difference:.1e}'
    logging.getLogger('lnca').warning('The automaton runs without its own kernel, more slowly: %s', reason)
    return False


def take_steps(
    kernel: Any, packed: KernelParams, state: Tensor, per_cell: Sequence[Tensor], steps: int, dtype: torch.dtype
) -> None:
    """Apply a rule's kernel to a state, in place.

    Args:
        kernel, packed: the kernel and its parameters.
        state: ``(N, H, W, C)``, contiguous, float32.
        per_cell: from :meth:`CellularAutomaton.static_features`.
        steps: number of steps.
        dtype: dtype of the operands of matrix products, which accumulate in float32.
    """
    count, height, width, channels = state.shape
    weights = torch.cat([weight.t().flatten() for weight, _ in packed.linears]).to(dtype)
    biases = torch.cat([bias for _, bias in packed.linears])
    tensors = (state, weights, biases, *(tensor.contiguous() for tensor in per_cell))
    sizes = {'CELLS': padded_side(height * width), 'CHANNELS': channels, **packed.sizes}
    with torch.cuda.device_of(state):  # Triton launches on the current device
        kernel[(count,)](*tensors, steps, height, width, **sizes, num_warps=WARPS)
