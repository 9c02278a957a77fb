"""The fused rollout: the result of :meth:`CellularAutomaton.reference_rollout`, optimized for time and memory."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lnca_arch.acceleration.aot_cache import load_or_compile_step
from lnca_arch.acceleration.compiled_step import Step, compiled, make_step
from lnca_arch.acceleration.cuda_graphs import run_with_cuda_graph
from lnca_arch.acceleration.fused_form import UNFUSED, fused_form
from lnca_arch.acceleration.halo_blocks import halo_blocks
from lnca_arch.acceleration.persistent_kernel import is_supported, persistent_rollout

if TYPE_CHECKING:
    from lnca_arch.automata.cellular_automaton import CellularAutomaton

# Name of a policy → whether a step is checkpointed: its activations are computed again in the backward pass.
CHECKPOINT_POLICIES = {
    'full': lambda step: True,
    'alternate': lambda step: step % 2 == 1,
    'none': lambda step: False,
}
# By default a rollout keeps its activations if they take no more than this, and checkpoints every step otherwise.
MAX_ACTIVATION_BYTES = 1 << 29


def fused_rollout(rule: 'CellularAutomaton', state: Tensor, steps: int, update_rate: float) -> Tensor:
    """Apply a rule ``steps`` times; arguments and result as in :meth:`CellularAutomaton.reference_rollout`.

    From the same random seed, results and gradients equal the reference up to rounding. Consecutive linear maps are
    merged once per rollout, and the step is compiled where possible. Without gradients, memory does not grow with the
    number of steps; with gradients, it depends on ``rule.activation_checkpointing``.
    """
    _keep_freed_blocks()
    fixed, mutable = state.permute(0, 2, 3, 1).split([rule.in_channels, rule.mutable_channels], dim=-1)
    # A copy of mutable, since it is overwritten.
    fixed, mutable = fixed.contiguous(), mutable.clone(memory_format=torch.contiguous_format)
    form = fused_form(rule)
    without_gradients = not torch.is_grad_enabled()
    is_traced = torch.compiler.is_compiling()

    def stepwise(params: Any, fixed: Tensor, mutable: Tensor, steps: int) -> Tensor:
        masks = update_masks(mutable.shape[:-1], steps, update_rate, state.device)
        per_cell = rule.static_features(fixed)
        step: Step | None = None
        if form is UNFUSED:
            step = functools.partial(make_step(form.update), params=params)
        elif without_gradients and not is_traced:
            step = load_or_compile_step(rule, form, params, fixed, per_cell, update_rate < 1, steps)
        if step is None:
            step = functools.partial(compiled(form.update), params=params)
        if without_gradients:
            return _without_gradients(rule, step, fixed, mutable, masks, per_cell)
        return _with_gradients(rule, step, fixed, mutable, masks, per_cell, steps)

    def run(fixed: Tensor, mutable: Tensor) -> Tensor:
        with torch.autocast(state.device.type, enabled=False):
            params = form.fuse_params(rule)
        if without_gradients and not is_traced and is_supported(rule, form, fixed, update_rate):
            return persistent_rollout(rule, form, params, fixed, mutable, steps, stepwise)
        return stepwise(params, fixed, mutable, steps)

    if state.device.type == 'cuda' and without_gradients and not is_traced:
        mutable = run_with_cuda_graph(rule, run, fixed, mutable, (steps, update_rate, rule.training))
    else:
        mutable = run(fixed, mutable)
    return torch.cat([fixed, mutable], dim=-1).permute(0, 3, 1, 2)


@functools.cache
def _keep_freed_blocks() -> None:
    """Make glibc keep the freed memory of a step for the next one.

    glibc returns free memory to the system above a threshold of twice the largest block freed so far. Freeing one large
    block raises it, and costs nothing, since the block is never touched. Otherwise each step spends a third of its time
    on page faults.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def update_masks(shape: torch.Size, steps: int, update_rate: float, device: torch.device) -> Iterator[Tensor | None]:
    """Yield the update mask of each step: ``(N, H, W, 1)`` booleans, or None if every cell is updated.

    Args:
        shape: shape of the grid, ``(N, H, W)``.
        steps: number of steps.
        update_rate: probability that a cell is updated in a step.
        device: device of the masks.
    """
    if update_rate == 1.0:
        yield from [None] * steps
    elif torch.is_grad_enabled():
        yield from torch.rand(steps, *shape, 1, device=device) < update_rate
    else:  # one at a time, so that memory does not grow with the number of steps
        for _ in range(steps):
            yield torch.rand(*shape, 1, device=device) < update_rate


