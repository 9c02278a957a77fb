"""Mistakes in options are reported before anything is created."""

import shutil
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from lnca_data.io.lmdb_store import TileStore
from lnca_data.io.lmdb_writer import write_lmdb
from lnca_model import distributed
from lnca_model.config import schema
from lnca_model.config.checks import load_options
from lnca_model.config.yaml_options import SafeLoader, apply_overrides, read_command_line, read_options
from lnca_model.training import trainer
from lnca_utils.errors import LNCAError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def parse(tmp_path):
    """A function that writes options to an option file and loads it as train.py does."""

    def call(options):
        file = tmp_path / 'options.yml'
        file.write_text(options if isinstance(options, str) else yaml.safe_dump(options))
        return load_options(read_command_line(['-opt', str(file)]), tmp_path, is_train=True)

    return call


def change(options, path, value):
    *blocks, key = path.split('.')
    for block in blocks:
        options = options[block]
    if value is None:
        del options[key]
    else:
        options[key] = value


@pytest.mark.parametrize(
    ('path', 'value', 'message'),
    [
        ('network_g.type', 'LatentNAFCa', 'network_g: type .LatentNAFCa. is unknown. Did you mean LatentNAFCA?'),
        ('network_g.hiden_channels', 4, 'network_g.hiden_channels is unknown. Did you mean hidden_channels?'),
        ('network_g.embed_channels', 7, 'embed_channels and ffn_expand × state channels must be even'),
        ('network_g.type', 'EDSR', 'network_g.downsamplings is unknown'),
        ('name', '../outside', 'name must be a name for a folder'),
        ('num_gpu', 99, 'num_gpu: 99 requested'),
        ('datasets.val.name', '../outside', 'datasets.val.name must be a name for a folder'),
        (
            'train.automaton.scheduler',
            {'type': 'CosineAnnealingRestartLR', 'periods': [2]},
            r'train.automaton.scheduler: periods \[2\] end before the phase, which has',
        ),
        ('num_gpu', 'all', "num_gpu must be a whole number of at least 0, or 'auto'"),
        ('datasets.train.persistent_workers', True, 'datasets.train.persistent_workers: there are no workers'),
        ('datasets.train.prefetch_mode', 'cuda', 'cuda needs a GPU and pin_memory: true'),
        ('val.val_freq', None, 'val.val_freq is missing'),
        (
            'logger.keep_last_checkpoints',
            0,
            'logger.keep_last_checkpoints must be a whole number or ~ of at least 1, got 0',
        ),
        ('train.autoencoder.optim_g.lr', float('nan'), 'train.autoencoder.optim_g.lr must be a finite number'),
        ('train.autoencoder.optim_g.epsilon', 1, 'train.autoencoder.optim_g.epsilon is unknown. Did you mean eps?'),
        ('train.autoencoder.optim_g.betas', [0.9], 'train.autoencoder.optim_g, type Adam'),
        (
            'train.autoencoder.scheduler.period',
            [1],
            'train.autoencoder.scheduler.period is unknown. Did you mean periods?',
        ),
        ('train.autoencoder.optim_g.type', 'LBFGS', 'train.autoencoder.optim_g, type LBFGS: does not work here'),
        ('train.autoencoder.optim_g.type', 'SparseAdam', 'type SparseAdam: does not work here'),
        ('train.autoencoder.optim_g.type', 'Optimizer', 'type .Optimizer. is unknown'),
        ('val.metrics.psnr.crop_border', 8, r'val.metrics.psnr: .* at least 17×17 pixels, got 16×16'),
        ('val.metrics.ssim.crop_border', 3, r'val.metrics.ssim: .* at least 17×17 pixels'),
        ('val.metrics.ssim.crop_border', None, 'val.metrics.ssim.crop_border is missing'),
        ('network_g', 'LatentNAFCA', 'network_g must be a block'),
        ('model_type', 'LNCAmodel', 'model_type: .LNCAmodel. is unknown. Did you mean LNCAModel?'),
        ('train.autoencoder.task_opt.type', 'MaskTaskLoss', 'train.autoencoder.task_opt.*Did you mean MaskedTaskLoss?'),
        (
            'train.autoencoder.task_opt.weight',
            1,
            'train.autoencoder.task_opt.weight is unknown. Did you mean loss_weight?',
        ),
        ('train.autoencoder.task_opt.reduction', 'none', 'use reduction: mean or sum'),
        ('train.autoencoder.tusk_opt', {'type': 'L1Loss'}, 'tusk_opt is unknown. Did you mean task_opt?'),
        ('train.autoencoder.optim_g.lr', 'high', 'train.autoencoder.optim_g.lr must be a number above 0, got .high.'),
        ('train.autoencoder.optim_g.type', 'Adams', 'train.autoencoder.optim_g.*Did you mean Adam?'),
        ('train.automaton.scheduler.type', 'Cosine', 'train.automaton.scheduler: type .Cosine. is unknown'),
        ('train.automaton.steps', [8], r'train.automaton.steps must be \[least, most\]'),
        ('train.automaton.steps', [8, 4], r'train.automaton.steps must be \[least, most\]'),
        (
            'train.automaton.activation_checkpointing',
            'ful',
            'train.automaton.activation_checkpointing .ful. is unknown. Did you mean full?',
        ),
        ('train.automaton.pool_size', 0, 'train.automaton.pool_size must be a whole number of at least 1'),
        (
            'train.automaton.pool_size',
            1e3,
            'train.automaton.pool_size must be a whole number of at least 1, got 1000.0',
        ),
        ('train.automaton.steps', [8, 32.0], r'train.automaton.steps.1. must be a whole number'),
        ('train.total_iter', 8, 'train.total_iter: is 8, but .* is 7; make them equal'),
        ('train.warmup_iter', 5, 'train.warmup_iter must be -1: warm-up is not supported, got 5'),
        ('train', None, 'train missing'),
        ('datasets.train', None, 'datasets.train is missing'),
        ('datasets.train.type', 'TilesDataset', 'datasets.train: type .* Did you mean TileDataset?'),
        ('datasets.train.corruption', None, 'with no dataroot_lq a corruption is needed'),
        ('datasets.train.corruption.type', 'nose', 'corruption: type .nose. is unknown. Did you mean noise?'),
        ('datasets.train.corruption.strength', 1, 'datasets.train.corruption.strength is unknown'),
        ('datasets.val.dataroot_lq', None, 'photos_val.*validation and test need pairs'),
        ('datasets.val.dataroot_gt', '/nowhere/gt.lmdb', '/nowhere/gt.lmdb: there is no such LMDB'),
        ('val.metrics.ssim.type', 'calculate_sim', 'val.metrics.ssim: type .calculate_sim. is unknown'),
        (
            'datasets.train.dataroot_gt',
            '/nowhere/gt.lmdb',
            '^/nowhere/gt.lmdb: there is no such LMDB; pack the dataset',
        ),
        ('val.selection_metric', 'sism', 'val.selection_metric: .sism. is unknown. Did you mean ssim?'),
        ('dist_params', {'backend': 'ncl'}, 'dist_params.backend .ncl. is unknown. Did you mean nccl?'),
        ('val.precision', 'bfloat6', 'val.precision .bfloat6. is unknown. Did you mean bfloat16?'),
        ('val.batch_size', 0, 'val.batch_size must be a whole number of at least 1'),
        ('path.pretrain_network_g', 'missing.pth', 'missing.pth: no such checkpoint'),
    ],
)
def test_mistakes_are_named(parse, options, tmp_path, path, value, message):
    change(options, path, value)
    with pytest.raises(LNCAError, match=message) as error:
        parse(options)
    assert '\n' not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ['options.yml']


