"""``python datasets/prepare.py NAME``, run as users do, for every NAME."""

import csv
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import lmdb
import miniatures
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import lnca_data  # noqa: F401  first: it mends what keeps BasicSR from being imported
from lnca_data.corruptions.motion_blur import motion_kernels
from lnca_data.io.lmdb_store import TileStore
from lnca_data.io.lmdb_writer import encode_png

from basicsr.data import build_dataset

COMMAND = Path(__file__).resolve().parents[2] / 'datasets' / 'prepare.py'
PATIENCE = 300  # seconds, on cores that are busy otherwise
SPLITS = ('train', 'val', 'test')
PHOTOGRAPHS = ('astronaut', 'coffee', 'rocket', 'retina', 'hubble_deep_field', 'motorcycle_left', 'motorcycle_right')
# Miniature → arguments, {} being its folder.
REAL = {
    'gopro': 'gopro --source {} --blur blur_gamma --tile-pixels 32',
    'realblur': 'realblur --source {} --variant R --tile-pixels 32 48',
    'sid': 'sid --source {} --tile-pixels 32',
    'renoir': 'renoir --source {} --tile-pixels 32',
    'pairs': 'pairs --gt {}/gt --lq {}/lq --grid 3 4',
}
SYNTHETIC = {
    'celeba': 'celeba --source {}',
    'cifar10_binary': 'cifar10 --source {} --corruption blur',
    'cifar10_binary_archive': 'cifar10 --source {}',
    'tinyimagenet': 'tinyimagenet --source {} --corruption blur --tile-size 16',
}

# These are packed by processes of their own, which begin with nothing. All others are forked from one that has imported
# PyTorch, and fork their workers themselves.
COLD = ('photos', 'sid')


@pytest.fixture(scope='module')
def prepare(fork_server, tmp_path_factory):
    """Run ``python datasets/prepare.py ARGUMENTS``."""
    folder = tmp_path_factory.mktemp('outputs')

    def run(*arguments, command=COMMAND, limit=None):
        return fork_server.run([command, *arguments], cwd=folder, file_size_limit=limit, fork_workers=True)

    return run


@pytest.fixture(scope='module')
def miniature(tmp_path_factory):
    """Return the folder of a miniature. Each is written once; tests leave it unchanged."""
    root = tmp_path_factory.mktemp('miniatures')
    return functools.cache(lambda name: getattr(miniatures, name)(root / name))


@pytest.fixture(scope='module')
def packed(prepare, miniature, tmp_path_factory):
    """Return the folder of a packed dataset and the result of the command. Each is packed once."""

    def command(name):
        output = tmp_path_factory.mktemp(name) / name
        if name == 'photos':
            return output, [name, '--output', output]
        arguments = {**REAL, **SYNTHETIC}[name].replace('{}', str(miniature(name)))
        return output, [*arguments.split(), '--output', output]

    def start(name):
        output, arguments = command(name)
        pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
        return output, subprocess.Popen([sys.executable, COMMAND, *arguments], **pipes)

    cold = {name: start(name) for name in COLD}

    @functools.cache
    def pack(name):
        if name in COLD:
            output, process = cold[name]
            outputs = process.communicate(timeout=300)
            result = subprocess.CompletedProcess(process.args, process.wait(), *outputs)
        else:
            output, arguments = command(name)
            result = prepare(*arguments)
        assert result.returncode == 0, result.stderr
        return output, result

    yield pack
    for _, process in cold.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope='module')
def photos(packed):
    return packed('photos')


@pytest.fixture(scope='module')
def blurred_photos(prepare, tmp_path_factory):
    output = tmp_path_factory.mktemp('blurred') / 'photos'
    assert prepare('photos', '--corruption', 'blur', '--output', output).returncode == 0
    return output


@pytest.fixture
def copy(packed, tmp_path):
    """A copy of a packed dataset, which a test may change."""
    return shutil.copytree(packed('pairs')[0], tmp_path / 'copy')


