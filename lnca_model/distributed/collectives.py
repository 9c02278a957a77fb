"""Collectives over all ranks. A rank that is gone is reported in one line.

Gradients are averaged here rather than by DistributedDataParallel, which reduces the gradients of its module's forward
once per backward: a batch is two optimiser steps on losses of the encoder, decoder or automaton alone.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnca_utils.errors import DistributedError, LNCAError, first_line


def rank() -> int:
    """The number of this process. Rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _report_lost_peer() -> Iterator[None]:
    """Report a failed collective as a lost peer."""
    try:
        yield
    except RuntimeError as error:
        who = f'process {os.environ.get("RANK")} of {os.environ.get("WORLD_SIZE")}'
        raise DistributedError(
            f'{who} has lost the others: one of them has ended, and says why itself; --auto_resume goes on from the '
            f'last checkpoint ({first_line(error).partition(". ")[0]})'
        ) from None


def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, of the same sizes on all ranks, by their means over the ranks."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _report_lost_peer():
        dist.all_reduce(together)
    together /= world_size()
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters, in the same order on all ranks, by their means over the ranks.

    A gradient that only other ranks have counts as 0 here; one that no rank has stays None.
    """
    parameters = list(parameters)
    if world_size() == 1 or not parameters:
        return
    missing = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
    for index in missing:
        parameters[index].grad = torch.zeros_like(parameters[index])
    there = parameters[0].new_ones(len(parameters))
    there[missing] = 0
    all_reduce_mean([*(parameter.grad for parameter in parameters if parameter.grad is not None), there])
    for index in missing:
        if there[index] == 0:
            parameters[index].grad = None


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether a flag is true on any rank.

    Args:
        flag: this rank's.
        device: the device the ranks communicate from.
    """
    if world_size() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    with _report_lost_peer():
        dist.all_reduce(total)
    return bool(total > 0)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of rank 0."""
    if world_size() > 1:
        with _report_lost_peer():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def broadcast_from_rank0(choice: Callable[[], Any]) -> Any:
    """Call a function on rank 0 and return its result on all ranks.

    Raises:
        DistributedError: on all ranks, where the function has raised it on rank 0.
    """
    if world_size() == 1:
        return choice()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            said[0] = choice()
        except LNCAError as error:
            said[1] = str(error)
    with _report_lost_peer():
        dist.broadcast_object_list(said, 0)
    if said[1] is not None:
        raise DistributedError(said[1])
    return said[0]


def gather(value: Any) -> list[Any]:
    """The values of all ranks on rank 0; the rank's own value on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    with _report_lost_peer():
        dist.gather_object(value, values)
    return values or [value]


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _report_lost_peer():
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    all_gather(None)


def shard_range(items: int) -> range:
    """The indices below ``items`` that are this rank's to process. Rank 0 has one whenever there is one."""
    return range(-(-items * rank() // world_size()), -(-items * (rank() + 1) // world_size()))


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a value over the ranks, for a loss that is no mean over images.

    Its gradient is that of the rank's own value; :func:`all_reduce_mean` makes it the mean's.
    """
    if world_size() == 1:
        return value
    mean = value.detach().clone()
    all_reduce_mean([mean])
    return value + (mean - value.detach())


class Sum(torch.autograd.Function):
    """The sum of tensors over the ranks, whose losses are summed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous().clone()
        with _report_lost_peer():
            dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.forward(ctx, gradient)