def test_tiles_too_small_for_a_loss_are_named_at_once(parse, options):
    options['train']['automaton']['ssim_opt'] = {'type': 'SSIMLoss'}
    parse(options)
    options['datasets']['train']['gt_size'] = 8
    with pytest.raises(LNCAError, match=r'automaton.ssim_opt: SSIMLoss needs images of at least 11×11 pixels'):
        parse(options)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a: [1', 'not a plain YAML file'),
        ('just words', 'not an option file'),
        ('a: !!python/object/apply:os.getcwd []', 'not a plain YAML file.*python/object'),
        ('name: a', 'model_type, num_gpu, network_g, datasets, path, train, logger missing'),
    ],
)
def test_files_that_are_no_option_files(parse, text, message):
    with pytest.raises(LNCAError, match=message) as error:
        parse(text)
    assert '\n' not in str(error.value)


def test_a_missing_option_file(tmp_path):
    with pytest.raises(LNCAError, match=r'none.yml: cannot read the option file \(No such file'):
        load_options(read_command_line(['-opt', str(tmp_path / 'none.yml')]), tmp_path, is_train=True)


def test_tiles_that_do_not_divide(parse, options, tiles, tmp_path_factory):
    store = TileStore(tiles / 'train_gt.lmdb')
    odd = tmp_path_factory.mktemp('odd') / 'gt.lmdb'
    write_lmdb(odd, [(key, store[key][:14, :14]) for key in store.keys])
    options['datasets']['train']['dataroot_gt'] = str(odd)
    with pytest.raises(LNCAError, match='tiles of 14×14 do not divide by 4'):
        parse(options)


