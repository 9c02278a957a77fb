"""One step of a rule, and its compilation in a process."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lnca_utils.errors import first_line

Step = Callable[..., Tensor]


@functools.cache
def make_step(fused_update: Callable[..., Tensor]) -> Step:
    """The step of a rule from :attr:`CellularAutomaton.fused_update`: a function of what the cells are given and what
    they may change, of which of them take part, and of the constants of the rule; it returns what they changed to."""

    def step(given: Tensor, changing: Tensor, update_mask: Tensor | None, folded: Any, per_cell: tuple) -> Tensor:
        update = fused_update(torch.cat([given, changing], dim=-1), folded, *per_cell)
        return changing + (update if update_mask is None else update * update_mask)

    return step


class CompiledOrEager:
    """A function that torch.compile compiles at its first call; where it cannot, say without a C++ compiler, the
    function itself, after a word in the log."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        from torch._dynamo.exc import TorchDynamoException  # whose import takes seconds

        self._failure = TorchDynamoException
        self._function = function
        self._compiled: Callable[..., Tensor] | None = torch.compile(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except self._failure as error:
                self._compiled = None
                logging.getLogger('basicsr').warning(
                    'The automaton runs uncompiled, more slowly: torch.compile says %s', first_line(error)
                )
        return self._function(*args, **kwargs)


@functools.cache
def compiled(fused_update: Callable[..., Tensor]) -> CompiledOrEager:
    """:func:`make_step`, compiled in this process."""
    return CompiledOrEager(make_step(fused_update))