@pytest.fixture
def broken(miniature, tmp_path):
    """GoPro with one truncated image, and the path of that."""
    folder = shutil.copytree(miniature('gopro'), tmp_path / 'broken')
    half = folder / 'train' / 'GOPR0477_11_00' / 'blur' / '000048.png'
    half.write_bytes(half.read_bytes()[:2000])
    return folder, half


def keys(lmdb_folder):
    return [line.split('.')[0] for line in (lmdb_folder / 'meta_info.txt').read_text().splitlines()]


def tiles(folder, split, side='gt'):
    """Return the tiles of a split: key → ``(size, size, 3)`` uint8 RGB."""
    store = TileStore(folder / f'{split}_{side}.lmdb')
    return {key: store[key] for key in store.keys}


def place(key):
    """Return the image name, side, top and left of a tile."""
    name, *numbers = re.fullmatch(r'(.+)_(\d+)px_y(\d+)_x(\d+)', key).groups()
    return name, *map(int, numbers)


def summary_of(folder):
    return json.loads((folder / 'summary.json').read_text())


def sources_of(folder):
    """Return the rows of sources.csv: name, gt, lq, scene, split, tiles."""
    with open(folder / 'sources.csv', newline='') as file:
        return list(csv.DictReader(file))


def contents(folder):
    """Return path → bytes of all files but the locks of LMDBs, which depend on who has them open."""
    files = (file for file in folder.rglob('*') if file.is_file() and file.name != 'lock.mdb')
    return {file.relative_to(folder): file.read_bytes() for file in files}


def complaints(result):
    """Return the lines that a command wrote to standard error, without progress bars."""
    bar = re.compile(r'(packing \w+|checking): .*[a-z?]/[a-z]+\] *')
    return [line for line in result.stderr.splitlines() if line.strip() and not bar.fullmatch(line)]


def error_of(result):
    """Check that a command failed with a single error line, and return its message."""
    assert result.returncode == 1
    assert not result.stdout
    assert len(complaints(result)) == 1, result.stderr
    (line,) = complaints(result)
    assert line.startswith('error: ')
    return line.removeprefix('error: ')


# --- the photographs


def test_photos_say_what_they_did(photos):
    output, result = photos
    first, second = result.stdout.splitlines()
    count = summary_of(output)['tiles']
    assert f'{count["train"]} train, {count["val"]} val, {count["test"]} test tiles' in first
    assert 'photos/contact_sheet.png' in first
    assert second.endswith(f'total_iter: {2 * 20 * (count["train"] // 32)}')
    assert list(output.parent.iterdir()) == [output]


def test_photos_are_split_by_place(photos):
    """The bottom of each photograph validates, none that is trained on is tested with, and no tile is in two parts."""
    output, _ = photos
    for split, names in (
        ('train', {f'{name}_top' for name in PHOTOGRAPHS}),
        ('val', {f'{name}_bottom' for name in PHOTOGRAPHS}),
        ('test', {'chelsea', 'china', 'flower'}),
    ):
        assert {place(key)[0] for key in keys(output / f'{split}_gt.lmdb')} == names
    assert {row['name']: row['split'] for row in sources_of(output) if 'coffee' in row['name']} == {
        'coffee_top': 'train',
        'coffee_bottom': 'val',
    }
    assert {place(key)[1] for key in keys(output / 'train_gt.lmdb')} == {32, 64}


def test_summary_of_photos(photos):
    output, _ = photos
    summary = summary_of(output)
    assert summary['dataset'] == 'photos'
    assert summary['images'] == 17
    assert summary['tiles'] == {split: len(keys(output / f'{split}_gt.lmdb')) for split in SPLITS}
    assert min(summary['tiles'].values()) > 100
    assert summary['dropped'].keys() == {'flat', 'near-duplicate', 'too small'}
    assert summary['dropped']['flat'] > 0
    assert summary['options']['corruption'] == {'type': 'noise'}
    assert len(bytes.fromhex(summary['content_hash'])) == 32


