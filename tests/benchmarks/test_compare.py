"""benchmarks/compare.py on tiny networks."""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest
import yaml
from budget_planner import ESTIMATES, MIN_ITERATIONS, Planner
from network_configs import read_network, read_task, shared_training
from outcomes import failed_in_one_line

from lnca_utils import checkpoint
from lnca_utils.errors import LNCAError

NETWORKS = ['LatentNAFCA', 'LatentViTCA', 'ViTCA', 'NAFNet', 'Restormer']


@pytest.mark.parametrize('networks', [NETWORKS[:1] + NETWORKS[2:4], pytest.param(NETWORKS, marks=pytest.mark.slow)])
def test_networks_and_again(project, benchmark, tiles, edit, networks):
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in sorted(tiles.glob('*/data.mdb'))}
    command = ['-opt', 'task.yml', '--models', *networks]
    result = benchmark('compare', *command, estimated=networks != NETWORKS)
    assert result.returncode == 0, result.stderr
    differs = result.stdout.split('What differs:')[1]
    assert 'SHA-256' in result.stdout.split('The same for all:')[1]
    for words in ('PSNRLoss', *['lr: 0.0003'] * ('Restormer' in networks), 'update_rate: 0.5', 'swap_noise_std'):
        assert words in differs

    results = project / 'results' / 'lnca_photos'
    table = json.loads((results / 'table.json').read_text())
    rows = {row['network']: row for row in table['rows']}
    assert list(rows) == ['corrupted input', *networks]
    with open(results / 'table.csv', newline='') as file:
        in_csv = list(csv.DictReader(file))
    markdown = (results / 'table.md').read_text()
    for line, row in zip(in_csv, rows.values(), strict=True):
        assert float(line['ssim']) == row['ssim']
        assert f'{row["psnr"]:.2f}' in markdown
    for name in networks:
        row = rows[name]
        assert row['ssim gain'] == pytest.approx(row['ssim'] - rows['corrupted input']['ssim'])
        assert row['training seconds'] > 0
        assert row['peak training memory bytes'] > 1e6
        assert f'| {name} | {row["parameters"]:,} |' in markdown
        models = {file.name for file in (project / 'experiments' / f'lnca_photos_{name}_seed0' / 'models').iterdir()}
        assert models == {'net_g_best.pth', 'net_g_latest.pth'}

    # All have the same validation and test tiles, and the same score of the corrupted images.
    options = {name: yaml.safe_load((results / 'runs' / f'{name}_seed0.yml').read_text()) for name in networks}
    first = options['LatentNAFCA']
    for name in networks:
        assert options[name]['datasets'] == first['datasets']
        assert options[name]['val'] == first['val']
        assert options[name]['manual_seed'] == 0
    scored = {row['scores']['ssim']['corrupted'] for row in table['runs']}
    assert scored == {rows['corrupted input']['ssim']}
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in before} == before
    validated = [
        [row['corrupted'] for row in csv.DictReader(file.read_text().splitlines()) if row['dataset'] == 'photos_val']
        for file in sorted((project / 'experiments').glob('*/scores.csv'))
    ]
    assert len(validated) == len(networks)
    assert len({value for values in validated for value in values}) == 2  # PSNR and SSIM
    # All have the same iterations per phase, and the same optimizer except for its learning rate.
    assert [options[name]['train']['total_iter'] for name in networks] == [
        8 if name.startswith('Latent') else 4 for name in networks
    ]
    assert options['ViTCA']['train']['automaton']['optim_g'] == {'type': 'Adam', 'lr': 0.001, 'eps': 1e-7}
    assert options['NAFNet']['train']['optim_g'] == {'type': 'Adam', 'lr': 0.001, 'eps': 1e-7}
    assert all(options[name]['train']['normalize_gradients'] for name in networks)

    assert cv2.imread(str(results / 'chart.png')).std() > 10
    sheet = cv2.imread(str(results / 'sheet.png'))
    assert sheet.shape[1] == (2 + len(networks)) * (128 + 6)  # input, networks, truth

    # Nothing is trained twice; a network may be left out.
    start = time.time()
    result = benchmark('compare', *command[:-1])
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('finished before') == len(networks) - 1
    assert f'| {networks[-1]} |' in result.stdout
    assert all(file.stat().st_mtime < start for file in (project / 'experiments').glob('*/*.log'))
    edit('task.yml', lambda task: task['train']['automaton']['optim_g'].update(eps=1e-8))
    line = failed_in_one_line(benchmark('compare', *command))
    assert 'results of other settings: train.optim_g.eps was 1e-07, now 1e-08;' in line


