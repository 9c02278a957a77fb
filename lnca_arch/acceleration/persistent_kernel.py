"""Whole rollouts without gradients on CUDA in one kernel, for grids so small that one multiprocessor holds an image's
cells: it reads them once, takes all steps, and writes them once."""

import copy
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lnca_arch.acceleration.parameter_folding import Linear
from lnca_utils.errors import first_line

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError:  # PyTorch brings it where it can be used
    triton = None

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

MOST_CELLS = 64  # an 8×8 grid: the latent of a 32×32 tile
LEAST_SIDE = 16  # of a matrix that tensor cores multiply
WARPS = 8
# Before a kernel is used it takes some steps of a random rule, whose result may differ from that of single steps by so
# much of the largest value.
TRIAL_STEPS, TRIAL_DEVIATION = 2, 0.2
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}

# Parameters of a rule, what the cells are given and what they may change ``(N, H, W, …)``, and how many steps → what
# they changed to. The second and third may be overwritten.
Take = Callable[[Any, Tensor, Tensor, int], Tensor]

# Rule, precision, device and sizes → whether its kernel was found to do what single steps do.
_trusted: dict[Hashable, bool] = {}


class KernelParams(NamedTuple):
    """A rule's parameters as its kernel wants them.

    Attributes:
        linears: weights ``(out, in)`` and biases ``(out)``, padded with zeros, in the order in which a step needs them.
        sizes: constants of the kernel.
    """

    linears: Sequence[Linear]
    sizes: Mapping[str, Any]


class PersistentKernel(NamedTuple):
    """How a rule takes many steps in one kernel.

    Attributes:
        kernel: None where Triton is not installed.
        pack: the rule and what its fold() returned → :class:`KernelParams`.
    """

    kernel: Any
    pack: Callable[[Any, Any], KernelParams]


def side(count: int) -> int:
    """The power of two that a side of a matrix is padded to."""
    return max(LEAST_SIDE, 1 << (count - 1).bit_length())


def padded(linear: Linear, outs: int, ins: int, first_out: int = 0) -> Linear:
    """A linear map with zeros around it, its own outputs beginning at ``first_out`` of ``outs``."""
    weight, bias = linear
    after = outs - first_out - len(weight)
    return F.pad(weight, (0, ins - weight.shape[1], first_out, after)), F.pad(bias, (first_out, after))


def fits(rule: 'CellularAutomaton', given: Tensor, update_rate: float) -> bool:
    """Whether a rollout of cells that are given ``(N, H, W, in_channels)`` may be taken in one kernel."""
    return (
        given.device.type == 'cuda'
        and rule.resident is not None
        and rule.resident.kernel is not None
        and given.dtype == torch.float32
        and 0 not in given.shape
        and given.shape[1] * given.shape[2] <= MOST_CELLS
        and update_rate == 1.0
        and not rule.is_stochastic
    )


def persistent_rollout(
    rule: 'CellularAutomaton', folded: Any, given: Tensor, changing: Tensor, steps: int, by_steps: Take
) -> Tensor:
    """A rollout of which :func:`fits` holds; by single steps, after a word in the log, where the kernel does not run or
    gives something else.

    Args:
        rule: whose rollout.
        folded: what its fold() returned.
        given, changing, steps: see :data:`Take`.
        by_steps: takes single steps with such parameters.
    """
    kind = given.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else given.dtype
    packed = rule.resident.pack(rule, folded)
    per_cell = rule.static_features(given)

    def by_kernel(packed: KernelParams, given: Tensor, changing: Tensor, steps: int) -> Tensor:
        state = torch.cat([given, changing], dim=-1)
        take_steps(rule.resident.kernel, packed, state, per_cell, steps, dtype)
        return state[..., rule.in_channels :]

    key = (type(rule), dtype, given.device, given.shape[1:], tuple(packed.sizes.items()))
    if key not in _trusted:
        if kind == 'cuda' and torch.cuda.is_current_stream_capturing():
            return by_steps(folded, given, changing, steps)
        _trusted[key] = _agree(rule, given, by_kernel, by_steps, TOLERANCE[dtype])
    if _trusted[key]:
        return by_kernel(packed, given, changing, steps)
    return by_steps(folded, given, changing, steps)


