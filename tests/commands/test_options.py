"""Each option file, with a short training and a small network, on a miniature of its dataset."""

import functools
import shutil
from pathlib import Path

import miniatures
import pytest
import yaml
from network_configs import read_network, shared_training, training_options

from lnca_data.prepare.packing import PackConfig, pack
from lnca_data.prepare.sources import SOURCES
from lnca_data.prepare.split import TEST_SHARE, VALIDATION_SHARE
from lnca_data.prepare.tiling import TilingSpec
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT

OPTIONS = Path(__file__).resolve().parents[2] / 'options'
# Option file → source, its choices, corruption of the validation and test pairs, miniature.
TASKS = {
    'celeba_denoise': ('celeba', {}, 'noise', miniatures.celeba),
    'celeba_deblur': ('celeba', {}, 'blur', miniatures.celeba),
    'cifar10_denoise': ('cifar10', {}, 'noise', miniatures.cifar10_binary),
    'cifar10_deblur': ('cifar10', {}, 'blur', miniatures.cifar10_binary),
    'tinyimagenet_denoise': ('tinyimagenet', {}, 'noise', miniatures.tinyimagenet),
    'tinyimagenet_deblur': ('tinyimagenet', {}, 'blur', miniatures.tinyimagenet),
    'renoir': ('renoir', {}, None, miniatures.renoir),
    'sid': ('sid', {'cameras': ['Sony']}, None, miniatures.sid),
    'gopro': ('gopro', {'blur': 'blur'}, None, miniatures.gopro),
    'realblur': ('realblur', {'variant': 'J'}, None, miniatures.realblur),
}
# One for each kind of pairs: noise and blur that training draws, and pairs that the dataset holds.
KINDS = ('tinyimagenet_denoise', 'cifar10_deblur', 'gopro')
PREFIXES = ('', 'plus_')
IMAGES = {'celeba': 202_599, 'cifar10': 60_000, 'tinyimagenet': 120_000}


def read(task):
    return yaml.safe_load((OPTIONS / f'lnca_{task}.yml').read_text())


def test_each_task_has_options():
    files = {path.stem.removeprefix('lnca_') for path in OPTIONS.glob('lnca_*.yml')}
    tasks = {'photos', 'photos_deblur', *TASKS}
    assert files == {prefix + task for prefix in PREFIXES for task in tasks}


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """Return the folder of the packed miniature of a task. Each is packed once."""

    @functools.cache
    def make(task):
        name, choices, corruption, miniature = TASKS[task]
        source = SOURCES[name]
        folder = tmp_path_factory.mktemp(task)
        pack(
            name,
            source.list(miniature(folder / 'source'), **choices),
            folder / task,
            PackConfig(
                TilingSpec(whole=True) if source.whole else TilingSpec(pixels=(32,)),
                {'type': corruption} if corruption else None,
            ),
        )
        return folder / task

    return make


@pytest.mark.parametrize(
    ('prefix', 'task'),
    [
        pytest.param(prefix, task, marks=() if task in KINDS else pytest.mark.slow)
        for prefix in PREFIXES
        for task in TASKS
    ],
)
def test_trains_in_all_phases(prefix, task, packed, project, run):
    shutil.copytree(packed(task), project / 'datasets' / task)
    options = read(prefix + task)
    phases = [phase for phase in ('autoencoder', 'automaton', 'joint') if phase in options['train']]
    assert len(phases) == (3 if prefix else 2)
    options['datasets']['train'].update(batch_size_per_gpu=4)
    options['network_g'].update(latent_channels=4, hidden_channels=4, embed_channels=8)
    options['train'].update(total_iter=2 * len(phases))
    for phase in phases:
        options['train'][phase].update(iters=2)
    options['train']['automaton'].update(pool_size=8, steps=[1, 2])
    options['val'].update(val_freq=2)
    options['logger'].update(print_freq=1, save_checkpoint_freq=2 * len(phases), use_tb_logger=False)
    options['num_gpu'] = 0
    result = run('train', options)
    # After two iterations a phase it ends, and may restore less than nothing.
    assert result.returncode in (0, EXIT_BELOW_INPUT), result.stderr

    experiment = project / 'experiments' / f'lnca_{prefix}{task}'
    assert (experiment / 'models' / 'net_g_best.pth').is_file()
    log = result.stdout + result.stderr
    assert f'Dataset {task}_train' in log
    assert 'kept in memory' in log
    assert f'Phase {len(phases)} of {len(phases)}, {phases[-1]}' in log
    scored = (experiment / 'scores.csv').read_text()
    assert f'{task}_val' in scored
    assert f'{task}_test' in scored


@pytest.mark.parametrize('task', TASKS)
def test_lasts_twenty_epochs(task):
    train, batch = read(task)['train'], read(task)['datasets']['train']['batch_size_per_gpu']
    assert train['autoencoder']['iters'] == train['automaton']['iters'] == train['total_iter'] // 2
    assert batch == 32
    if task.split('_')[0] in IMAGES:
        images = IMAGES[task.split('_')[0]]
        kept = images - round(TEST_SHARE * images)
        kept -= round(VALIDATION_SHARE * kept)
        assert train['autoencoder']['iters'] == 20 * (kept // batch)


@pytest.mark.parametrize('task', TASKS)
def test_curriculum_for_synthetic_data_only(task):
    train = read(task)['datasets']['train']
    corruption = TASKS[task][2]
    assert ('dataroot_lq' in train) == (corruption is None)
    assert train.get('corruption', {}).get('type') == corruption
    if corruption:
        assert train['corruption']['curriculum'] == {'noise': [0.25, 0.75], 'blur': [4, 10]}[corruption]


@pytest.mark.parametrize('task', [*TASKS, 'photos', 'photos_deblur'])
@pytest.mark.parametrize(('prefix', 'network'), [('', 'LatentNAFCA'), ('plus_', 'LNCA+')])
def test_a_comparison_trains_as_the_option_file_does(task, prefix, network):
    """The files of options/networks and the tasks' own option files say the same; LNCA+ trains as long as the paper. On
    the photographs the two have batches, phases and validations of other sizes."""
    options, papers = read(prefix + task), read(task)
    compared = training_options(options, read_network(network), shared_training(options)[1])
    assert options['name'] == f'lnca_{prefix}{task}'
    if task in TASKS:
        assert options['train']['total_iter'] == papers['train']['total_iter']
    else:
        for opt in (options, compared, papers):
            opt['datasets']['train']['batch_size_per_gpu'] = opt['train']['total_iter'] = None
            opt['train']['autoencoder']['iters'] = opt['train']['automaton']['iters'] = None
            opt['val']['val_freq'] = opt['logger']['save_checkpoint_freq'] = None
    assert compared | {'num_gpu': 'auto'} == options
    for key in ('datasets', 'val', 'logger'):
        assert options[key] == papers[key]