def test_seeds_and_a_network_that_fails(project, benchmark, edit):
    edit('task.yml', lambda opt: opt['train'].update(on_divergence='warn'))  # a rollback would keep it from failing
    edit('options/networks/ViTCA.yml', lambda n: n['train']['automaton']['optim_g'].update(lr=1e30))
    command = ['-opt', 'task.yml', '--models', 'ViTCA', 'NAFNet', '--seeds', '2', '--output', 'out', '--batch', '2']
    result = benchmark('compare', *command)
    assert '2 of 4 runs failed' in failed_in_one_line(result)
    # Which is found first, a loss or a gradient, is chance.
    assert re.search('ViTCA, seed 1 failed: the .* is (nan|inf) in iteration', result.stderr)
    assert re.search('ViTCA cannot be measured: the .* is (nan|inf) in iteration', result.stderr)
    table = json.loads((project / 'out' / 'table.json').read_text())
    assert set(table['failed']) == {'ViTCA, seed 0', 'ViTCA, seed 1'}
    assert table['settings']['batch'] == 2
    assert table['settings']['iterations a phase'] == 8  # as many epochs as 4 batches of 4
    runs = [run['scores']['psnr']['restored'] for run in table['runs']]
    assert len(runs) == 2
    assert runs[0] != runs[1]
    rows = {row['network']: row for row in table['rows']}
    assert rows['NAFNet']['psnr'] == pytest.approx(sum(runs) / 2)
    assert rows['NAFNet']['psnr deviation'] == pytest.approx(abs(runs[0] - runs[1]) / 2**0.5)
    assert rows['ViTCA']['psnr'] is None
    markdown = (project / 'out' / 'table.md').read_text()
    assert '2 seeds, mean ± standard deviation' in markdown
    assert re.search('ViTCA, seed 0 failed: the .* is (nan|inf) in iteration', markdown)

    # Once its cause is mended it joins the others, which are left as they are.
    edit('options/networks/ViTCA.yml', lambda n: n['train']['automaton']['optim_g'].update(lr=1e-3))
    result = benchmark('compare', *command)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('finished before') == 2
    again = json.loads((project / 'out' / 'table.json').read_text())
    assert {row['network']: row['seeds'] for row in again['rows'][1:]} == {'ViTCA': 2, 'NAFNet': 2}


@pytest.mark.slow
def test_goes_on_after_it_was_killed(project, benchmark_process, edit):
    def longer(task):
        task['train'].update(total_iter=800)
        task['train']['autoencoder'].update(iters=400)
        task['train']['automaton'].update(iters=400)
        task['val'].update(val_freq=400)
        task['logger'].update(save_checkpoint_freq=50, print_freq=100)

    edit('task.yml', longer)
    command = ['compare', '-opt', 'task.yml', '--models', 'NAFNet']
    process = subprocess.Popen(
        [sys.executable, 'benchmarks/compare.py', *command[1:]],
        cwd=project,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    states = project / 'experiments' / 'lnca_photos_NAFNet_seed0' / 'training_states'
    end = time.monotonic() + 120
    while not list(states.glob('[0-9]*.state')):
        assert time.monotonic() < end, 'no checkpoint'
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    last = max(int(file.stem) for file in states.glob('[0-9]*.state'))
    assert last < 400

    spent = checkpoint.load(states / f'{last}.state')['profiler']
    result = benchmark_process(*command)
    assert result.returncode == 0, result.stderr
    results = project / 'results' / 'lnca_photos'
    assert f'iter: {last}.' in (results / 'runs' / 'NAFNet_seed0.log').read_text().replace(',', '')
    run = json.loads((results / 'runs' / 'NAFNet_seed0.json').read_text())
    assert run['iterations'] == 400
    assert run['seconds'] > spent['seconds'] > 0  # those before the interruption count


def test_the_papers_scores_stand_beside_ours(project, benchmark, tiles, edit):
    """Of pairs, too, which are not corrupted in training."""
    folder = project / 'datasets' / 'gopro'
    shutil.copytree(tiles, folder)
    shutil.copytree(folder / 'train_gt.lmdb', folder / 'train_lq.lmdb')

    def gopro(task):
        task['datasets']['train'].pop('corruption')
        task['datasets']['train'].update(dataroot_lq='train_lq.lmdb', num_worker_per_gpu=1)
        for dataset in task['datasets'].values():
            for side in {'dataroot_gt', 'dataroot_lq'} & dataset.keys():
                dataset[side] = f'datasets/gopro/{Path(dataset[side]).name}'

    edit('task.yml', gopro)
    result = benchmark('compare', '-opt', 'task.yml', '--models', 'NAFNet', estimated=True)
    assert result.returncode == 0, result.stderr
    assert "paper's SSIM" in result.stdout
    assert '| 0.908 |' in result.stdout


def planner(project, network, seconds, **tiles):
    """One that needs not measure."""
    output = project / 'planned'
    output.mkdir()
    estimate = {'iteration_seconds': seconds, 'validation_seconds': 0.1}
    (output / ESTIMATES).write_text(json.dumps({network: estimate}))
    return Planner(read_task(project / 'task.yml'), {network: read_network(network)}, tiles, output)


def test_a_budget_shortens_the_training(project, edit):
    edit('task.yml', lambda task: task['train']['automaton'].update(iters=1000))
    edit('task.yml', lambda task: task['train'].update(total_iter=1004))
    plan = planner(project, 'NAFNet', 1.0, train=400, val=10, test=10)
    _, full = shared_training(read_task(project / 'task.yml'))
    assert plan.iterations(1, None, None) == full == 1000
    ten, twenty = plan.iterations(1, None, 10), plan.iterations(1, None, 20)
    for iters, minutes in ((ten, 10), (twenty, 20)):
        assert plan.seconds('NAFNet', iters) < 0.85 * 60 * minutes
    assert MIN_ITERATIONS < ten < twenty < full
    assert plan.iterations(2, None, 20) == pytest.approx(ten, abs=2)
    assert plan.iterations(1, None, 1e6) == full
    assert plan.iterations(1, 30, None) == 30 * 100  # of 400 tiles in batches of 4
    with pytest.raises(LNCAError, match='need at least'):
        plan.iterations(1, None, 0.1)


def test_a_budget_is_said_in_the_table(project, benchmark, edit):
    edit('task.yml', lambda task: task['train']['automaton'].update(iters=10**6))
    edit('task.yml', lambda task: task['train'].update(total_iter=10**6 + 4))
    result = benchmark('compare', '-opt', 'task.yml', '--models', 'NAFNet', '--budget', '0.9', estimated=True)
    assert result.returncode == 0, result.stderr
    settings = json.loads((project / 'results/lnca_photos/table.json').read_text())['settings']
    assert settings['epochs a phase'] < settings['epochs of the option file'] == 200_000
    assert f'Budget of 0.9 minutes: {settings["epochs a phase"]:g} instead of 200000 epochs' in result.stdout


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--models', 'NAFNett'], ['NAFNett', 'Did you mean NAFNet?']),
        (['--seeds', '0'], ['--seeds']),
        (['--budget', '-1'], ['--budget']),
        (['--epochs', '0'], ['--epochs']),
        (['--batch', '1'], ['--batch']),
    ],
)
def test_bad_arguments(benchmark, arguments, words):
    line = failed_in_one_line(benchmark('compare', '-opt', 'task.yml', *arguments))
    for word in words:
        assert word in line