def test_contact_sheet(photos):
    sheet = cv2.imread(str(photos[0] / 'contact_sheet.png'))
    height, width, _ = sheet.shape
    # Twenty pairs of tiles of 32 pixels, enlarged four times: two groups of columns of ten rows.
    assert height > 10 * 128
    assert width > 4 * 128


@pytest.mark.parametrize('split', ['val', 'test'])
def test_basicsr_reads_the_pairs(photos, split):
    output, _ = photos
    dataset = build_dataset(
        {
            'name': split,
            'type': 'PairedImageDataset',
            'phase': 'val',
            'scale': 1,
            'io_backend': {'type': 'lmdb'},
            'dataroot_gt': str(output / f'{split}_gt.lmdb'),
            'dataroot_lq': str(output / f'{split}_lq.lmdb'),
        }
    )
    assert len(dataset) == len(keys(output / f'{split}_gt.lmdb'))
    for index in range(len(dataset)):
        item = dataset[index]
        assert item['gt_path'] == item['lq_path']
        assert item['gt'].shape == item['lq'].shape == (3, 32, 32)


def test_noise_law(photos):
    """Half of the pixels are hit, by one Gaussian value of 0.2 on all channels, and clipped."""
    pairs = [
        (gt, lq)
        for split in ('val', 'test')
        for gt, lq in zip(tiles(photos[0], split).values(), tiles(photos[0], split, 'lq').values(), strict=True)
    ]
    gt, lq = (np.stack(side).astype(int) for side in zip(*pairs, strict=True))
    # Clipping makes a change smaller, so that the largest one of a pixel's channels is nearest to the value.
    difference = lq - gt
    value = np.take_along_axis(difference, abs(difference).argmax(-1, keepdims=True), axis=-1)
    rounding = np.clip(gt + value, 0, 255) - lq
    assert abs(rounding).max() <= 1
    assert np.mean(rounding != 0) < 1e-4
    # Where clipping cuts little off.
    change = value[(abs(gt - 127) < 40).all(-1)] / 255
    assert len(change) > 30_000
    assert np.mean(change != 0) == pytest.approx(0.5, abs=0.01)
    hits = change[change != 0]
    assert np.mean(hits > 0) == pytest.approx(0.5, abs=0.01)
    for sigmas, share in ((0.5, 0.383), (1, 0.683), (1.5, 0.866)):
        assert np.mean(abs(hits) < 0.2 * sigmas) == pytest.approx(share, abs=0.015)
    # Each tile has noise of its own.
    hit = value[..., 0] != 0
    assert abs(np.corrcoef(hit.reshape(len(hit), -1)[:100]) - np.eye(100)).max() < 0.5


def test_blur_law(blurred_photos, golden):
    """Each tile is convolved, zeros beyond its borders, with a kernel of 7 pixels, and many kernels occur."""
    keyed = [(key, gt, split) for split in ('val', 'test') for key, gt in tiles(blurred_photos, split).items()]
    blurred = {**tiles(blurred_photos, 'val', 'lq'), **tiles(blurred_photos, 'test', 'lq')}
    gt, lq = (
        torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) / 255
        for side in ([gt for _, gt, _ in keyed], [blurred[key] for key, *_ in keyed])
    )

    def distances(kernels, images, expected):
        """``(N, kernels)``: how far off, at most, each image is when convolved with each kernel."""
        n, channels, height, width = images.shape
        convolved = F.conv2d(images.reshape(-1, 1, height, width), kernels[:, None], padding=3)
        convolved = convolved.view(n, channels, len(kernels), height, width)
        return (convolved - expected[:, :, None]).abs().amax((1, 3, 4))

    rounding = 0.51 / 255
    golden_kernels = torch.stack([kernel for name, kernel in golden('motion_blur').items() if name[:9] == 'kernel/7/'])
    # Four directions of 360.
    expected_share = len(golden_kernels) / 360
    share = (distances(golden_kernels, gt, lq).amin(1) < rounding).float().mean()
    assert 0.3 * expected_share < share < 3 * expected_share
    some = slice(None, None, 12)
    nearest, angles = distances(motion_kernels(7), gt[some], lq[some]).min(1)
    assert nearest.max() < rounding
    assert len(angles.unique()) > 0.7 * len(angles)


