"""Training with several ranks, each a process that runs one_of_several.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from third_phase import with_joint_phase

from lnca_model import distributed
from lnca_model.distributed import collectives
from lnca_model.training.sample_pool import SamplePool
from lnca_utils.errors import LNCAError

PROGRAM = Path(__file__).resolve().parents[1] / 'processes' / 'one_of_several.py'


@pytest.fixture
def train(model_options, tmp_path, unused_port):
    """A function that trains with a number of ranks, and returns what each has saved."""

    def start(count):
        model_options['train']['automaton']['pool_size'] = 100
        (tmp_path / 'options.yml').write_text(yaml.safe_dump(model_options))
        command = [sys.executable, PROGRAM, tmp_path]
        environments = [
            {} if count == 1 else {'RANK': f'{rank}', 'LOCAL_RANK': f'{rank}', 'WORLD_SIZE': f'{count}'}
            for rank in range(count)
        ]
        address = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(unused_port), 'OMP_NUM_THREADS': '1'}
        processes = [
            subprocess.Popen(command, env=os.environ | address | own, stderr=subprocess.PIPE, text=True)
            for own in environments
        ]
        for process in processes:
            _, stderr = process.communicate(timeout=240)
            assert process.returncode == 0, stderr
        return [torch.load(tmp_path / f'{rank}_of_{count}.pt', weights_only=True) for rank in range(count)]

    return start


def close(first, second):
    """Whether two tensors are equal to within 1e-5 times the larger of 1 and the largest absolute value."""
    return (first - second).abs().max() <= 1e-5 * second.abs().max().clamp(min=1)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_two_processes_have_the_gradients_of_one(train, model_options, reduction):
    model_options['network_g'].update(dropout=0, blend=True, perception='depthwise')
    model_options['train'] = with_joint_phase(model_options)['train'] | {'normalize_gradients': False}
    for phase in ('autoencoder', 'automaton', 'joint'):
        # Adam would amplify the rounding errors of gradients that are almost 0.
        model_options['train'][phase]['optim_g'] = {'type': 'SGD', 'lr': 1e-3}
        for name, options in model_options['train'][phase].items():
            if name.endswith('_opt') and reduction == 'sum':
                # So that the sums have gradients of the same size as the means.
                options.update(reduction='sum', loss_weight=options.get('loss_weight', 1) / 60_000)
    (alone,) = train(1)
    assert len(alone['gradients']) == 2 * model_options['train']['total_iter']
    for process in train(2):
        for step, (gradients, expected) in enumerate(zip(process['gradients'], alone['gradients'], strict=True)):
            for number, (gradient, other) in enumerate(zip(gradients, expected, strict=True)):
                assert close(gradient, other), (step, number)
        for name, value in process['network'].items():
            assert close(value.double(), alone['network'][name].double()), name
        assert process['log'] == pytest.approx(alone['log'], rel=1e-4)


def test_gradients_that_only_some_ranks_have(tmp_path, unused_port):
    """Both ranks have a gradient of the first parameter, one has that of the second, none that of the third."""
    program = """
import sys, torch
from torch import nn
from lnca_model import distributed
distributed.init_process_group('pytorch', gpus=0)
parameters = [nn.Parameter(torch.ones(size)) for size in (2, 3, 4)]
parameters[0].grad = torch.full((2,), 1.0 + 2 * distributed.rank())
if distributed.rank() == 1:
    parameters[1].grad = torch.full((3,), 5.0)
distributed.all_reduce_gradients(parameters)
torch.save([parameter.grad for parameter in parameters], f'{sys.argv[1]}/{distributed.rank()}.pt')
"""
    address = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(unused_port), 'WORLD_SIZE': '2', 'OMP_NUM_THREADS': '1'}
    processes = [
        subprocess.Popen(
            [sys.executable, '-c', program, tmp_path],
            env=os.environ | address | {'RANK': f'{rank}', 'LOCAL_RANK': f'{rank}'},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
        first, second, third = torch.load(tmp_path / f'{rank}.pt', weights_only=True)
        assert first.tolist() == [2, 2]
        assert second.tolist() == [2.5, 2.5, 2.5]
        assert third is None


def test_batch_norms_of_their_own(train, model_options):
    model_options['train']['sync_batch_norm'] = False
    first, second = train(2)
    (alone,) = train(1)
    assert not all(map(close, first['gradients'][0], alone['gradients'][0]))
    for name, value in first['network'].items():
        assert torch.equal(value, second['network'][name]), name


def test_shares_are_all_there_is():
    for items in range(12):
        shares = []
        for count in (1, 2, 3, 5):
            for rank in range(count):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(collectives, 'rank', lambda rank=rank: rank)
                    patch.setattr(collectives, 'world_size', lambda count=count: count)
                    share = distributed.shard_range(items)
                shares += share
                assert rank > 0 or len(share) > 0 or items == 0
        assert sorted(shares) == sorted([*range(items)] * 4)


@pytest.mark.parametrize('shares', [1, 2, 3, 7])
def test_pools_are_dealt_out_anew(shares):
    saved = []
    for first in (0, 3):
        pool = SamplePool(3)
        images = torch.arange(first, first + 3.0).reshape(3, 1, 1, 1)
        pool.add(images, images + 10, images + 20)
        saved.append(pool.state_dict())
    seen = []
    for share in range(shares):
        pool = SamplePool(6)
        pool.load_shard(saved, share, shares, torch.device('cpu'))
        drawn = pool.draw(6)
        assert torch.equal(drawn.lq, drawn.gt + 10)
        assert torch.equal(drawn.state, drawn.gt + 20)
        seen += drawn.gt.flatten().tolist()
    assert set(seen) == set(range(6))
    assert len(seen) == max(6, shares)


def test_without_its_launcher_a_process_says_how_to_start_it(monkeypatch):
    with pytest.raises(LNCAError, match='RANK, WORLD_SIZE, LOCAL_RANK not set; start it with torchrun'):
        distributed.init_process_group('pytorch', gpus=0)
    with pytest.raises(LNCAError, match='SLURM_PROCID not set; start it with srun'):
        distributed.init_process_group('slurm', gpus=0)
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setenv('WORLD_SIZE', '3')
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(LNCAError, match='process 2 of this machine has no GPU: there are 2'):
        distributed.init_process_group('pytorch', gpus=2)