@pytest.fixture
def with_basicsrs_own_dataset(options, tiles):
    options['scale'] = 1
    options['datasets']['val'] = {
        'name': 'val',
        'type': 'PairedImageDataset',
        'dataroot_gt': str(tiles / 'val_gt.lmdb'),
        'dataroot_lq': str(tiles / 'val_lq.lmdb'),
        'io_backend': {'type': 'lmdb'},
    }
    return options


def test_pairs_that_do_not_match_for_basicsrs_own_dataset(parse, with_basicsrs_own_dataset, tiles):
    parse(with_basicsrs_own_dataset)
    with_basicsrs_own_dataset['datasets']['val']['dataroot_lq'] = str(tiles / 'test_lq.lmdb')
    with pytest.raises(LNCAError, match='do not hold the same images'):
        parse(with_basicsrs_own_dataset)


def test_basicsrs_own_dataset_with_something_unknown(parse, with_basicsrs_own_dataset):
    options = with_basicsrs_own_dataset['datasets']['val']
    options['gt_sise'] = 16
    options['io_backend'] = {'type': 'lmbd', 'read_ahead': True}
    with pytest.raises(LNCAError) as error:
        parse(with_basicsrs_own_dataset)
    assert set(str(error.value).splitlines()) == {
        'datasets.val.gt_sise is unknown. Did you mean gt_size?',
        "datasets.val.io_backend.type 'lmbd' is unknown. Did you mean lmdb?",
        'datasets.val.io_backend.read_ahead is unknown. Did you mean readahead?',
    }


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('datasets.val.dataroot_gt', 'datasets.val.dataroot_gt is missing; PairedImageDataset needs it'),
        ('datasets.val.dataroot_lq', 'datasets.val.dataroot_lq is missing; PairedImageDataset needs it'),
        ('datasets.val.io_backend', 'datasets.val.io_backend is missing; PairedImageDataset needs it'),
        ('scale', 'datasets.val: PairedImageDataset needs a scale; set scale: 1'),
    ],
)
def test_basicsrs_own_dataset_with_something_missing(parse, with_basicsrs_own_dataset, path, message):
    change(with_basicsrs_own_dataset, path, None)
    with pytest.raises(LNCAError, match=message):
        parse(with_basicsrs_own_dataset)


def test_datasets_that_training_does_not_score(parse, options):
    options['datasets']['test'] = options['datasets'].pop('val_test')
    with pytest.raises(LNCAError, match='^datasets.test: only datasets named val_… are scored in training'):
        parse(options)