# --- every other source


@pytest.mark.parametrize('name', [*REAL, *SYNTHETIC])
def test_packs(packed, prepare, name):
    output, result = packed(name)
    assert not complaints(result)
    assert [path.name for path in output.parent.iterdir()] == [name]
    lmdbs = {'train_gt', 'val_gt', 'val_lq', 'test_gt', 'test_lq'} | ({'train_lq'} if name in REAL else set())
    assert {path.name for path in output.iterdir()} == {
        *(f'{lmdb_name}.lmdb' for lmdb_name in lmdbs),
        'summary.json',
        'sources.csv',
        'contact_sheet.png',
    }
    summary = summary_of(output)
    count = {split: len(keys(output / f'{split}_gt.lmdb')) for split in SPLITS}
    assert summary['tiles'] == count
    for lmdb_name in lmdbs:
        assert keys(output / f'{lmdb_name}.lmdb') == keys(output / f'{lmdb_name.split("_")[0]}_gt.lmdb')
    assert len({key for split in SPLITS for key in keys(output / f'{split}_gt.lmdb')}) == sum(count.values())
    first, *_, last = result.stdout.splitlines()
    assert first.startswith(f'{output}: {count["train"]} train, {count["val"]} val, {count["test"]} test tiles; ')
    assert count['train'] >= 32
    assert last.endswith(f'total_iter: {2 * 20 * (count["train"] // 32)}')

    verified = prepare('verify', output)
    assert verified.returncode == 0, verified.stderr
    assert f'{count["train"]} train, {count["val"]} val, {count["test"]} test tiles' in verified.stdout


@pytest.mark.parametrize('name', [*REAL, *SYNTHETIC])
def test_no_scene_is_on_two_sides(packed, miniature, name):
    output, _ = packed(name)
    rows = sources_of(output)
    summary = summary_of(output)
    sides = {scene: {row['split'] for row in rows if row['scene'] == scene} for scene in {row['scene'] for row in rows}}
    assert all(len(splits) == 1 for splits in sides.values())
    assert summary['scenes'] == {split: sum(splits == {split} for splits in sides.values()) for split in SPLITS}
    assert summary['images'] == len(rows)
    for split in SPLITS:
        named = {row['name']: int(row['tiles']) for row in rows if row['split'] == split}
        assert sum(named.values()) == summary['tiles'][split]
        for key in keys(output / f'{split}_gt.lmdb'):
            assert re.sub(r'_(\d+x)?\d+px_y\d+_x\d+$', '', key) in named
    for row in rows:
        assert Path(row['gt']).is_absolute() == (name == 'pairs')  # else in the folder that was given
        assert (miniature(name) / row['gt']).is_file()
        assert (miniature(name) / row['lq']).is_file() if name in REAL else not row['lq']


def test_tiles_are_of_their_place(packed, miniature):
    """Uncut tiles of GoPro are parts of the images that sources.csv names, sharp and blurred."""
    output, _ = packed('gopro')
    assert summary_of(output)['choices'] == {'blur': 'blur_gamma'}
    rows = {row['name']: row for row in sources_of(output)}
    image = functools.cache(lambda name: cv2.imread(str(miniature('gopro') / name))[..., ::-1])
    assert all('/blur_gamma/' in row['lq'] for row in rows.values())
    for split in SPLITS:
        for side in ('gt', 'lq'):
            for key, tile in tiles(output, split, side).items():
                name, size, top, left = place(key)
                np.testing.assert_array_equal(tile, image(rows[name][side])[top : top + size, left : left + size])


