"""Collectives over all ranks, which report a lost peer in one line.

Gradients are averaged here, not by DistributedDataParallel, for three reasons. DistributedDataParallel needs a new
wrapper for every phase, since phases freeze different parameters. It needs ``find_unused_parameters``, since losses can
be switched off. And it communicates within the backward pass, where a lost peer raises the same RuntimeError as any
other failure.
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
    """Return the rank of this process, 0 without a launcher. Rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks, 1 without a launcher."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _report_lost_peer() -> Iterator[None]:
    """Report a failed collective as a lost peer."""
    try:
        yield
    except RuntimeError as error:
        who = f'process {os.environ.get("RANK")} of {os.environ.get("WORLD_SIZE")}'
        raise DistributedError(
            f'{who} has lost the others: one of them has exited, see its own error; resume with --auto_resume '
            f'({first_line(error).partition(". ")[0]})'
        ) from None


def all_reduce_mean(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by their means over the ranks, in place; shapes must be equal on all ranks."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _report_lost_peer():
        dist.all_reduce(flat)
    flat /= world_size()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def all_reduce_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters by their means over the ranks.

    A gradient that is None on some ranks counts as 0 there; a gradient that is None on all ranks stays None.

    Args:
        parameters: the parameters, in the same order on all ranks.
    """
    parameters = list(parameters)
    if world_size() == 1 or not parameters:
        return
    missing = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
    for index in missing:
        parameters[index].grad = torch.zeros_like(parameters[index])
    is_present = parameters[0].new_ones(len(parameters))
    is_present[missing] = 0
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    all_reduce_mean([*gradients, is_present])
    for index in missing:
        if is_present[index] == 0:
            parameters[index].grad = None


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return whether a flag is true on any rank.

    Args:
        flag: the flag of this rank.
        device: device of the tensors that the ranks exchange.
    """
    if world_size() == 1:
        return flag
    total = torch.tensor(float(flag), device=device)
    with _report_lost_peer():
        dist.all_reduce(total)
    return bool(total > 0)


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of rank 0, in place."""
    if world_size() > 1:
        with _report_lost_peer():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def broadcast_from_rank0(choice: Callable[[], Any]) -> Any:
    """Call a function on rank 0 and return its result on all ranks.

    Raises:
        LNCAError: on all ranks, if the function raises one on rank 0. With several ranks it is a DistributedError.
    """
    if world_size() == 1:
        return choice()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = choice()
        except LNCAError as error:
            outcome[1] = str(error)
    with _report_lost_peer():
        dist.broadcast_object_list(outcome, 0)
    result, message = outcome
    if message is not None:
        raise DistributedError(message)
    return result


def gather(value: Any) -> list[Any]:
    """Return a list of the values of all ranks on rank 0, and a list of this rank's value on the others."""
    if world_size() == 1:
        return [value]
    values: list[Any] | None = [None] * world_size() if rank() == 0 else None
    with _report_lost_peer():
        dist.gather_object(value, values)
    return values or [value]


def all_gather(value: Any) -> list[Any]:
    """Return a list of the values of all ranks."""
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
    """Return the part of ``range(items)`` that this rank processes; on rank 0 it is empty only if ``items`` is 0."""
    return range(-(-items * rank() // world_size()), -(-items * (rank() + 1) // world_size()))


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a value over the ranks, for losses that are nonlinear in a mean over images.

    On each rank, the gradient is that of the rank's own value; the mean of these gradients is the gradient of the mean.
    """
    if world_size() == 1:
        return value
    mean = value.detach().clone()
    all_reduce_mean([mean])
    return value + (mean - value.detach())


class Sum(torch.autograd.Function):
    """Sum of a tensor over the ranks; the gradient is that of the sum of the losses of all ranks.

    Unlike torch.distributed.nn.functional.all_reduce, it reports a lost peer in one line.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        tensor = tensor.contiguous().clone()
        with _report_lost_peer():
            dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Sum the gradient over the ranks."""
        return Sum.forward(ctx, gradient)
