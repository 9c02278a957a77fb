"""Several processes that train one network: each computes the gradients of its own images, and all take the same step
with their mean. Without a launcher there is one process, and everything here does nothing.

Gradients are averaged here rather than by DistributedDataParallel: a batch is two steps of the optimiser, down losses
of parts of the network that its forward does not reach.
"""

import atexit
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lnca_arch.errors import InputError, first_line

DEFAULT_PORT = 29500


def begin(launcher: str, gpus: int, backend: str | None = None, port: int | None = None) -> None:
    """Join the processes that a launcher has started.

    Args:
        launcher: ``'pytorch'`` for torchrun, ``'slurm'`` for srun.
        gpus: of this machine; 0 to train without.
        backend: of torch.distributed; gloo, with NCCL for what is on a GPU, if left out.
        port: of the first process, on Slurm; ``MASTER_PORT`` or 29500 if left out.

    Raises:
        InputError: the launcher has not started this process, or the others do not answer.
    """
    if launcher == 'slurm':
        _take_over_from_slurm(port)
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if name not in os.environ]
    if missing:
        raise InputError(
            f'--launcher pytorch: {", ".join(missing)} not set; start it with torchrun --nproc_per_node=N '
            'basicsr/train.py'
        )
    if gpus:
        # With --gpus-per-task Slurm shows each process its own GPU only.
        local = 0 if launcher == 'slurm' and gpus == 1 else int(os.environ['LOCAL_RANK'])
        if local >= gpus:
            raise InputError(f'process {local} of this machine has no GPU: there are {gpus}; start as many processes')
        torch.cuda.set_device(local)
    if backend == 'nccl' and not gpus:
        raise InputError('dist_params.backend: nccl needs GPUs; leave it out, or use gloo')
    try:
        dist.init_process_group(backend or ('cpu:gloo,cuda:nccl' if gpus else 'gloo'))
    except RuntimeError as error:
        where = f'{os.environ.get("MASTER_ADDR")}, port {os.environ.get("MASTER_PORT")}'
        raise InputError(
            f'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} did not meet the others at {where}; another '
            f'port is --master_port for torchrun, or dist_params.port on Slurm ({first_line(error)})'
        ) from None
    atexit.register(dist.destroy_process_group)


def _take_over_from_slurm(port: int | None) -> None:
    """Say in torchrun's words what Slurm says in its own."""
    try:
        rank, count, nodes = (os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'JOB_NODELIST'))
        local = os.environ['SLURM_LOCALID']
    except KeyError as missing:
        raise InputError(f'--launcher slurm: {missing.args[0]} not set; start it with srun') from None
    if shutil.which('scontrol') is None:
        raise InputError('--launcher slurm: scontrol, which names the first machine, is not there')
    found = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.split():
        raise InputError(f'--launcher slurm: scontrol show hostnames {nodes} failed: {found.stderr.strip()}')
    os.environ.update(RANK=rank, WORLD_SIZE=count, LOCAL_RANK=local, MASTER_ADDR=found.stdout.split()[0])
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    os.environ.setdefault('MASTER_PORT', str(DEFAULT_PORT))


def rank() -> int:
    """The number of this process, from 0 on. The first one writes what all would write."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def _connected() -> Iterator[None]:
    """What fails in here does so because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        who = f'process {os.environ.get("RANK")} of {os.environ.get("WORLD_SIZE")}'
        raise InputError(
            f'{who} has lost the others: one of them has ended, and says why itself; --auto_resume goes on from the '
            f'last checkpoint ({first_line(error).partition(". ")[0]})'
        ) from None


def average(tensors: Iterable[Tensor]) -> None:
    """Replace tensors, which all processes have in the same sizes, by their means over the processes."""
    tensors = list(tensors)
    if count() == 1 or not tensors:
        return
    together = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _connected():
        dist.all_reduce(together)
    together /= count()
    for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of parameters, which all processes have in the same order, by their means over the
    processes. One that only others have counts as 0 here; one that no process has stays None."""
    parameters = list(parameters)
    if count() == 1 or not parameters:
        return
    missing = [index for index, parameter in enumerate(parameters) if parameter.grad is None]
    for index in missing:
        parameters[index].grad = torch.zeros_like(parameters[index])
    there = parameters[0].new_ones(len(parameters))
    there[missing] = 0
    average([*(parameter.grad for parameter in parameters), there])
    for index in missing:
        if there[index] == 0:
            parameters[index].grad = None


def share(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first process."""
    if count() > 1:
        with _connected():
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def agreed(choice: Callable[[], Any]) -> Any:
    """What the first process chooses, for all; no other one has to choose.

    Raises:
        InputError: the first process has raised it.
    """
    if count() == 1:
        return choice()
    said: list[Any] = [None, None]
    if rank() == 0:
        try:
            said[0] = choice()
        except InputError as error:
            said[1] = str(error)
    with _connected():
        dist.broadcast_object_list(said, 0)
    if said[1] is not None:
        raise InputError(said[1])
    return said[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, in the first one; its own in the others."""
    if count() == 1:
        return [value]
    values = [None] * count() if rank() == 0 else None
    with _connected():
        dist.gather_object(value, values)
    return values or [value]


def known_to_all(value: Any) -> list[Any]:
    """The values of all processes."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _connected():
        dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Until all processes are here."""
    known_to_all(None)


def share_of(items: int) -> range:
    """The numbers below ``items`` that are this process's to do; the first process has one whenever there is one."""
    return range(-(-items * rank() // count()), -(-items * (rank() + 1) // count()))


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a value, for a loss that is no mean over images. Its gradient is that of the own value: what
    :func:`average` makes the mean's of."""
    if count() == 1:
        return value
    mean = value.detach().clone()
    average([mean])
    return value + (mean - value.detach())


class Sum(torch.autograd.Function):
    """The sum of tensors over the processes, whose losses are summed."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.contiguous().clone()
        with _connected():
            dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return Sum.forward(ctx, gradient)