@pytest.mark.parametrize('name', ['cifar10_binary', 'cifar10_binary_archive'])
def test_cifar10_is_packed_as_it_is(packed, name):
    expected = {
        f'{batch}_{index:05d}': image
        for batch, images in miniatures.cifar_images().items()
        for index, image in enumerate(images)
    }
    found = {key: tile for split in SPLITS for key, tile in tiles(packed(name)[0], split).items()}
    assert found.keys() == expected.keys()
    for key, tile in found.items():
        np.testing.assert_array_equal(tile, expected[key])


@pytest.mark.parametrize(
    ('name', 'arguments', 'split', 'expected'),
    [
        ('gopro', ['--tile-pixels', 32], 'test', r'(GOPR0384_11_00|GOPR0410_11_00)_\d{6}'),
        ('realblur', ['--tile-pixels', 32], 'test', r'J_(scene004|scene009)_blur_\d'),
        ('sid', ['--tile-pixels', 32], 'val', r'(Sony|Fuji)_20003_0[01]_0_1s'),
        ('celeba', [], 'val', r'0000(49|5[0-4])'),
        ('tinyimagenet', [], 'val', r'val_\d'),
        ('cifar10_binary', [], 'test', r'test_batch_\d{5}'),
    ],
)
def test_official_split(prepare, miniature, tmp_path, name, arguments, split, expected):
    """The authors' own; training scenes, whole ones, validate where they do not say."""
    output = tmp_path / 'out'
    arguments = ('--source', miniature(name), '--output', output, '--split', 'official', *arguments)
    result = prepare(name.split('_')[0], *arguments)
    assert result.returncode == 0, result.stderr
    rows = sources_of(output)
    for row in rows:
        assert (row['split'] == split) == bool(re.fullmatch(expected, row['name']))
    scenes = {split: {row['scene'] for row in rows if row['split'] == split} for split in SPLITS}
    assert all(scenes.values())
    assert not scenes['val'] & scenes['train']


def test_no_official_split(prepare, miniature, tmp_path):
    result = prepare('renoir', '--source', miniature('renoir'), '--output', tmp_path / 'out', '--split', 'official')
    line = error_of(result)
    assert 'the authors do not say which split it is of; use --split scene' in line
    assert '.bmp' in line
    assert not list(tmp_path.iterdir())


def test_split_by_tile(prepare, miniature, tmp_path):
    output = tmp_path / 'out'
    arguments = ('--source', miniature('renoir'), '--output', output, '--tile-pixels', 32)
    result = prepare('renoir', *arguments, '--split', 'tile')
    assert result.returncode == 0, result.stderr
    assert {row['split'] for row in sources_of(output)} == {'by tile'}
    assert summary_of(output)['scenes'] == {'all': 6}
    names = [{place(key)[0] for key in keys(output / f'{split}_gt.lmdb')} for split in SPLITS]
    assert names[0] & names[1] & names[2]
    assert prepare('verify', output).returncode == 0


# --- outputs


@pytest.mark.parametrize('arguments', ['celeba', 'cifar10 --corruption blur', 'renoir --tile-pixels 32'])
def test_output_unless_given(prepare, miniature, tmp_path, arguments):
    """The default is a folder beside prepare.py, named by dataset and task."""
    folder = tmp_path / 'datasets'
    folder.mkdir()
    command = shutil.copy(COMMAND, folder)
    name, *more = arguments.split()
    source = miniature({'cifar10': 'cifar10_binary'}.get(name, name))
    result = prepare(name, '--source', source, *more, command=command)
    assert result.returncode == 0, result.stderr
    expected = {'celeba': 'celeba_denoise', 'cifar10': 'cifar10_deblur', 'renoir': 'renoir'}[name]
    assert {path.name for path in folder.iterdir()} == {'prepare.py', expected}


