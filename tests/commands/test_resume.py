"""Interrupted runs of basicsr/train.py, and resuming."""

import csv
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch
import yaml
from outcomes import failed_in_one_line

from lnca_utils import checkpoint

PATIENCE = 240  # seconds
KILLS = 5
IN_JOINT = ('optim_g', 'reconstruction_opt', 'hidden_overflow_opt')


@pytest.fixture
def long_options(options):
    """Options with phases long enough to be interrupted, and checkpoints and validations at different iterations."""
    joint = {key: value for key, value in options['train']['automaton'].items() if key in IN_JOINT}
    options['train'].update(total_iter=120, joint=joint)
    for phase in ('autoencoder', 'automaton', 'joint'):
        options['train'][phase]['iters'] = 40
    options['datasets']['train']['num_worker_per_gpu'] = 1
    options['val']['val_freq'] = 12
    options['logger'].update(save_checkpoint_freq=8, print_freq=1)
    return options


@pytest.fixture
def start(project, fork_server):
    """Start basicsr/train.py in ``folder``."""

    def train(options, auto_resume=True, folder=project, **more):
        file = folder / 'options.yml'
        file.write_text(yaml.safe_dump(options))
        command = [folder / 'basicsr' / 'train.py', '-opt', file, *(['--auto_resume'] if auto_resume else [])]
        # Threads would wait for each other where other work runs, too.
        environment = os.environ | {'OMP_NUM_THREADS': '1'}
        return fork_server.start(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, **more)

    return train


@pytest.fixture
def left_alone(project, start, tmp_path_factory):
    """Train without interruption in a folder like ``project``, and return that folder."""

    def train(options):
        other = tmp_path_factory.mktemp('left_alone')
        shutil.copytree(project / 'basicsr', other / 'basicsr')
        process = start(options, folder=other)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        return other

    return train


def until_iteration(process, iteration):
    """Read the log of a run until it reports an iteration."""
    said = []
    for line in process.stderr:
        said.append(line)
        if 'iter:' in line and 'lr:(' in line and int(line.split('iter:')[1].split(',')[0]) >= iteration:
            return
    pytest.fail(''.join(said))


def until_said(process, words):
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return
    pytest.fail(''.join(said))


def weights_of(project, name):
    return checkpoint.load(project / 'experiments' / 'lnca_photos' / 'models' / f'net_g_{name}.pth')['params']