def test_a_truncated_lmdb(parse, options, tiles, tmp_path_factory):
    cut = tmp_path_factory.mktemp('cut') / 'gt.lmdb'
    shutil.copytree(tiles / 'train_gt.lmdb', cut)
    data = (cut / 'data.mdb').read_bytes()
    (cut / 'data.mdb').write_bytes(data[: len(data) // 2])
    options['datasets']['train']['dataroot_gt'] = str(cut)
    with pytest.raises(LNCAError, match='gt.lmdb'):
        parse(options)


def test_relative_paths_are_found_under_the_project(parse, options, tiles, tmp_path, monkeypatch, tmp_path_factory):
    shutil.copytree(tiles, tmp_path / 'data')
    for dataset in options['datasets'].values():
        for side in ('gt', 'lq'):
            if f'dataroot_{side}' in dataset:
                dataset[f'dataroot_{side}'] = f'data/{dataset[f"dataroot_{side}"].rsplit("/", 1)[1]}'
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    assert parse(options)['datasets']['val']['dataroot_gt'] == str(tmp_path / 'data' / 'val_gt.lmdb')


def test_numbers_in_yaml():
    assert yaml.load('a: [1e-2, 2E+3, !!float 1e-7, 3, x1e2]', Loader=SafeLoader)['a'] == [0.01, 2000, 1e-7, 3, 'x1e2']


def test_names_that_begin_like_numbers(parse, options):
    options['name'] = 'NAME'
    text = yaml.safe_dump(options).replace('NAME', '7e42a1c')
    assert parse(text)['name'] == '7e42a1c'


@pytest.mark.parametrize(
    ('is_train', 'own', 'other'), [(True, 'experiments', 'results'), (False, 'results', 'experiments')]
)
def test_runs_are_written_where_the_options_say(options, tmp_path, is_train, own, other):
    def paths(roots):
        opt = yaml.safe_load(yaml.safe_dump(options))
        opt['path'].update(roots)
        file = tmp_path / 'options.yml'
        file.write_text(yaml.safe_dump(opt))
        return load_options(read_command_line(['-opt', str(file)]), tmp_path, is_train)['path']

    roots = {f'{name}_root': str(tmp_path / f'my_{name}') for name in (own, other)}
    for given, parent in ((roots, f'my_{own}'), ({f'{own}_root': None}, own), ({}, own)):
        folder = tmp_path / parent / 'lnca_photos'
        found = paths(given)
        expected = {f'{own}_root': folder, 'log': folder, 'visualization': folder / 'visualization'}
        if is_train:
            expected |= {'models': folder / 'models', 'training_states': folder / 'training_states'}
        assert {name: found.get(name) for name in expected} == {name: str(path) for name, path in expected.items()}
        assert f'{other}_root' not in found


def test_all_mistakes_are_named_at_once(parse, options):
    options['train']['autoencoder']['optim_g']['lr'] = -1
    options['train']['automaton']['pool_sise'] = 3
    options['datasets']['train']['corruption']['curriculum'] = [0.5]
    del options['logger']['print_freq']
    options['datasets']['val']['dataroot_gt'] = '/nowhere/gt.lmdb'
    with pytest.raises(LNCAError) as error:
        parse(options)
    assert sorted(str(error.value).splitlines()) == [
        '/nowhere/gt.lmdb: there is no such LMDB; pack the dataset with datasets/prepare.py',
        'datasets.train.corruption.curriculum must be a list of 2, got [0.5]',
        'logger.print_freq is missing',
        'train.autoencoder.optim_g.lr must be a number above 0, got -1',
        'train.automaton.pool_sise is unknown. Did you mean pool_size?',
    ]


def test_keys_that_are_no_text_are_named(parse, options):
    options['datasets'][3] = dict(options['datasets']['val'])
    with pytest.raises(LNCAError, match='datasets: a key must be text, got 3'):
        parse(options)


def test_all_that_a_schema_cannot_see_is_named_at_once(parse, options):
    options['network_g']['embed_channels'] = 7
    options['train']['autoencoder']['optim_g']['type'] = 'Adams'
    options['train']['automaton']['steps'] = [8, 4]
    options['datasets']['val']['dataroot_gt'] = '/nowhere/gt.lmdb'
    with pytest.raises(LNCAError) as error:
        parse(options)
    for words in ('embed_channels and ffn_expand', 'Did you mean Adam?', '[least, most]', '/nowhere/gt.lmdb'):
        assert words in str(error.value)


def test_the_schema_for_editors_is_the_one_in_use():
    """Else: python -c "from lnca_model.config.schema import as_json; print(as_json(), end='')" > options/schema.json"""
    assert (ROOT / 'options' / 'schema.json').read_text() == schema.as_json()
    jsonschema.Draft202012Validator.check_schema(schema.schema())
    for file in (ROOT / 'options').glob('*.yml'):
        assert file.read_text().startswith('# yaml-language-server: $schema=schema.json\n'), file
        schema.check(read_options(file))


@pytest.mark.parametrize(
    ('entry', 'message'),
    [
        ('train:total_iter', 'expected BLOCK:KEY=VALUE'),
        ('trian:total_iter=3', 'there is no block trian. Did you mean train?'),
        ('val:suffix=[1', 'not a plain YAML file'),
        ('name:x=1', 'there is no block name'),
        ('val:suffix=!!python/object/apply:os.getcwd []', 'python/object'),
    ],
)
def test_forced_options_that_are_none(options, entry, message):
    with pytest.raises(LNCAError, match=message):
        apply_overrides(options, [entry])


def test_forced_options_are_parsed_and_not_run(options, tmp_path):
    code = f'__import__("os").mkdir("{tmp_path}/ran")'
    apply_overrides(options, ['train:ema_decay=0.999', 'train:automaton:steps=[2, 3]', 'val:suffix=~', f'name={code}'])
    assert options['train']['ema_decay'] == 0.999
    assert options['train']['automaton']['steps'] == [2, 3]
    assert options['val']['suffix'] is None
    assert options['name'] == code
    assert not (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            '\n'.join(['a0: &a0 [1, 2]'] + [f'a{n}: &a{n} [{", ".join([f"*a{n - 1}"] * 9)}]' for n in range(1, 12)]),
            'values',
        ),
        ('a: &a [*a]', 'not a plain YAML file'),
        ('a: 1\nb: 2\na: 3', 'a is there twice.*line 1'),
        ('a: ' + '[' * 5000, 'not a plain YAML file'),
        ('a: ' + '1' * 5000, 'not a plain YAML file'),
        ('a: 2001-99-99', 'not a plain YAML file'),
        ('a: 0x' + 'f' * 5000, 'a number of more than 64 bits'),
        ('\n'.join(f'a{number}: 1' for number in range(20_000)) + '\na0: 1', 'a0 is there twice'),
        ('# ' + 'x' * (1 << 20), 'larger than 1 MB'),
    ],
)
def test_option_files_that_would_take_for_ever(tmp_path, text, message):
    (tmp_path / 'options.yml').write_text(text)
    with pytest.raises(LNCAError, match=message):
        read_options(tmp_path / 'options.yml')


def test_one_process_alone_copies_the_option_file(tmp_path, monkeypatch):
    file, folder = tmp_path / 'mine.yml', tmp_path / 'experiment'
    file.write_text('name: x\n')
    folder.mkdir()
    monkeypatch.setattr(sys, 'argv', ['train.py', '-opt', 'mine.yml'])
    monkeypatch.setattr(distributed, 'rank', lambda: 1)
    trainer._copy_option_file(file, folder)
    assert not any(folder.iterdir())
    monkeypatch.setattr(distributed, 'rank', lambda: 0)
    trainer._copy_option_file(file, folder)
    first, *rest = (folder / 'mine.yml').read_text().splitlines()
    assert first.startswith('# ')
    assert first.endswith(': train.py -opt mine.yml')
    assert rest == ['name: x']
    trainer._copy_option_file(folder / 'mine.yml', folder)  # a run that resumes with its own copy
    assert (folder / 'mine.yml').read_text().splitlines() == [first, *rest]


def test_right_options_pass(parse, options):
    assert parse(options)['network_g']['type'] == 'LatentNAFCA'