def test_existing_output(prepare, miniature, tmp_path):
    output = tmp_path / 'out'
    output.mkdir()
    (output / 'mine').write_text('precious')
    arguments = ('celeba', '--source', miniature('celeba'), '--output', output)
    line = error_of(prepare(*arguments))
    assert str(output) in line
    assert '--overwrite' in line
    # What was not packed is not replaced either way.
    assert 'no packed dataset' in error_of(prepare(*arguments, '--overwrite'))
    assert contents(tmp_path) == {Path('out/mine'): b'precious'}
    (output / 'mine').unlink()
    (output / 'summary.json').write_text('of an earlier one')
    (output / 'more').touch()
    assert prepare(*arguments, '--overwrite').returncode == 0
    assert list(tmp_path.iterdir()) == [output]
    assert not (output / 'more').exists()
    assert prepare('verify', output).returncode == 0


def test_failure_leaves_what_was_there(prepare, broken, tmp_path):
    output = tmp_path / 'out'
    output.mkdir()
    (output / 'summary.json').write_text('precious')
    line = error_of(prepare('gopro', '--source', broken[0], '--output', output, '--tile-pixels', 32, '--overwrite'))
    assert str(broken[1]) in line
    assert contents(output) == {Path('summary.json'): b'precious'}
    assert {path.name for path in tmp_path.iterdir()} == {'broken', 'out'}


@pytest.mark.parametrize('workers', [1, 3])
def test_number_of_workers_does_not_matter(prepare, photos, tmp_path, workers):
    """Every file has the same bytes."""
    assert prepare('photos', '--output', tmp_path / 'photos', '--workers', workers).returncode == 0
    found, expected = contents(tmp_path / 'photos'), contents(photos[0])
    assert found.keys() == expected.keys()
    assert [str(name) for name in found if found[name] != expected[name]] == []


def test_workers_share_many_tasks(prepare, tmp_path):
    """Also where a scene's images, and those that share a clean one, are spread over the workers."""
    numbers = np.random.default_rng(0)
    folder = miniatures.renoir(tmp_path / 'renoir')
    for camera in ('Mi3', 'S90'):
        batch = folder / f'{camera}_Aligned' / 'Batch_001'
        clean = miniatures.photograph(numbers)
        miniatures.save(next(batch.glob('*Reference.bmp')), np.concatenate([clean[:64], clean[:32]]))
        for number in range(70):
            miniatures.save(batch / f'IMG_{number:04d}Noisy.bmp', miniatures.noisy(clean, numbers))
    outputs = []
    for workers in (1, 3):
        outputs.append(tmp_path / str(workers))
        arguments = f'renoir --source {folder} --tile-pixels 32 --output {outputs[-1]} --workers {workers}'
        assert prepare(*arguments.split()).returncode == 0
    assert summary_of(outputs[0])['dropped']['near-duplicate'] == sum(
        4 for row in sources_of(outputs[0]) if row['scene'] in ('Mi3_Batch_001', 'S90_Batch_001')
    )
    assert contents(outputs[0]) == contents(outputs[1])


# --- what goes wrong


@pytest.mark.parametrize('name', ['gopro', 'celeba'])
def test_wrong_folder(prepare, tmp_path, name):
    line = error_of(prepare(name, '--source', tmp_path, '--output', tmp_path / 'out'))
    assert line.startswith(f'{tmp_path}: no ')
    assert 'expected' in line
    assert not list(tmp_path.iterdir())


def test_unreadable_image_stops_it(prepare, broken, tmp_path):
    folder, half = broken
    line = error_of(prepare('gopro', '--source', folder, '--output', tmp_path / 'out', '--tile-pixels', 32))
    assert line.startswith(f'{half}: not a readable image')
    assert '--skip-bad' in line
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_image_is_named_before_any_work(prepare, broken, tmp_path):
    folder, half = broken
    half.unlink()
    result = prepare('gopro', '--source', folder, '--output', tmp_path / 'out', '--tile-pixels', 32)
    line = error_of(result)
    assert line.startswith(f'{half}: cannot be read (No such file or directory)')
    assert '--skip-bad' in line
    assert result.stderr.splitlines() == [f'error: {line}']
    assert list(tmp_path.iterdir()) == [folder]