def scores_of(project):
    with open(project / 'experiments' / 'lnca_photos' / 'scores.csv', newline='') as file:
        return list(csv.reader(file))


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_killed_at_any_moment_a_run_ends_in_the_same_weights(project, start, long_options, left_alone):
    other = left_alone(long_options)

    moments = random.Random()  # others in each run of this test
    for kill in range(KILLS):
        process = start(long_options)
        until_iteration(process, (kill + 1) * 120 // (KILLS + 1))
        time.sleep(moments.random() * 0.2)
        process.kill()
        process.communicate()
    process = start(long_options)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    for name in ('latest', 'best', '120', '96'):
        assert same(weights_of(project, name), weights_of(other, name)), name
    assert scores_of(project) == scores_of(other)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number, project, start, long_options):
    long_options['logger'].update(save_checkpoint_freq=1000)
    process = start(long_options)
    until_iteration(process, 30)
    process.send_signal(number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    (state,) = (project / 'experiments' / 'lnca_photos' / 'training_states').iterdir()
    assert int(state.stem) >= 30
    assert f'{number.name}: saved iteration {state.stem}; --auto_resume goes on from there.' in said
    assert 'Traceback' not in said
    long_options['train'].update(total_iter=40 + 2 + 2)
    for phase in ('automaton', 'joint'):
        long_options['train'][phase]['iters'] = 2
    process = start(long_options)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert f'iter: {state.stem}.' in said


def test_a_signal_to_all_processes_of_a_run_leaves_it_its_workers(project, start, long_options):
    """Schedulers and Ctrl-C signal the whole process group."""
    long_options['datasets']['train'].update(num_worker_per_gpu=2, persistent_workers=True)
    long_options['logger'].update(save_checkpoint_freq=1000)
    process = start(long_options, start_new_session=True)
    until_iteration(process, 10)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.killpg(process.pid, number)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    assert 'Traceback' not in said
    (state,) = (project / 'experiments' / 'lnca_photos' / 'training_states').iterdir()
    assert int(state.stem) >= 10
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # none is left


@pytest.fixture
def slow_validations(long_options, many_tiles):
    """Options with a second validation dataset and a test dataset that take seconds."""
    datasets = long_options['datasets']
    datasets['val_more'] = datasets['val'] | many_tiles | {'name': 'more'}
    datasets['val_test'] |= many_tiles
    long_options['train'].update(total_iter=18)
    del long_options['train']['joint']
    long_options['train']['autoencoder']['iters'] = 3
    long_options['train']['automaton']['iters'] = 15
    long_options['val'].update(val_freq=6, batch_size=1)
    long_options['logger']['save_checkpoint_freq'] = 12
    return long_options


def test_a_validation_that_was_cut_off_is_done_when_the_run_goes_on(project, start, slow_validations, left_alone):
    other = left_alone(slow_validations)
    states = project / 'experiments' / 'lnca_photos' / 'training_states'

    # No checkpoint was due in iteration 6, and one in iteration 12, of which the third validates again; 18 is the last.
    for iteration, number, code, words, dataset in (
        (6, signal.SIGTERM, 75, 'Validation photos_val', 'more'),
        (12, signal.SIGKILL, -signal.SIGKILL, 'Validation photos_val', 'more'),
        (12, signal.SIGTERM, 75, 'Validation photos_val', 'more'),
        (18, signal.SIGTERM, 75, 'Trained 18 iterations', 'photos_test'),
    ):
        process = start(slow_validations)
        until_said(process, words)
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, said
        assert (states / f'{iteration}.state').is_file()
        assert not any(row[0] == str(iteration) and row[2] == dataset for row in scores_of(project))
    process = start(slow_validations)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert scores_of(project) == scores_of(other)
    for name in ('latest', 'best', '12'):
        assert same(weights_of(project, name), weights_of(other, name)), name


def test_of_a_damaged_checkpoint_the_one_before_is_used(project, run, options):
    options['logger'].update(save_checkpoint_freq=1, keep_last_checkpoints=3)
    assert run('train', options).returncode == 0
    experiment = project / 'experiments' / 'lnca_photos'
    states = experiment / 'training_states'
    assert sorted(path.name for path in states.iterdir()) == ['5.state', '6.state', '7.state']
    models = {f'net_g_{number}.pth' for number in (5, 6, 7, 'best', 'latest')}
    assert {path.name for path in (experiment / 'models').iterdir()} == models
    expected = weights_of(project, 'latest')

    flipped = bytearray((states / '7.state').read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (states / '7.state').write_bytes(flipped)
    network = experiment / 'models' / 'net_g_6.pth'
    network.write_bytes(network.read_bytes()[:1000])
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    assert 'Resuming training from epoch: 0, iter: 5.' in result.stderr
    for name in ('7.state: not readable', 'net_g_6.pth: not readable'):
        assert name in result.stderr
    assert same(weights_of(project, 'latest'), expected)

    for path in states.iterdir():
        path.write_bytes(b'')
    result = run('train', options, '--auto_resume')
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith('error: no checkpoint can be resumed from: ')


def test_a_run_that_went_back_keeps_what_it_wrote_last(project, run, options):
    options['logger'].update(save_checkpoint_freq=1, keep_last_checkpoints=2)
    assert run('train', options).returncode == 0
    experiment = project / 'experiments' / 'lnca_photos'
    states = experiment / 'training_states'
    # What a longer run had left, and a copy of somebody's.
    (states / '6.state').rename(states / '9.state')
    (experiment / 'models' / 'net_g_6.pth').rename(experiment / 'models' / 'net_g_9.pth')
    (states / '7_good.state').write_bytes((states / '7.state').read_bytes())
    options['path']['resume_state'] = str(states / '7.state')
    options['train']['total_iter'] += 1
    options['train']['automaton']['iters'] += 1
    result = run('train', options)
    assert result.returncode == 0, result.stderr
    assert 'iter: 7.' in result.stderr
    assert sorted(path.name for path in states.iterdir()) == ['7.state', '7_good.state', '8.state']


def test_after_going_back_what_was_written_last_is_gone_on_from(project, start, run, options):
    options['logger'].update(save_checkpoint_freq=2)
    assert run('train', options).returncode == 0
    options['path']['resume_state'] = 'experiments/lnca_photos/training_states/2.state'
    options['train'].update(total_iter=4)
    options['train']['automaton']['iters'] = 1
    assert run('train', options).returncode == 0
    options['train'].update(total_iter=7)
    options['train']['automaton']['iters'] = 4
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    assert 'iter: 4.' in result.stderr

    # Also if it was ended before it wrote any.
    process = start(options, auto_resume=False)
    until_said(process, 'Phase 1 of 2')
    process.kill()
    process.communicate()
    result = run('train', options, '--auto_resume')
    assert 'iter: 2.' in result.stderr


def test_two_runs_of_one_name(project, start, run, long_options):
    long_options['train']['total_iter'] = 10_080
    long_options['train']['automaton']['iters'] = 10_000
    process = start(long_options)
    until_iteration(process, 2)
    folder = project / 'experiments' / 'lnca_photos'
    for arguments in ([], ['--auto_resume']):
        line = failed_in_one_line(run('train', long_options, *arguments), str(folder), 'give this run another name')
        assert f'process {process.pid} of ' in line
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ['lnca_photos']
    # The lock dies with its process, though workers may outlive it for a while.
    process.kill()
    process.communicate()
    process = start(long_options)
    until_iteration(process, 2)
    process.kill()
    process.communicate()


def test_a_longer_or_slower_phase_on_resuming(project, run, options):
    """The schedules of the option file apply from there on."""
    options['logger']['save_checkpoint_freq'] = 7
    assert run('train', options).returncode == 0
    options['train'].update(total_iter=13)
    options['train']['automaton'].update(iters=10)
    options['train']['automaton']['optim_g'].update(lr=0.004)
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    # Half of 0.004 in the middle of the phase, which is 10 iterations long now: iteration 9 is its sixth.
    assert 'iter:       9, lr:(2.000e-03,)' in result.stderr

    options['train']['automaton']['scheduler'] = {'type': 'MultiStepLR', 'milestones': [6], 'gamma': 0.5}
    options['name'] = 'steps'
    assert run('train', options).returncode == 0
    options['train'].update(total_iter=15)
    options['train']['automaton'].update(iters=12)
    options['train']['automaton']['optim_g'].update(lr=0.001)
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    assert 'iter:       8, lr:(1.000e-03,)' in result.stderr
    assert 'iter:      10, lr:(5.000e-04,)' in result.stderr
