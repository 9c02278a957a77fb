"""The fast rollout: what :meth:`CellularAutomaton.plain_rollout` defines, in less time and memory."""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils.checkpoint import checkpoint

from lnca_arch.cuda_rollout import graphed

if TYPE_CHECKING:
    from lnca_arch.automaton import CellularAutomaton

# Of how many cells a processor computes a step at once: what it computes on the way stays in its cache.
CELLS_AT_ONCE = 2048

# What a rollout keeps for its gradients: everything that the steps compute ('fast'); or of every second step
# ('balanced') or of all steps ('low') the state alone, from which the rest is computed again.
RECOMPUTED = {
    'low': lambda step: True,
    'balanced': lambda step: step % 2 == 1,
    'fast': lambda step: False,
}
# Unless it is told which, a rollout keeps everything as long as that takes no more than this.
KEPT_BYTES = 1 << 29

# The C library gives freed memory back to the system above twice the largest block that it has seen freed, and every
# step would fault it in again, for a third of its time. A block that is never touched costs nothing.
torch.empty(31 << 20, dtype=torch.uint8)

Step = Callable[..., Tensor]


def fast_rollout(rule: 'CellularAutomaton', state: Tensor, steps: int, update_rate: float) -> Tensor:
    """As :meth:`CellularAutomaton.plain_rollout`, and equal to it but for rounding: result, gradients and, after the
    same seed, random numbers.

    Linear maps that follow one another are merged once, and the step is compiled where that is possible. Memory does
    not grow with the number of steps; with gradients, by what ``rule.memory`` says.
    """
    given, changing = (
        channels.contiguous()
        for channels in state.permute(0, 2, 3, 1).split([rule.in_channels, rule.changing_channels], dim=-1)
    )

    def run(given: Tensor, changing: Tensor) -> Tensor:
        with torch.autocast(state.device.type, enabled=False):
            folded = rule.fold()
        step = functools.partial(compiled(type(rule).fast_update), folded=folded)
        masks = update_masks(changing.shape[:-1], steps, update_rate, state.device)
        if torch.is_grad_enabled():
            return _with_gradients(rule, step, given, changing, masks, steps)
        return _without_gradients(rule, step, given, changing, masks)

    if state.device.type == 'cuda' and not torch.is_grad_enabled():
        changing = graphed(rule, run, given, changing, (steps, update_rate, rule.training))
    else:
        changing = run(given, changing)
    return torch.cat([given, changing], dim=-1).permute(0, 3, 1, 2)


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
    steps: int,
) -> Tensor:
    per_cell = rule.constants_per_cell(given)

    def one_step(changing: Tensor, takes_part: Tensor | None) -> Tensor:
        return step(given, changing, takes_part, per_cell=(*per_cell, *rule.random_per_cell(given)))

    memory = rule.memory or ('fast' if _kept_bytes(rule, given, steps) <= KEPT_BYTES else 'low')
    # A first step without a gradient to its input would be compiled by itself.
    changing = changing if changing.requires_grad else changing.requires_grad_()
    for index, takes_part in enumerate(masks):
        if RECOMPUTED[memory](index):
            changing = checkpoint(
                one_step, changing, takes_part, use_reentrant=False, preserve_rng_state=rule.draws_random_numbers
            )
        else:
            changing = one_step(changing, takes_part)
    return changing


def _kept_bytes(rule: 'CellularAutomaton', given: Tensor, steps: int) -> int:
    return steps * given[..., 0].numel() * rule.kept_channels * given.element_size()


def _without_gradients(
    rule: 'CellularAutomaton', step: Step, given: Tensor, changing: Tensor, masks: Iterator[Tensor | None]
) -> Tensor:
    per_cell = rule.constants_per_cell(given)
    parts = list(parts_of(given.shape[:-1], given.device))
    # Of the two states that there are, each step reads the one and writes the other.
    following = torch.empty_like(changing)
    for takes_part in masks:
        every = [given, changing, takes_part, *per_cell, *rule.random_per_cell(given)]
        for part in parts:
            a, b, c, *rest = (None if tensor is None else tensor[part.images_of(tensor), part.read] for tensor in every)
            following[part.images, part.written] = step(a, b, c, per_cell=tuple(rest))[:, part.kept]
        changing, following = following, changing
    return changing


class Part(NamedTuple):
    """Cells whose step is computed at once: of some images some rows."""

    images: slice
    # The rows that are computed, those that the rule has to see for it, and the former among the latter.
    written: slice
    read: slice
    kept: slice

    def images_of(self, tensor: Tensor) -> slice:
        """Which images of ``(N, H, W, C)``, or of ``(1, H, W, C)`` that is the same for all."""
        return self.images if len(tensor) > 1 else slice(None)


def parts_of(shape: torch.Size, device: torch.device) -> Iterator[Part]:
    """The parts of ``(N, H, W)`` cells: whole images, or of larger images some rows. Rows are read with those above
    and below, and as many everywhere, so that a step compiled for one part fits the others."""
    count, height, width = shape
    at_once = CELLS_AT_ONCE if device.type == 'cpu' else count * height * width
    if height * width <= at_once:
        images = max(1, at_once // (height * width))
        for first in range(0, count, images):
            yield Part(slice(first, first + images), slice(0, height), slice(0, height), slice(0, height))
        return
    rows = max(1, at_once // width)
    seen = min(rows + 2, height)
    for image in range(count):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            start = min(max(top - 1, 0), height - seen)
            yield Part(
                slice(image, image + 1),
                written=slice(top, bottom),
                read=slice(start, start + seen),
                kept=slice(top - start, bottom - start),
            )


class Compiled:
    """A function that torch.compile compiles at its first call; where it cannot, say without a C++ compiler, the
    function itself, after a word in the log."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._compiled: Callable[..., Tensor] | None = torch.compile(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except TorchDynamoException as error:
                self._compiled = None
                logging.getLogger('basicsr').warning(
                    'The automaton runs uncompiled, more slowly: torch.compile says %s', str(error).partition('\n')[0]
                )
        return self._function(*args, **kwargs)


@functools.cache
def compiled(fast_update: Callable[..., Tensor]) -> Compiled:
    """The step of a rule from :attr:`CellularAutomaton.fast_update`: a function of what the cells are given and what
    they may change, of which of them take part, and of the constants of the rule; it returns what they changed to."""

    def step(given: Tensor, changing: Tensor, takes_part: Tensor | None, folded: Any, per_cell: tuple) -> Tensor:
        update = fast_update(torch.cat([given, changing], dim=-1), folded, *per_cell)
        return changing + (update if takes_part is None else update * takes_part)

    return Compiled(step)