def test_no_tiles(project, benchmark, edit):
    edit('task.yml', lambda task: task['datasets']['val'].update(dataroot_lq='datasets/missing.lmdb'))
    line = failed_in_one_line(benchmark('compare', '-opt', 'task.yml'))
    assert 'datasets.val: datasets/missing.lmdb has no tiles yet' in line
    assert line.endswith('python datasets/prepare.py photos')


def test_no_test_set(project, benchmark, edit):
    edit('task.yml', lambda task: task['datasets'].pop('val_test'))
    assert 'final_test: true' in failed_in_one_line(benchmark('compare', '-opt', 'task.yml'))


def test_a_folder_of_something_else(project, benchmark):
    (project / 'mine').mkdir()
    (project / 'mine' / 'letter.txt').write_text('Dear')
    line = failed_in_one_line(benchmark('compare', '-opt', 'task.yml', '--models', 'NAFNet', '--output', 'mine'))
    assert 'mine is not empty' in line
    assert [file.name for file in (project / 'mine').iterdir()] == ['letter.txt']


COMMANDS = [['compare', '-opt', 'task.yml'], ['efficiency', '--quick']]


@pytest.mark.parametrize('command', COMMANDS)
def test_matplotlib_that_is_not_installed(benchmark, monkeypatch, command):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert 'pip install -e ".[benchmarks]"' in failed_in_one_line(benchmark(*command))


@pytest.mark.slow
@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize(
    ('package', 'extra'), [('spandrel_extra_arches', 'restormer-noncommercial'), ('matplotlib', 'benchmarks')]
)
def test_an_extra_that_is_not_installed(project, benchmark_process, command, package, extra):
    hidden = project / 'hidden' / package
    hidden.mkdir(parents=True)
    (hidden / '__init__.py').write_text(f'raise ModuleNotFoundError("No module named {package!r}")')
    result = benchmark_process(*command, PYTHONPATH=f'{hidden.parent}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    assert f'pip install -e ".[{extra}]"' in failed_in_one_line(result)


def test_a_network_file_may_not_change_what_holds_for_all(benchmark, edit):
    edit('options/networks/NAFNet.yml', lambda n: n.update(datasets={}))
    command = ('compare', '-opt', 'task.yml', '--models', 'NAFNet')
    assert 'datasets' in failed_in_one_line(benchmark(*command), 'NAFNet.yml: expected model_type, network_g, train')
    edit('options/networks/NAFNet.yml', lambda n: n.pop('datasets'))
    edit('options/networks/NAFNet.yml', lambda n: n['train'].update(normalize_gradients=False))
    failed_in_one_line(benchmark(*command), 'NAFNet.yml: train.normalize_gradients does not belong there')