def _agree(rule: 'CellularAutomaton', given: Tensor, by_kernel: Take, by_steps: Take, tolerance: float) -> bool:
    """Whether a kernel runs and does what single steps do; if not, the log says so. With random parameters, since those
    of a new rule hide what it computes, and without touching the random numbers that others draw."""
    generator = torch.Generator(given.device).manual_seed(0)
    trial = copy.deepcopy(rule)
    for parameter in trial.parameters():
        parameter.data.normal_(0, TRIAL_DEVIATION, generator=generator)
    with torch.autocast(given.device.type, enabled=False):
        folded = trial.fold()
    cells = torch.rand(1, *given.shape[1:3], rule.state_channels, device=given.device, generator=generator)
    parts = cells.split([rule.in_channels, rule.mutable_channels], dim=-1)
    expected = by_steps(folded, *(part.clone() for part in parts), TRIAL_STEPS)
    try:
        found = by_kernel(rule.resident.pack(trial, folded), *parts, TRIAL_STEPS)
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compiler, the driver or an older Triton may say
        reason = first_line(error)
    else:
        if difference <= tolerance:
            return True
        reason = f'its result differs by {difference:.1e}'
    logging.getLogger('basicsr').warning('The automaton runs without its own kernel, more slowly: %s', reason)
    return False


def take_steps(
    kernel: Any, packed: KernelParams, state: Tensor, per_cell: Sequence[Tensor], steps: int, dtype: torch.dtype
) -> None:
    """Steps of a rule, in place.

    Args:
        kernel, packed: of the rule.
        state: ``(N, H, W, C)``, contiguous, float32.
        per_cell: from :meth:`CellularAutomaton.static_features`.
        steps: how many.
        dtype: of the factors in matrix products; sums are float32.
    """
    count, height, width, channels = state.shape
    weights = torch.cat([weight.t().flatten() for weight, _ in packed.linears]).to(dtype)
    biases = torch.cat([bias for _, bias in packed.linears])
    tensors = (state, weights, biases, *(tensor.contiguous() for tensor in per_cell))
    sizes = {'CELLS': side(height * width), 'CHANNELS': channels, **packed.sizes}
    with torch.cuda.device_of(state):  # Triton's kernels run on the current device
        kernel[(count,)](*tensors, steps, height, width, **sizes, num_warps=WARPS)