def test_skip_bad(prepare, broken, packed, tmp_path):
    """The rest is packed, and what is missing or unreadable is listed."""
    folder, half = broken
    lost = folder / 'test' / 'GOPR0384_11_00' / 'sharp' / '000047.png'
    lost.unlink()
    (lost.parent / '000048.png').write_bytes(b'')
    output = tmp_path / 'out'
    arguments = ('gopro', '--source', folder, '--output', output, '--blur', 'blur', '--tile-pixels', 32)
    result = prepare(*arguments, '--skip-bad')
    assert result.returncode == 0, result.stderr
    summary = summary_of(output)
    unread = [half, lost.parent / '000048.png']
    assert len(summary['skipped']) == len(unread)
    for path in unread:
        assert any(line.startswith(f'{path}: ') for line in summary['skipped'])
    assert '2 skipped' in result.stdout
    assert {row['name'] for row in sources_of(output) if row['tiles'] == '0'} == {
        'GOPR0384_11_00_000048',
        'GOPR0477_11_00_000048',
    }
    assert sum(summary['tiles'].values()) == sum(summary_of(packed('gopro')[0])['tiles'].values()) - 3 * 12
    assert prepare('verify', output).returncode == 0


def test_skip_bad_goes_on_without_a_missing_image(prepare, broken, tmp_path):
    folder, half = broken
    half.unlink()
    arguments = ('gopro', '--source', folder, '--output', tmp_path / 'out', '--tile-pixels', 32, '--skip-bad')
    assert prepare(*arguments).returncode == 0
    (line,) = summary_of(tmp_path / 'out')['skipped']
    assert line.startswith(f'{half}: ')


