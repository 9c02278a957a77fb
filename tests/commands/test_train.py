"""basicsr/train.py and basicsr/test.py, run as users run them."""

import copy
import csv
import json
import subprocess
import sys

import lmdb
import numpy as np
import pytest
import torch
import yaml
from outcomes import failed_in_one_line

from lnca_data.io.lmdb_store import TileStore
from lnca_data.io.lmdb_writer import write_lmdb
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT
from lnca_utils import checkpoint


def scores(path):
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(run, project, options):
    options['logger']['use_tb_logger'] = True
    result = run('train', options)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_trains_validates_saves_and_tests(run, project, options, trained, tmp_path_factory):
    assert 'Phase 1 of 2, autoencoder: iterations 1 to 3' in trained
    assert 'Phase 2 of 2, automaton: iterations 4 to 7' in trained
    for words in ('eta: ', 'lr:(', 'l_autoencoder_equivalence', 'l_automaton_latent', 'corrupted: ', 'gain: '):
        assert words in trained
    experiment = project / 'experiments' / 'lnca_photos'
    models = {file.name for file in (experiment / 'models').iterdir()}
    assert models == {f'net_g_{name}.pth' for name in (2, 4, 6, 'best', 'latest')}
    assert {file.name for file in (experiment / 'training_states').iterdir()} == {'2.state', '4.state', '6.state'}
    assert [row['dataset'] for row in scores(experiment / 'scores.csv')] == ['photos_val'] * 2 + ['photos_test'] * 2
    for name in ('photos_val', 'photos_test'):
        assert (experiment / 'visualization' / name / 'sheet_7.png').is_file()

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(project / 'tb_logger' / 'lnca_photos')).Reload()
    tags = set(events.Tags()['scalars'])
    assert {'learning_rate', 'phase', 'losses/l_autoencoder_task', 'losses/l_automaton_reconstruction'} <= tags
    assert {'metrics/photos_val/ssim', 'metrics/photos_val/ssim_corrupted', 'metrics/photos_val/ssim_gain'} <= tags
    # The sheets of both phases; the steps of the automaton when there is one.
    seen = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()['images']}
    assert seen['steps/photos_val'] == [step for step in seen['sheet/photos_val'] if step > 3]
    assert {'sheet/photos_test', 'steps/photos_test'} <= seen.keys()
    assert [event.value for event in events.Scalars('phase')] == [1, 1, 1, 2, 2, 2, 2]

    # test.py from somewhere else, the checkpoint's path relative to the project.
    test = {key: options[key] for key in ('name', 'model_type', 'num_gpu', 'network_g')}
    test['datasets'] = {'test': {k: v for k, v in options['datasets']['val_test'].items() if k != 'final_test'}}
    test['path'] = {'pretrain_network_g': 'experiments/lnca_photos/models/net_g_best.pth'}
    test['val'] = options['val'] | {'save_img': True, 'suffix': None}
    file = project / 'test.yml'
    file.write_text(yaml.safe_dump(test))
    # Not forked: test.py has to import what it needs.
    command = [sys.executable, project / 'basicsr' / 'test.py', '-opt', file]
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    result = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    results = project / 'results' / 'lnca_photos'
    in_training = scores(experiment / 'scores.csv')[2:]
    for row, expected in zip(scores(results / 'scores.csv'), in_training, strict=True):
        assert float(row['restored']) == pytest.approx(float(expected['restored']), abs=1e-4)
    pictures = {file.name for file in (results / 'visualization' / 'photos_test').iterdir()}
    assert pictures == {f'tile_{index:03d}_lnca_photos.png' for index in range(5)} | {'sheet_lnca_photos.png'}


