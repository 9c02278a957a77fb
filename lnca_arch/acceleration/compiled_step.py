"""One step of a rule, and its compilation by torch.compile."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lnca_utils.errors import first_line

Step = Callable[..., Tensor]


@functools.cache
def make_step(update: Callable[..., Tensor]) -> Step:
    """Return the function that computes one step of a rule, ``mutable + update * update_mask``.

    Args:
        update: :attr:`FusedForm.update` of the rule.
    """

    def step(fixed: Tensor, mutable: Tensor, update_mask: Tensor | None, params: Any, per_cell: tuple) -> Tensor:
        added = update(torch.cat([fixed, mutable], dim=-1), params, *per_cell)
        return mutable + (added if update_mask is None else added * update_mask)

    return step


class CompiledOrEager:
    """A function compiled by torch.compile at its first call.

    If compilation fails, for example without a C++ compiler, it logs a warning and runs the function uncompiled.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        from torch._dynamo.exc import TorchDynamoException  # its import takes seconds

        self._failure = TorchDynamoException
        self._function = function
        self._compiled: Callable[..., Tensor] | None = torch.compile(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Call the function, compiled if possible."""
        if self._compiled is not None:
            try:
                return self._compiled(*args, **kwargs)
            except self._failure as error:
                self._compiled = None
                logging.getLogger('lnca').warning(
                    'The automaton runs uncompiled, more slowly: torch.compile says %s', first_line(error)
                )
        return self._function(*args, **kwargs)


@functools.cache
def compiled(update: Callable[..., Tensor]) -> CompiledOrEager:
    """Return the function of :func:`make_step`, compiled once per process."""
    return CompiledOrEager(make_step(update))