def _with_gradients(
    rule: 'CellularAutomaton',
    step: Step,
    fixed: Tensor,
    mutable: Tensor,
    masks: Iterator[Tensor | None],
    per_cell: tuple[Tensor, ...],
    steps: int,
) -> Tensor:
    def one_step(mutable: Tensor, update_mask: Tensor | None) -> Tensor:
        return step(fixed, mutable, update_mask, per_cell=(*per_cell, *rule.dropout_masks(fixed)))

    keeps_all = _activation_bytes(rule, fixed, steps) <= MAX_ACTIVATION_BYTES
    is_checkpointed = CHECKPOINT_POLICIES[rule.activation_checkpointing or ('none' if keeps_all else 'full')]
    # A first step whose input needs no gradient would be compiled separately.
    mutable = mutable if mutable.requires_grad else mutable.requires_grad_()
    limit = None if rule.max_gradient_growth is None else GradientGrowthLimit(rule.max_gradient_growth)
    for index, update_mask in enumerate(masks):
        if is_checkpointed(index):
            mutable = checkpoint(
                one_step, mutable, update_mask, use_reentrant=False, preserve_rng_state=rule.is_stochastic
            )
        else:
            mutable = one_step(mutable, update_mask)
        if limit is not None:
            mutable.register_hook(limit.clip if index < steps - 1 else limit.set_reference)
    return mutable


class GradientGrowthLimit:
    """Clips the gradient of each image's state in backpropagation through time.

    :meth:`set_reference` is a backward hook of the state after the last step, :meth:`clip` of the states after the
    earlier steps. Gradients within the limit pass unchanged, to the last bit. Clipping within backpropagation through
    time follows Graves, *Generating Sequences With Recurrent Neural Networks* (2013).

    Args:
        max_growth: limit of the L2 norm of an image's gradient, as a multiple of its norm at the last step.
    """

    def __init__(self, max_growth: float) -> None:
        self._max_growth = max_growth
        self._limit: Tensor

    def set_reference(self, gradient: Tensor) -> None:
        """Set the limit of each image from the gradient at the last step, ``(N, H, W, C)``."""
        self._limit = self._max_growth * _norm_per_image(gradient)

    def clip(self, gradient: Tensor) -> Tensor:
        """Scale the gradient at an earlier step, ``(N, H, W, C)``, down to the limit of each image."""
        norm = _norm_per_image(gradient)
        return gradient * (self._limit / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1)


def _norm_per_image(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)


def _activation_bytes(rule: 'CellularAutomaton', fixed: Tensor, steps: int) -> int:
    return steps * fixed[..., 0].numel() * fused_form(rule).activations_per_cell * fixed.element_size()


def _without_gradients(
    rule: 'CellularAutomaton',
    step: Step,
    fixed: Tensor,
    mutable: Tensor,
    masks: Iterator[Tensor | None],
    per_cell: tuple[Tensor, ...],
) -> Tensor:
    blocks = list(halo_blocks(fixed.shape[:-1], fixed.device))
    # Double buffering: each step reads one state and writes the other.
    following = torch.empty_like(mutable) if len(blocks) > 1 else None
    for update_mask in masks:
        dropout = rule.dropout_masks(fixed)
        if following is None:
            mutable = step(fixed, mutable, update_mask, per_cell=(*per_cell, *dropout))
            continue
        tensors = [fixed, mutable, update_mask, *per_cell, *dropout]
        for block in blocks:
            a, b, c, *rest = (None if tensor is None else block.read_from(tensor) for tensor in tensors)
            block.write_to(following, step(a, b, c, per_cell=tuple(rest)))
        mutable, following = following, mutable
    return mutable