@pytest.mark.parametrize('stopped_at', [2, 6])
def test_auto_resume_from_another_directory(run, project, options, tmp_path_factory, stopped_at):
    """A run cut off in either phase goes on where it was, and ends as if it had trained all the time."""
    whole = copy.deepcopy(options)
    assert run('train', whole).returncode == 0
    experiment = project / 'experiments' / 'lnca_photos'
    state = checkpoint.load(experiment / 'training_states' / f'{stopped_at}.state')
    assert state['iter'] == stopped_at
    # What a killed run leaves: the checkpoints so far.
    for folder, ending in (('models', '.pth'), ('training_states', '.state')):
        for file in (experiment / folder).iterdir():
            number = file.name.removesuffix(ending).removeprefix('net_g_')
            if not number.isdigit() or int(number) > stopped_at:
                file.unlink()
    result = run('train', whole, '--auto_resume', cwd=tmp_path_factory.mktemp('elsewhere'))
    assert result.returncode == 0, result.stderr
    assert f'Resuming training from epoch: {state["epoch"]}, iter: {stopped_at}.' in result.stderr
    assert ('Phase 1 of 2' in result.stderr) is (stopped_at == 2)
    assert 'iter:       7, lr:(1.464e-03,)' in result.stderr
    end = checkpoint.load(experiment / 'training_states' / '6.state')
    steps = [{int(entry['step']) for entry in optimizer['state'].values()} for optimizer in end['optimizers']]
    assert steps == [{6}, {6}]
    pools = [saved['ranks'][0]['pool']['tensors'] for saved in (state, end)]
    assert len(pools[1]['state']) == 10
    if stopped_at == 6:
        assert torch.equal(pools[1]['state'], pools[0]['state'])
    assert (experiment / 'models' / 'net_g_latest.pth').is_file()


def test_a_run_that_was_cut_off_after_its_last_iteration_is_scored(run, project, options):
    options['logger']['save_checkpoint_freq'] = 7
    assert run('train', options).returncode == 0
    experiment = project / 'experiments' / 'lnca_photos'
    expected = scores(experiment / 'scores.csv')
    for file in ('models/net_g_best.pth', 'models/net_g_latest.pth', 'scores.csv', 'training.json'):
        (experiment / file).unlink()
    state = checkpoint.load(experiment / 'training_states' / '7.state')
    state['evaluator'].update(best={}, evaluated={})
    checkpoint.save(state, experiment / 'training_states' / '7.state')
    result = run('train', options, '--auto_resume')
    assert result.returncode == 0, result.stderr
    assert (experiment / 'models' / 'net_g_best.pth').is_file()
    assert json.loads((experiment / 'training.json').read_text())['iterations'] == 7
    for row, before in zip(scores(experiment / 'scores.csv'), expected, strict=True):
        assert (row['dataset'], row['metric']) == (before['dataset'], before['metric'])
        assert float(row['restored']) == pytest.approx(float(before['restored']), abs=1e-4)


def test_phase_2_alone_on_a_trained_autoencoder(run, project, options, trained):
    """Also with another automaton than the one beside which the autoencoder was trained."""
    source = project / 'experiments' / 'lnca_photos' / 'models' / 'net_g_latest.pth'
    options['name'] = 'second'
    options['network_g'] = {'type': 'LatentViTCA', 'latent_channels': 4, 'hidden_channels': 4, 'embed_channels': 8}
    options['train']['autoencoder']['iters'] = 0
    options['train']['total_iter'] = 4
    failed_in_one_line(run('train', options), 'train.autoencoder.iters is 0', 'path.pretrain_network_g')
    options['path'].update(pretrain_network_g=str(source), strict_load_g=False)
    result = run('train', options)
    assert result.returncode == 0, result.stderr
    weights = checkpoint.load(project / 'experiments' / 'second' / 'models' / 'net_g_latest.pth')['params']
    for name, value in checkpoint.load(source)['params'].items():
        if name.startswith('autoencoder.'):
            assert torch.equal(weights[name], value), name


