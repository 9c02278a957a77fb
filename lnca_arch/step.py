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
def step_of(fast_update: Callable[..., Tensor]) -> Step:
    """The step of a rule from :attr:`CellularAutomaton.fast_update`: a function of what the cells are given and what
    they may change, of which of them take part, and of the constants of the rule; it returns what they changed to."""

    def step(given: Tensor, changing: Tensor, takes_part: Tensor | None, folded: Any, per_cell: tuple) -> Tensor:
        update = fast_update(torch.cat([given, changing], dim=-1), folded, *per_cell)
        return changing + (update if takes_part is None else update * takes_part)

    return step


class Compiled:
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
def compiled(fast_update: Callable[..., Tensor]) -> Compiled:
    """:func:`step_of`, compiled in this process."""
    return Compiled(step_of(fast_update))
