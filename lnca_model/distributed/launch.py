"""Initialization of the process group for processes started by torchrun or Slurm."""

import atexit
import os
import random
import shutil
import subprocess
from typing import Any

import torch
import torch.distributed as dist

from lnca_model.distributed.collectives import broadcast_from_rank0, rank, world_size
from lnca_utils.errors import DistributedError, first_line

from basicsr.utils import set_random_seed

DEFAULT_PORT = 29500


def join_ranks(opt: dict[str, Any], launcher: str) -> None:
    """Join the process group of a launcher, if there is one, and seed this rank's random number generators.

    Args:
        opt: the options. ``dist``, ``rank``, ``world_size`` and, if missing, ``manual_seed`` are added; without a
            launcher, ``num_gpu`` is reduced to 1.
        launcher: ``'none'``, ``'pytorch'`` or ``'slurm'``.

    Raises:
        DistributedError: if the process was not started by the launcher, or the other ranks do not answer.
    """
    opt['dist'] = launcher != 'none'
    if opt['dist']:
        init_process_group(launcher, opt['num_gpu'], **opt.get('dist_params') or {})
    elif opt['num_gpu'] > 1:
        print(
            f'num_gpu: {opt["num_gpu"]} requested, one is used; for all, run torchrun '
            f'--nproc_per_node={opt["num_gpu"]} basicsr/train.py -opt FILE --launcher pytorch',
            flush=True,
        )
        opt['num_gpu'] = 1
    opt.update(rank=rank(), world_size=world_size())
    if opt.get('manual_seed') is None:
        opt['manual_seed'] = broadcast_from_rank0(lambda: random.randint(1, 10000))
    set_random_seed(opt['manual_seed'] + opt['rank'])


def init_process_group(launcher: str, gpus: int, backend: str | None = None, port: int | None = None) -> None:
    """Join the process group of a launcher.

    Args:
        launcher: ``'pytorch'`` for torchrun, ``'slurm'`` for srun.
        gpus: number of GPUs of this machine; 0 trains on the CPU.
        backend: backend of torch.distributed. Default: Gloo for CPU tensors, NCCL for CUDA tensors.
        port: port of rank 0 on Slurm. Default: ``MASTER_PORT``, or 29500.

    Raises:
        DistributedError: if the process was not started by the launcher, or the other ranks do not answer.
    """
    if launcher == 'slurm':
        _map_slurm_variables(port)
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK') if name not in os.environ]
    if missing:
        raise DistributedError(
            f'--launcher pytorch: {", ".join(missing)} not set; start it with torchrun --nproc_per_node=N '
            'basicsr/train.py'
        )
    if gpus:
        # With --gpus-per-task, each process sees only its own GPU.
        local = 0 if launcher == 'slurm' and gpus == 1 else int(os.environ['LOCAL_RANK'])
        if local >= gpus:
            raise DistributedError(
                f'process {local} of this machine has no GPU: there are {gpus}; start one process per GPU'
            )
        torch.cuda.set_device(local)
    if backend == 'nccl' and not gpus:
        raise DistributedError('dist_params.backend: nccl needs GPUs; leave it out, or use gloo')
    try:
        dist.init_process_group(backend or ('cpu:gloo,cuda:nccl' if gpus else 'gloo'))
    except RuntimeError as error:
        where = f'{os.environ.get("MASTER_ADDR")}, port {os.environ.get("MASTER_PORT")}'
        raise DistributedError(
            f'process {os.environ["RANK"]} of {os.environ["WORLD_SIZE"]} did not meet the others at {where}; another '
            f'port is --master_port for torchrun, or dist_params.port on Slurm ({first_line(error)})'
        ) from None
    atexit.register(dist.destroy_process_group)


def _map_slurm_variables(port: int | None) -> None:
    """Map Slurm's variables to torchrun's."""
    try:
        rank, count, nodes = (os.environ[f'SLURM_{name}'] for name in ('PROCID', 'NTASKS', 'JOB_NODELIST'))
        local = os.environ['SLURM_LOCALID']
    except KeyError as missing:
        raise DistributedError(f'--launcher slurm: {missing.args[0]} not set; start it with srun') from None
    if shutil.which('scontrol') is None:
        raise DistributedError('--launcher slurm: scontrol is missing; start on a machine of the Slurm cluster')
    found = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.split():
        raise DistributedError(f'--launcher slurm: scontrol show hostnames {nodes} failed: {found.stderr.strip()}')
    os.environ.update(RANK=rank, WORLD_SIZE=count, LOCAL_RANK=local, MASTER_ADDR=found.stdout.split()[0])
    if port is not None:
        os.environ['MASTER_PORT'] = str(port)
    os.environ.setdefault('MASTER_PORT', str(DEFAULT_PORT))
