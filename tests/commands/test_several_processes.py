"""basicsr/train.py in two processes, by torchrun and by Slurm."""

import csv
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml

from lnca_utils import checkpoint

PATIENCE = 240  # seconds
GONE_WITHIN = 60


@pytest.fixture
def options(options):
    """Options with phases long enough to be interrupted."""
    options['train'].update(total_iter=60)
    options['train']['autoencoder']['iters'] = 30
    options['train']['automaton']['iters'] = 30
    options['datasets']['train']['batch_size_per_gpu'] = 2
    options['val']['val_freq'] = 20
    options['logger']['save_checkpoint_freq'] = 10
    return options


@pytest.fixture
def torchrun(project, unused_port):
    """Start ``torchrun basicsr/train.py`` with two processes."""
    started = []

    def start(options, *arguments):
        file = project / f'{options["name"]}.yml'
        file.write_text(yaml.safe_dump(options))
        launcher = ['-m', 'torch.distributed.run', '--nproc_per_node=2', f'--master_port={unused_port}']
        command = [*launcher, 'basicsr/train.py', '-opt', file, '--launcher', 'pytorch', '--auto_resume', *arguments]
        process = subprocess.Popen(
            [sys.executable, *command], cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture
def two_ranks(project, unused_port, fork_server):
    """Run ``basicsr/train.py`` in two ranks, with the environment that torchrun sets, and return the log of each.

    torchrun itself would import PyTorch three times.
    """

    def run(options, *arguments, launcher='pytorch', environments=None):
        file = project / f'{options["name"]}.yml'
        file.write_text(yaml.safe_dump(options))
        command = [project / 'basicsr' / 'train.py', '-opt', file, '--launcher', launcher, *arguments]
        group = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(unused_port)}
        environments = environments or [group | {'RANK': str(rank), 'LOCAL_RANK': str(rank)} for rank in range(2)]
        threads = {'OMP_NUM_THREADS': '1'}
        ranks = [
            fork_server.start(command, cwd=project, env=os.environ | threads | own, stdout=subprocess.DEVNULL)
            for own in environments
        ]
        try:
            return [finish(rank) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()

    return run


def finish(process, code=0):
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, said
    return said


def until_iteration(process, iteration):
    for line in process.stderr:
        found = re.search(r'iter: *(\d+), lr', line)
        if found and int(found[1]) >= iteration:
            return
    pytest.fail('it ended before')


def weights_of(project, options, name):
    path = project / 'experiments' / options['name'] / 'models' / f'net_g_{name}.pth'
    return checkpoint.load(path)['params']


def scores_of(path):
    with open(path / 'scores.csv', newline='') as file:
        return list(csv.DictReader(file))


def test_trains_resumes_and_scores_as_one_process_does(project, options, torchrun, run):
    said = finish(torchrun(options))
    assert said.count('Phase 2 of 2') == 1  # the first process speaks for all
    experiment = project / 'experiments' / options['name']
    scored = scores_of(experiment)
    assert [row['dataset'] for row in scored[-4:]] == ['photos_val'] * 2 + ['photos_test'] * 2
    state = checkpoint.load(experiment / 'training_states' / '60.state')
    first, second = (process['pool']['tensors'] for process in state['ranks'])
    assert len(first['gt']) == len(second['gt']) == 5  # of 10
    assert not torch.equal(first['lq'], second['lq'])
    picture = experiment / 'visualization' / 'photos_val' / 'sheet_60.png'
    assert picture.is_file()

    # The same network in one process has the same scores.
    test = {key: options[key] for key in ('name', 'model_type', 'num_gpu', 'network_g')}
    test['datasets'] = {'test': {k: v for k, v in options['datasets']['val_test'].items() if k != 'final_test'}}
    test['path'] = {'pretrain_network_g': str(experiment / 'models' / 'net_g_best.pth')}
    test['val'] = options['val'] | {'save_img': False, 'suffix': None}
    assert run('test', test).returncode == 0
    for row, expected in zip(scores_of(project / 'results' / options['name']), scored[-2:], strict=True):
        for column in ('restored', 'corrupted'):
            assert float(row[column]) == pytest.approx(float(expected[column]), abs=1e-5)

    # One process goes on where two have ended.
    options['train'].update(total_iter=64)
    options['train']['automaton']['iters'] = 34
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    assert 'Resuming training from epoch: 11, iter: 60.' in result.stderr


def test_a_killed_process_ends_the_other_and_the_run_goes_on_exactly(project, options, torchrun, two_ranks):
    whole = options | {'name': 'whole'}
    two_ranks(whole)

    process = torchrun(options)
    until_iteration(process, 43)
    children = psutil.Process(process.pid).children()
    (victim,) = [child for child in children if child.environ().get('RANK') == '1']
    victim.kill()
    killed = time.monotonic()
    said = finish(process, code=1)
    assert time.monotonic() - killed < GONE_WITHIN
    assert not psutil.wait_procs(children, timeout=1)[1]
    lines = [line for line in said.splitlines() if 'error: ' in line]
    assert len(lines) == 1
    assert '[rank0]: error: process 0 of 2 has lost the others' in lines[0]

    assert 'iter: 40.' in two_ranks(options, '--auto_resume')[0]
    for name in ('latest', 'best', '50'):
        weights, expected = weights_of(project, options, name), weights_of(project, whole, name)
        assert all(torch.equal(weights[key], value) for key, value in expected.items()), name
    assert scores_of(project / 'experiments' / options['name']) == scores_of(project / 'experiments' / 'whole')


@pytest.mark.parametrize('to_all', [True, False])
def test_a_signal_ends_both_after_the_same_iteration(project, options, torchrun, two_ranks, to_all):
    """The signal goes to the launcher, which passes it on, or to one rank only."""
    options['logger']['save_checkpoint_freq'] = 1000
    process = torchrun(options)
    until_iteration(process, 20)
    children = psutil.Process(process.pid).children()
    if to_all:
        process.send_signal(signal.SIGTERM)
    else:
        next(child for child in children if child.environ().get('RANK') == '1').send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode not in (0, None)
    assert not psutil.wait_procs(children, timeout=1)[1]
    experiment = project / 'experiments' / options['name']
    (state,) = (experiment / 'training_states').iterdir()
    assert int(state.stem) >= 20
    asked = 'SIGTERM' if to_all else 'another process was asked to end'
    assert f'{asked}: saved iteration {state.stem}; --auto_resume goes on from there.' in said
    assert 'exitcode  : 75' in said or to_all

    options['train'].update(total_iter=34)
    options['train']['automaton']['iters'] = 4
    assert f'iter: {state.stem}.' in two_ranks(options, '--auto_resume')[0]


def test_a_signal_to_one_ends_the_validation_of_both(project, options, torchrun, two_ranks, many_tiles):
    """The rank that receives the signal has fewer images than the other."""
    options['train'].update(total_iter=6)
    options['train']['autoencoder']['iters'] = 2
    options['train']['automaton']['iters'] = 4
    options['datasets']['val_more'] = options['datasets']['val'] | many_tiles | {'name': 'more'}
    options['val'].update(val_freq=3, batch_size=1)
    options['logger']['save_checkpoint_freq'] = 3
    whole = options | {'name': 'whole'}
    two_ranks(whole)

    process = torchrun(options)
    for line in process.stderr:
        if 'Validation photos_val' in line:
            break
    children = psutil.Process(process.pid).children()
    next(child for child in children if child.environ().get('RANK') == '1').send_signal(signal.SIGUSR1)
    said = finish(process, code=1)
    assert 'another process was asked to end: saved iteration 3' in said
    assert not psutil.wait_procs(children, timeout=1)[1]
    experiment = project / 'experiments' / options['name']
    assert 'more' not in [row['dataset'] for row in scores_of(experiment)]
    two_ranks(options, '--auto_resume')
    assert scores_of(experiment) == scores_of(project / 'experiments' / 'whole')


def test_slurm(project, options, unused_port, two_ranks, tmp_path_factory):
    """Two tasks meet by Slurm's variables; a stand-in for scontrol names this machine."""
    options['train'].update(total_iter=6)
    options['train']['autoencoder']['iters'] = 3
    options['train']['automaton']['iters'] = 3
    options['dist_params'] = {'backend': 'gloo', 'port': unused_port}
    scontrol = tmp_path_factory.mktemp('slurm') / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames here[1-2]" ] && printf "127.0.0.1\\nnowhere\\n"\n')
    scontrol.chmod(0o755)
    job = {
        'PATH': f'{scontrol.parent}:{os.environ["PATH"]}',
        'SLURM_NTASKS': '2',
        'SLURM_JOB_NODELIST': 'here[1-2]',
    }
    tasks = [job | {'SLURM_PROCID': str(rank), 'SLURM_LOCALID': str(rank)} for rank in range(2)]
    first, second = two_ranks(options, launcher='slurm', environments=tasks)
    assert 'Trained 6 iterations' in first
    assert 'Phase' not in second
    assert weights_of(project, options, 'latest')