if triton:
    # One variant of a kernel for any of these, so that the one that was tried is the one that is used.
    _rollout = triton.jit(do_not_specialize=['steps', 'height', 'width'])

    @triton.jit
    def _places(height, width, CELLS: tl.constexpr, CHANNELS: tl.constexpr, PADDED: tl.constexpr):
        """Where an image's cells lie in the state, and which of these places there are."""
        cell, channel = tl.arange(0, CELLS)[:, None], tl.arange(0, PADDED)[None, :]
        first = tl.program_id(0).to(tl.int64) * height * width * CHANNELS
        return first + cell * CHANNELS + channel, (cell < height * width) & (channel < CHANNELS)

    @triton.jit
    def _normalize(x, COUNT: tl.constexpr, PADDED: tl.constexpr, EPS: tl.constexpr):
        """A layer norm of the first COUNT of PADDED channels; the others are zero, and stay it."""
        channel = tl.arange(0, PADDED)[None, :]
        centred = tl.where(channel < COUNT, x - tl.sum(x, axis=1)[:, None] / COUNT, 0.0)
        return centred / tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / COUNT + EPS)

    @triton.jit
    def _linear(x, weights, biases, INS: tl.constexpr, OUTS: tl.constexpr):
        """The linear map whose parameters come next; then where those after it begin."""
        weight = tl.load(weights + tl.arange(0, INS)[:, None] * OUTS + tl.arange(0, OUTS)[None, :])
        bias = tl.load(biases + tl.arange(0, OUTS))[None, :]
        return tl.dot(x.to(weight.dtype), weight, input_precision='tf32x3') + bias, weights + INS * OUTS, biases + OUTS

    @_rollout
    def nafca_kernel(
        state,
        weights,
        biases,
        steps,
        height,
        width,
        CELLS: tl.constexpr,
        CHANNELS: tl.constexpr,
        C: tl.constexpr,
        HALF: tl.constexpr,
        PARTS: tl.constexpr,
        PART: tl.constexpr,
        TAPS: tl.constexpr,
        EPS: tl.constexpr,
    ):
        """The steps of ``fused_update`` of :mod:`lnca_arch.automata.nafca`, with the parameters of its ``pack``."""
        places, there = _places(height, width, CELLS, CHANNELS, C)
        x = tl.load(state + places, mask=there, other=0.0)

        # Of each cell and tap: the neighbour that contributes it, and whether there is one.
        cell, tap = tl.arange(0, CELLS)[:, None], tl.arange(0, TAPS)[None, :]
        row, column = cell // width + tap // 3 - 1, cell % width + tap % 3 - 1
        inside = (tap < 9) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        neighbour = tl.where(inside, row * width + column, 0)

        for _ in range(steps):
            normalized = _normalize(x, CHANNELS, C, EPS)
            first, w, b = _linear(normalized, weights, biases, C, HALF)
            second, w, b = _linear(normalized, w, b, C, HALF)
            gated = first * second
            of_gated, w, b = _linear(gated, w, b, HALF, TAPS)
            of_normalized, w, b = _linear(normalized, w, b, C, TAPS)
            taps = tl.gather(of_gated + of_normalized, neighbour, axis=0)
            attention = tl.sum(tl.where(inside, taps, 0.0), axis=1)[:, None]
            of_gated, w, b = _linear(gated, w, b, HALF, C)
            of_normalized, w, b = _linear(normalized, w, b, C, C)
            y = x + (of_gated + of_normalized) * attention + tl.load(b + tl.arange(0, C))[None, :]
            b += C

            normalized = _normalize(y, CHANNELS, C, EPS)
            for _part in tl.static_range(PARTS):
                first, w, b = _linear(normalized, w, b, C, PART)
                second, w, b = _linear(normalized, w, b, C, PART)
                transition, w, b = _linear(first * second, w, b, PART, C)
                y += transition
            update, w, b = _linear(_normalize(y, CHANNELS, C, EPS), w, b, C, C)
            x += update
        tl.store(state + places, x, mask=there)

    @_rollout
    def vitca_kernel(
        state,
        weights,
        biases,
        positions,
        steps,
        height,
        width,
        CELLS: tl.constexpr,
        CHANNELS: tl.constexpr,
        C: tl.constexpr,
        EMBED: tl.constexpr,
        E: tl.constexpr,
        HEADS: tl.constexpr,
        SCALE: tl.constexpr,
        D: tl.constexpr,
        MLP: tl.constexpr,
        EPS: tl.constexpr,
    ):
        """The steps of ``fused_update`` of :mod:`lnca_arch.automata.vitca`, with the parameters of its ``pack``.

        Each cell's scores with all others are computed, and those that are no neighbours masked: so few cells are a
        product for the tensor cores.
        """
        places, there = _places(height, width, CELLS, CHANNELS, C)
        x = tl.load(state + places, mask=there, other=0.0)
        cell, channel = tl.arange(0, CELLS)[:, None], tl.arange(0, E)[None, :]
        known = (cell < height * width) & (channel < EMBED)
        position = tl.load(positions + cell * EMBED + channel, mask=known, other=0.0)

        other = tl.arange(0, CELLS)[None, :]
        near = (tl.abs(cell // width - other // width) <= 1) & (tl.abs(cell % width - other % width) <= 1)
        near = near & (other < height * width)
        # Neighbours beyond the border take part with score 0 and value 0.
        beyond = 9 - tl.sum(near.to(tl.int32), axis=1)[:, None]

        for _ in range(steps):
            token, w, b = _linear(x, weights, biases, C, E)
            token += position
            normalized = _normalize(token, EMBED, E, EPS)
            for _head in tl.static_range(HEADS):
                query, w, b = _linear(normalized, w, b, E, D)
                key, w, b = _linear(normalized, w, b, E, D)
                value, w, b = _linear(normalized, w, b, E, D)
                factor = weights.dtype.element_ty
                scores = tl.dot((query * SCALE).to(factor), tl.trans(key).to(factor), input_precision='tf32x3')
                scores = tl.where(near, scores, float('-inf'))
                highest = tl.max(scores, axis=1)[:, None]
                highest = tl.where(beyond > 0, tl.maximum(highest, 0.0), highest)
                shares = tl.exp(scores - highest)
                total = tl.sum(shares, axis=1)[:, None] + tl.where(beyond > 0, beyond * tl.exp(-highest), 0.0)
                attended = tl.dot((shares / total).to(factor), value.to(factor), input_precision='tf32x3')
                projected, w, b = _linear(attended, w, b, D, E)
                token += projected
            hidden, w, b = _linear(_normalize(token, EMBED, E, EPS), w, b, E, MLP)
            hidden = 0.5 * hidden * (1.0 + tl.erf(hidden * 0.7071067811865476))
            transition, w, b = _linear(hidden, w, b, MLP, E)
            token += transition
            update, w, b = _linear(_normalize(token, EMBED, E, EPS), w, b, E, C)
            x += update
        tl.store(state + places, x, mask=there)
else:
    nafca_kernel = vitca_kernel = None
