"""The fast rollout: what :meth:`CellularAutomaton.reference_rollout` defines, in less time and memory."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lnca_arch.acceleration.aot_cache import load_or_compile_step
from lnca_arch.acceleration.compiled_step import Step, compiled
from lnca_arch.acceleration.cuda_graphs import run_with_cuda_graph
from lnca_arch.acceleration.persistent_kernel import fits, persistent_rollout

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

# Of how many cells a processor computes a step at once: what it computes on the way stays in its cache. Of wide grids
# these are a block, since the cells around a part are computed once more.
CELLS_AT_ONCE, COLUMNS_AT_ONCE = 2048, 64

# What a rollout keeps for its gradients: everything that the steps compute ('fast'); or of every second step
# ('balanced') or of all steps ('low') the state alone, from which the rest is computed again.
CHECKPOINT_POLICIES = {
    'low': lambda step: True,
    'balanced': lambda step: step % 2 == 1,
    'fast': lambda step: False,
}
# Unless it is told which, a rollout keeps everything as long as that takes no more than this.
MAX_ACTIVATION_BYTES = 1 << 29


def fused_rollout(rule: 'CellularAutomaton', state: Tensor, steps: int, update_rate: float) -> Tensor:
    """As :meth:`CellularAutomaton.reference_rollout`, and equal to it but for rounding: result, gradients and, after
    the same seed, random numbers.

    Linear maps that follow one another are merged once, and the step is compiled where that is possible. Memory does
    not grow with the number of steps; with gradients, by what ``rule.memory`` says.
    """
    _keep_freed_blocks()
    given, changing = state.permute(0, 2, 3, 1).split([rule.in_channels, rule.mutable_channels], dim=-1)
    # A copy in any case: it is overwritten.
    given, changing = given.contiguous(), changing.clone(memory_format=torch.contiguous_format)
    without_gradients = not torch.is_grad_enabled()
    is_traced = torch.compiler.is_compiling()

    def by_steps(folded: Any, given: Tensor, changing: Tensor, steps: int) -> Tensor:
        masks = update_masks(changing.shape[:-1], steps, update_rate, state.device)
        per_cell = rule.static_features(given)
        step = None
        if without_gradients and not is_traced:
            step = load_or_compile_step(rule, folded, given, per_cell, update_rate < 1, steps)
        if step is None:
            step = functools.partial(compiled(type(rule).fused_update), folded=folded)
        if without_gradients:
            return _without_gradients(rule, step, given, changing, masks, per_cell)
        return _with_gradients(rule, step, given, changing, masks, per_cell, steps)

    def run(given: Tensor, changing: Tensor) -> Tensor:
        with torch.autocast(state.device.type, enabled=False):
            folded = rule.fold()
        if without_gradients and not is_traced and fits(rule, given, update_rate):
            return persistent_rollout(rule, folded, given, changing, steps, by_steps)
        return by_steps(folded, given, changing, steps)

    if state.device.type == 'cuda' and without_gradients and not is_traced:
        changing = run_with_cuda_graph(rule, run, given, changing, (steps, update_rate, rule.training))
    else:
        changing = run(given, changing)
    return torch.cat([given, changing], dim=-1).permute(0, 3, 1, 2)


@functools.cache
def _keep_freed_blocks() -> None:
    """Have the C library keep the memory of a step's tensors for the next step.

    It returns freed memory to the system above twice the largest block that it has seen freed, and every step would
    fault it in again, for a third of its time. A block that is never touched costs nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def update_masks(shape: torch.Size, steps: int, update_rate: float, device: torch.device) -> Iterator[Tensor | None]:
    """For every step, which of the cells take part in it: booleans ``(N, H, W, 1)``, or None for all of them.

    Args:
        shape: ``(N, H, W)``.
    """
    if update_rate == 1.0:
        yield from [None] * steps
    elif torch.is_grad_enabled():
        yield from torch.rand(steps, *shape, 1, device=device) < update_rate
    else:  # one by one, so that memory does not grow with the number of steps
        for _ in range(steps):
            yield torch.rand(*shape, 1, device=device) < update_rate


def _with_gradients(
    rule: 'CellularAutomaton',
    step: Step,
    given: Tensor,
    changing: Tensor,
    masks: Iterator[Tensor | None],
    per_cell: tuple[Tensor, ...],
    steps: int,
) -> Tensor:
    def one_step(changing: Tensor, update_mask: Tensor | None) -> Tensor:
        return step(given, changing, update_mask, per_cell=(*per_cell, *rule.dropout_masks(given)))

    memory = rule.memory or ('fast' if _activation_bytes(rule, given, steps) <= MAX_ACTIVATION_BYTES else 'low')
    # A first step without a gradient to its input would be compiled by itself.
    changing = changing if changing.requires_grad else changing.requires_grad_()
    limit = None if rule.max_gradient_growth is None else GradientGrowthLimit(rule.max_gradient_growth)
    for index, update_mask in enumerate(masks):
        if CHECKPOINT_POLICIES[memory](index):
            changing = checkpoint(
                one_step, changing, update_mask, use_reentrant=False, preserve_rng_state=rule.is_stochastic
            )
        else:
            changing = one_step(changing, update_mask)
        if limit is not None:
            changing.register_hook(limit.clip if index < steps - 1 else limit.set_reference)
    return changing