@pytest.mark.parametrize('limit', [4 << 10, 8 << 20])
def test_full_disk(prepare, photos, tmp_path, limit):
    """A disk may be full before an LMDB is created, or while it grows."""
    line = error_of(prepare('photos', '--output', tmp_path / 'photos', limit=limit))
    assert line.startswith(f'{tmp_path / "photos"}: cannot write')
    assert 'another --output' in line
    if limit > 1 << 20:
        needed = float(re.search(r'about (\S+) GB are needed', line)[1]) * 1e9
        size = sum(len(data) for data in contents(photos[0]).values())
        assert 0.5 * size < needed < 2 * size
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='needs /proc')
def test_killed(prepare, tmp_path):
    """No partial dataset and no process is left, and the next run succeeds."""
    output = tmp_path / 'photos'
    long = ('--tile-pixels', *map(str, range(32, 64)))
    process = subprocess.Popen(
        [sys.executable, COMMAND, 'photos', '--output', output, '--workers', '2', *long],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def running():
        """Return the states of the processes in its group, without zombies."""
        states = []
        for file in Path('/proc').glob('[0-9]*/stat'):
            try:
                state, _, group, *_ = file.read_text().rpartition(')')[2].split()
            except OSError:  # it has just ended
                continue
            if int(group) == process.pid and state != 'Z':
                states.append(state)
        return states

    wait_for(lambda: list(tmp_path.glob('.photos.partial/*.lmdb')))
    assert process.poll() is None
    assert len(running()) >= 3
    process.kill()
    process.wait()
    wait_for(lambda: not running())
    assert [path.name for path in tmp_path.iterdir()] == ['.photos.partial']
    assert prepare('photos', '--output', output).returncode == 0
    assert list(tmp_path.iterdir()) == [output]
    assert prepare('verify', output).returncode == 0


def wait_for(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- verify


def change_tile(folder):
    key, tile = list(tiles(folder, 'val', 'lq').items())[3]
    TileStore.close_all()
    tile[5, 6, 1] ^= 1
    write(folder / 'val_lq.lmdb', key, encode_png(tile))


def remove_tile(folder):
    remove(folder / 'test_gt.lmdb')


def remove_pair_and_adapt_summary(folder):
    for side in ('gt', 'lq'):
        remove(folder / f'train_{side}.lmdb')
    edit_summary(folder, lambda summary: summary['tiles'].update(train=summary['tiles']['train'] - 1))


def garble_tile(folder):
    write(folder / 'val_gt.lmdb', keys(folder / 'val_gt.lmdb')[0], b'not a PNG')


def change_shape(folder):
    meta_info = folder / 'train_gt.lmdb' / 'meta_info.txt'
    meta_info.write_text(meta_info.read_text().replace('(32,32,3)', '(32,16,3)', 1))


def swap_sides(folder):
    swap(folder / 'val_gt.lmdb', folder / 'val_lq.lmdb')


def swap_splits(folder):
    for side in ('gt', 'lq'):
        swap(folder / f'val_{side}.lmdb', folder / f'test_{side}.lmdb')


def remove_lmdb(folder):
    shutil.rmtree(folder / 'train_lq.lmdb')


def add_lmdb(folder):
    shutil.copytree(folder / 'val_lq.lmdb', folder / 'other_lq.lmdb')


def remove_summary(folder):
    (folder / 'summary.json').unlink()


def change_hash(folder):
    edit_summary(folder, lambda summary: summary.update(content_hash='0' * 64))


def truncate(folder):
    os.truncate(folder / 'test_lq.lmdb' / 'data.mdb', 20_000)


def write(lmdb_folder, key, data):
    with lmdb.open(str(lmdb_folder)) as environment, environment.begin(write=True) as transaction:
        assert transaction.put(key.encode(), data) if data else transaction.delete(key.encode())


def remove(lmdb_folder):
    """Remove the first tile from the LMDB and from meta_info.txt."""
    first, *others = (lmdb_folder / 'meta_info.txt').read_text().splitlines(keepends=True)
    (lmdb_folder / 'meta_info.txt').write_text(''.join(others))
    write(lmdb_folder, first.split('.')[0], None)


def edit_summary(folder, edit):
    summary = summary_of(folder)
    edit(summary)
    (folder / 'summary.json').write_text(json.dumps(summary))


def swap(one, other):
    one.rename(one.with_suffix('.tmp'))
    other.rename(one)
    one.with_suffix('.tmp').rename(other)


@pytest.mark.parametrize(
    ('damage', 'file', 'message'),
    [
        (change_tile, 'val_lq.lmdb', 'the hash differs'),
        (remove_tile, 'test_gt.lmdb', 'tiles, the summary says'),
        (remove_pair_and_adapt_summary, 'train_gt.lmdb', 'the hash differs'),
        (garble_tile, 'val_gt.lmdb', 'not a readable image'),
        (change_shape, 'train_gt.lmdb', '(32,16,3)'),
        (swap_sides, 'val_gt.lmdb', 'the hash differs'),
        (swap_splits, '.lmdb', 'pack it again'),
        (remove_lmdb, 'train_lq.lmdb', 'missing'),
        (add_lmdb, 'other_lq.lmdb', 'not in the summary'),
        (remove_summary, 'summary.json', 'was this packed by prepare.py?'),
        (change_hash, 'summary.json', 'content_hash'),
        (truncate, 'test_lq.lmdb', 'truncated'),
    ],
)
def test_verify_finds(prepare, copy, damage, file, message):
    damage(copy)
    line = error_of(prepare('verify', copy))
    assert str(copy) in line
    assert file in line
    assert message in line


def test_verify_is_content_with_a_copy(prepare, copy):
    assert prepare('verify', copy).returncode == 0