def test_a_full_disk_stops_the_run_and_keeps_what_is_there(run, project, options):
    assert run('train', options).returncode == 0
    experiment = project / 'experiments' / 'lnca_photos'
    for file in [*(experiment / 'training_states').iterdir(), *(experiment / 'models').iterdir()]:
        if '2' not in file.name:
            file.unlink()

    def checkpoints():
        folders = (experiment / 'models', experiment / 'training_states')
        return {path: path.read_bytes() for folder in folders for path in folder.iterdir()}

    before = checkpoints()
    room = min(len(content) for content in before.values()) // 2
    result = run('train', options, '--auto_resume', file_size_limit=room)
    failed_in_one_line(result, 'cannot save', 'free disk space')
    assert checkpoints() == before


def test_nans_are_skipped_and_then_stop_the_run(run, project, options):
    options['train']['autoencoder']['optim_g']['lr'] = 1e30
    options['train']['normalize_gradients'] = False
    options['train'].update(max_consecutive_nonfinite=2, on_divergence='warn')
    result = run('train', options)
    assert result.stderr.count('Skipped: the loss ') == 2
    assert '2 in a row, 2 in all' in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('error: ')]
    assert result.returncode == 1
    assert len(lines) == 1
    for words in ('the loss ', 'in iteration ', 'of phase autoencoder', '--auto_resume'):
        assert words in lines[0]


def test_epochs_whose_last_batch_is_dropped_are_counted_right(run, project, options):
    """21 tiles are 5 batches of 4: BasicSR counts 6 iterations an epoch, and would end after 65 of these 67."""
    options['train'].update(total_iter=67)
    options['train']['autoencoder']['iters'] = 63
    options['logger'].update(print_freq=67, save_checkpoint_freq=67)
    options['val']['val_freq'] = 1000
    result = run('train', options)
    assert result.returncode == 0, result.stderr
    assert (project / 'experiments' / 'lnca_photos' / 'models' / 'net_g_67.pth').is_file()


def test_an_option_file_cannot_run_code(project, options, fork_server):
    marker = project / 'ran'
    file = project / 'hostile.yml'
    code = f'extra: !!python/object/apply:os.mkdir [{marker}]'
    file.write_text(f'{yaml.safe_dump(options)}\n{code}\n')
    result = fork_server.run([project / 'basicsr' / 'train.py', '-opt', file])
    failed_in_one_line(result, 'not a plain YAML file', 'python/object')
    assert not marker.exists()


def test_an_unreadable_image_met_while_training(run, project, options, tiles, tmp_path):
    store = TileStore(tiles / 'train_gt.lmdb')
    path = tmp_path / 'broken.lmdb'
    write_lmdb(path, [(key, store[key]) for key in store.keys])
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'tile_003', b'not a png')
    options['datasets']['train'].update(dataroot_gt=str(path), num_worker_per_gpu=1)
    failed_in_one_line(run('train', options), 'broken.lmdb', 'tile_003', 'not a readable image')


def test_a_network_that_restores_nothing_ends_in_an_error(run, project, options, tiles, tmp_path):
    for name in ('val', 'val_test'):
        dataset = options['datasets'][name]
        store = TileStore(dataset['dataroot_gt'])
        close = tmp_path / f'{name}_lq.lmdb'
        write_lmdb(close, [(key, np.clip(store[key], 1, 255)) for key in store.keys])  # hardly corrupted
        dataset['dataroot_lq'] = str(close)
    options['val']['val_freq'] = 3  # at the end of the autoencoder's phase, too
    result = run('train', options)
    assert result.returncode == EXIT_BELOW_INPUT == 3
    assert 'Traceback' not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert 'ERROR: photos_test: the restored images score ' in line
    assert 'below the corrupted ones (psnr -' in line
    assert 'even the autoencoder alone, given the latents of the clean images, scores ssim -' in line
    # It did end: everything is there.
    experiment = project / 'experiments' / 'lnca_photos'
    assert (experiment / 'models' / 'net_g_best.pth').is_file()
    assert (experiment / 'training.json').is_file()
    assert scores(experiment / 'scores.csv')[-1]['dataset'] == 'photos_test'
    again = run('train', options, '--auto_resume')
    assert again.returncode == EXIT_BELOW_INPUT, again.stderr