class GradientGrowthLimit:
    """Clip the gradient of each image's state as backpropagation carries it through the steps of a rollout.

    :meth:`set_reference` and :meth:`clip` are hooks of the state after the last and after every other step. Gradients
    within the limit pass unchanged, to the last bit. Clipping inside of backpropagation through time follows Graves,
    *Generating Sequences With Recurrent Neural Networks* (2013).

    Args:
        max_growth: limit of the L2 norm of an image's gradient, as a multiple of its norm at the last step.
    """

    def __init__(self, max_growth: float) -> None:
        self._max_growth = max_growth
        self._limit: Tensor

    def set_reference(self, gradient: Tensor) -> None:
        """Take the limits from the gradient at the last step, ``(N, H, W, C)``."""
        self._limit = self._max_growth * _norm_per_image(gradient)

    def clip(self, gradient: Tensor) -> Tensor:
        """Scale the gradient at an earlier step, ``(N, H, W, C)``, down to the limits."""
        norm = _norm_per_image(gradient)
        return gradient * (self._limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)


def _norm_per_image(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)


def _activation_bytes(rule: 'CellularAutomaton', given: Tensor, steps: int) -> int:
    return steps * given[..., 0].numel() * rule.saved_activations_per_cell * given.element_size()


def _without_gradients(
    rule: 'CellularAutomaton',
    step: Step,
    given: Tensor,
    changing: Tensor,
    masks: Iterator[Tensor | None],
    per_cell: tuple[Tensor, ...],
) -> Tensor:
    parts = list(halo_blocks(given.shape[:-1], given.device))
    # Of the two states that there are, each step reads the one and writes the other.
    following = torch.empty_like(changing) if len(parts) > 1 else None
    for update_mask in masks:
        random = rule.dropout_masks(given)
        if following is None:
            changing = step(given, changing, update_mask, per_cell=(*per_cell, *random))
            continue
        every = [given, changing, update_mask, *per_cell, *random]
        for part in parts:
            a, b, c, *rest = (None if tensor is None else part.read_from(tensor) for tensor in every)
            part.write_to(following, step(a, b, c, per_cell=tuple(rest)))
        changing, following = following, changing
    return changing


class HaloSlice(NamedTuple):
    """Rows or columns that are computed at once, those that the rule has to see for it, and the former among these."""

    written: slice
    read: slice
    kept: slice


class HaloBlock(NamedTuple):
    """Cells whose step is computed at once: of some images some rows and columns."""

    images: slice
    rows: HaloSlice
    columns: HaloSlice

    def read_from(self, tensor: Tensor) -> Tensor:
        """What is seen of ``(N, H, W, C)``, or of ``(1, H, W, C)`` that is the same for all images."""
        return tensor[self.images if len(tensor) > 1 else slice(None), self.rows.read, self.columns.read]

    def write_to(self, tensor: Tensor, computed: Tensor) -> None:
        """Put what was computed of all that was seen into its place in ``(N, H, W, C)``."""
        tensor[self.images, self.rows.written, self.columns.written] = computed[:, self.rows.kept, self.columns.kept]


def halo_blocks(shape: torch.Size, device: torch.device) -> Iterator[HaloBlock]:
    """The parts of ``(N, H, W)`` cells: whole images, or of larger images some rows and columns. These are read with
    those around them, and as many everywhere, so that a step compiled for one part fits the others."""
    count, height, width = shape
    at_once = CELLS_AT_ONCE if device.type == 'cpu' else count * height * width
    if height * width <= at_once:
        rows, columns = height, width
    else:
        columns = min(width, COLUMNS_AT_ONCE)
        rows = max(1, at_once // columns)
    images = max(1, at_once // (height * width))
    for first in range(0, count, images):
        for row_span in _spans(height, rows):
            for column_span in _spans(width, columns):
                yield HaloBlock(slice(first, first + images), row_span, column_span)


def _spans(length: int, most: int) -> Iterator[HaloSlice]:
    """Equal parts of a side, of at most so many rows or columns each."""
    each = -(-length // -(-length // most))
    seen = min(each + 2, length)
    for first in range(0, length, each):
        last = min(first + each, length)
        start = min(max(first - 1, 0), length - seen)
        yield HaloSlice(slice(first, last), slice(start, start + seen), slice(first - start, last - start))
