"""Packing of pairs, with images in memory."""

import csv
import errno
import hashlib
import json
import multiprocessing
import os
from dataclasses import dataclass, replace
from unittest import mock

import cv2
import numpy as np
import pytest
import torch

from lnca_data.corruptions import MotionBlur, Noise
from lnca_data.io import lmdb_store, lmdb_verification
from lnca_data.io.lmdb_store import TileStore
from lnca_data.prepare import packing
from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.extraction import PackConfig
from lnca_data.prepare.packing import pack
from lnca_data.prepare.split import SPLITS, split_of_tile, split_scenes
from lnca_data.prepare.tiling import TilingSpec
from lnca_data.prepare.verification import verify
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_utils.errors import LNCAError

PAIRS = PackConfig(TilingSpec(8, (8, 16)), split='official')
SYNTHETIC = replace(PAIRS, corruption={'type': 'noise'})


@dataclass(frozen=True)
class Picture:
    path: str
    pixels: bytes = b''
    shape: tuple[int, ...] = ()
    dtype: str = 'uint8'

    def read(self):
        return np.frombuffer(self.pixels, self.dtype).reshape(self.shape)

    def stored_bytes(self):
        return packing.TASK_BYTES  # each is a task of its own, unless a test says otherwise


class Unreadable(Picture):
    def read(self):
        raise LNCAError(f'{self.path}: not a readable image')


class Missing(Picture):
    def read(self):
        raise LNCAError(f'{self.path}: cannot be read (No such file or directory)')

    def stored_bytes(self):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


class Buggy(Picture):
    def read(self):
        raise ZeroDivisionError('a bug')


class Deadly(Picture):
    def read(self):
        os._exit(1)


def noise(height=48, width=32, seed=0, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype)


def picture(path, pixels):
    return Picture(path, pixels.tobytes(), pixels.shape, pixels.dtype.name)


def synthetic(name, split='train', seed=None, **more):
    seed = sum(name.encode()) if seed is None else seed
    return Pair(name, f'scene_{name}', picture(f'{name}.png', noise(seed=seed, **more)), split=split)


def paired(name, split='train', **more):
    """The corrupted image is a darker copy, so that the position of a tile is recognizable."""
    pair = synthetic(name, split, **more)
    return replace(pair, lq=picture(f'{name}_lq.png', (pair.gt.read() // 3).astype(pair.gt.dtype)))


@pytest.fixture
def clean():
    return [
        synthetic('first'),
        synthetic('second', dtype=np.uint16),
        synthetic('third', 'val'),
        synthetic('last', 'test'),
    ]


@pytest.fixture
def pairs():
    return [paired('first'), paired('second', dtype=np.uint16), paired('third', 'val'), paired('last', 'test')]


def rest():
    """Pairs for the other splits, which may not be empty."""
    return [paired(f'rest_{split}', split) for split in ('val', 'test')]


def read_all(path):
    store = TileStore(path)
    return {key: store[key] for key in store.keys}


def keys_of(folder, split='train'):
    return set(TileStore(folder / f'{split}_gt.lmdb').keys)


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def extract(image, name):
    """Return the expected tiles of an image by key."""
    pixels = image.read()
    tiles = {}
    for side in (8, 16):
        for top in range(0, pixels.shape[0] - side + 1, side):
            for left in range(0, pixels.shape[1] - side + 1, side):
                tile = cv2.resize(pixels[top : top + side, left : left + side], (8, 8), interpolation=cv2.INTER_AREA)
                if tile.dtype == np.uint16:
                    tile = np.floor(tile / 257 + 0.5).astype(np.uint8)
                tiles[f'{name}_{side}px_y{top:05d}_x{left:05d}'] = tile
    return tiles


def assert_same(tiles, expected):
    assert tiles.keys() == expected.keys()
    for key, tile in tiles.items():
        np.testing.assert_array_equal(tile, expected[key], err_msg=key)


def hash_of(path):
    digest = hashlib.sha256()
    tiles = read_all(path)
    for line in (path / 'meta_info.txt').read_text().splitlines():
        key = line.split('.')[0]
        digest.update(key.encode() + b'\0' + hashlib.sha256(tiles[key].tobytes()).digest())
    return digest.hexdigest()


def refusal(*arguments, kind=LNCAError, **more):
    with pytest.raises(kind) as caught:
        pack('some', *arguments, **more)
    assert not multiprocessing.active_children()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def assert_whole(folder, summary, lmdbs):
    """Check that the files exist and that the summary describes them."""
    assert {file.name for file in folder.iterdir()} == {
        *(f'{name}.lmdb' for name in lmdbs),
        'summary.json',
        'sources.csv',
        'contact_sheet.png',
    }
    assert verify(folder) == summary.tiles == {split: len(keys_of(folder, split)) for split in SPLITS}
    written = json.loads((folder / 'summary.json').read_text())
    assert written['content_hash'] == summary.content_hash
    assert written['hashes'] == {name: hash_of(folder / f'{name}.lmdb') for name in lmdbs}
    hashes = json.dumps(written['hashes'], sort_keys=True)
    assert summary.content_hash == hashlib.sha256(hashes.encode()).hexdigest()


def test_pairs(pairs, tmp_path):
    folder = tmp_path / 'more' / 'packed'
    summary = pack('some', pairs, folder, PAIRS)
    assert list(folder.parent.iterdir()) == [folder]
    assert_whole(folder, summary, [f'{split}_{side}' for split in SPLITS for side in ('gt', 'lq')])
    for split in SPLITS:
        ours = [pair for pair in pairs if pair.split == split]
        for side in ('gt', 'lq'):
            expected = {}
            for pair in ours:
                expected |= extract(getattr(pair, side), pair.name)
            assert_same(read_all(folder / f'{split}_{side}.lmdb'), expected)
    assert summary.tiles == {'train': 2 * (24 + 6), 'val': 30, 'test': 30}
    assert summary.dropped == {'flat': 0, 'near-duplicate': 0, 'too small': 0}
    assert not summary.misaligned


def test_verify_does_not_trust_an_earlier_verification(pairs, tmp_path, monkeypatch):
    pack('some', pairs, tmp_path / 'packed', PAIRS)
    verify(tmp_path / 'packed')
    lmdb_store._verified_keys.cache_clear()
    scan = mock.Mock(side_effect=lmdb_verification.subprocess.run)
    monkeypatch.setattr(lmdb_verification.subprocess, 'run', scan)
    verify(tmp_path / 'packed')
    assert len(scan.call_args_list) == 6
    assert all(call.kwargs['input'] for call in scan.call_args_list)


def test_synthetic(clean, tmp_path):
    summary = pack('some', clean, tmp_path / 'packed', SYNTHETIC)
    assert_whole(tmp_path / 'packed', summary, ['test_gt', 'test_lq', 'train_gt', 'val_gt', 'val_lq'])
    for pair in clean[2:]:
        tiles = extract(pair.gt, pair.name)
        assert_same(read_all(tmp_path / 'packed' / f'{pair.split}_gt.lmdb'), tiles)
        noisy = {}
        for key, tile in tiles.items():
            seed = int(hashlib.sha256(f'0/corruption/{key}'.encode()).hexdigest()[:16], 16) >> 1
            generator = torch.Generator().manual_seed(seed)
            noisy[key] = to_image(Noise()(to_tensor(tile)[None], generator=generator)[0])
        assert_same(read_all(tmp_path / 'packed' / f'{pair.split}_lq.lmdb'), noisy)


def test_seed_of_the_corruption(clean, tmp_path):
    first = pack('some', clean, tmp_path / 'first', SYNTHETIC)
    other = pack('some', clean, tmp_path / 'other', replace(SYNTHETIC, seed=1))
    fewer = pack('some', clean[1:], tmp_path / 'fewer', SYNTHETIC)
    for split in ('val', 'test'):
        assert first.hashes[f'{split}_gt'] == other.hashes[f'{split}_gt']
        assert first.hashes[f'{split}_lq'] != other.hashes[f'{split}_lq']
        assert first.hashes[f'{split}_lq'] == fewer.hashes[f'{split}_lq']


def test_blur(clean, tmp_path):
    options = replace(SYNTHETIC, corruption={'type': 'blur', 'size': 5})
    pack('some', clean, tmp_path / 'packed', options)
    gt, lq = (read_all(tmp_path / 'packed' / f'val_{side}.lmdb') for side in ('gt', 'lq'))
    key = 'third_8px_y00008_x00016'
    seed = int(hashlib.sha256(f'0/corruption/{key}'.encode()).hexdigest()[:16], 16) >> 1
    blurred = MotionBlur(5)(to_tensor(gt[key])[None], generator=torch.Generator().manual_seed(seed))
    np.testing.assert_array_equal(lq[key], to_image(blurred[0]))


def test_whole_images_are_not_cleaned(tmp_path):
    flat = np.full((48, 32, 3), 77, np.uint8)
    pairs = [
        Pair(name, name, picture('flat.png', flat), split=split) for split in SPLITS for name in (split, split * 2)
    ]
    summary = pack('some', pairs, tmp_path / 'packed', replace(SYNTHETIC, tiling=TilingSpec(8, (), whole=True)))
    assert summary.tiles == dict.fromkeys(SPLITS, 2)
    assert keys_of(tmp_path / 'packed', 'val') == {'val', 'valval'}


def test_table_and_summary(pairs, tmp_path):
    summary = pack('some', pairs, tmp_path / 'packed', PAIRS, choices={'variant': 'J'}, root='sub')
    with open(tmp_path / 'packed' / 'sources.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['name'] for row in rows] == [pair.name for pair in pairs]
    assert rows[2] == {
        'name': 'third',
        'gt': os.path.join('..', 'third.png'),
        'lq': os.path.join('..', 'third_lq.png'),
        'scene': 'scene_third',
        'split': 'val',
        'tiles': '30',
    }
    written = json.loads((tmp_path / 'packed' / 'summary.json').read_text())
    assert (written['dataset'], written['choices'], written['images']) == ('some', {'variant': 'J'}, 4)
    assert written['options']['tiling']['pixels'] == [8, 16]
    assert written['scenes'] == summary.scenes == {'test': 1, 'train': 2, 'val': 1}
    assert written['tiles'] == summary.tiles
    assert written['epochs']['total_iter'] == 2 * written['epochs']['automaton_iters'] == 2 * 20 * (60 // 32)
    assert written['epochs']['lnca_plus_iters'] == [10, 10, 20]


@pytest.mark.parametrize('method', ['scene', 'tile'])
def test_split_by_scene_and_by_tile(tmp_path, method):
    pairs = [paired(name) for name in ('a', 'b', 'c')]
    summary = pack('some', pairs, tmp_path / 'packed', replace(PAIRS, split=method))
    sides = {key: split for split in SPLITS for key in keys_of(tmp_path / 'packed', split)}
    keys = {key for pair in pairs for key in extract(pair.gt, pair.name)}
    if method == 'tile':
        assert sides == {key: split_of_tile(0, key) for key in keys}
        assert summary.scenes == {'all': 3}
    else:
        scenes = split_scenes(pairs, 0)
        assert sides == {key: scenes[f'scene_{key[0]}'] for key in keys}
        assert summary.scenes == {'test': 1, 'train': 1, 'val': 1}


def test_flat_tiles_are_dropped_on_both_sides(tmp_path):
    pixels = noise()
    pixels[:8, :16] = 128
    pair = Pair('some', 'some', picture('some.png', pixels), picture('some_lq.png', noise(seed=1)), 'train')
    flat_lq = Pair('other', 'other', pair.lq, picture('flat.png', np.full_like(pixels, 9)), 'train')
    summary = pack('some', [pair, flat_lq, *rest()], tmp_path / 'packed', PAIRS)
    assert summary.dropped == {'flat': 2, 'near-duplicate': 0, 'too small': 0}
    expected = extract(pair.gt, 'some').keys() - {'some_8px_y00000_x00000', 'some_8px_y00000_x00008'}
    assert keys_of(tmp_path / 'packed') == expected | extract(flat_lq.gt, 'other').keys()
    assert keys_of(tmp_path / 'packed') == set(TileStore(tmp_path / 'packed' / 'train_lq.lmdb').keys)


def repeating():
    """An image whose second tile nearly repeats its first."""
    pixels = noise()
    pixels[:8, 8:16] = pixels[:8, :8] // 2 + 60
    return pixels


EIGHT = replace(PAIRS, tiling=TilingSpec(8, (8,)))


def test_near_duplicates_of_a_scene(tmp_path):
    """They are dropped within a scene, not between scenes."""
    lq = picture('lq.png', noise(seed=1))
    pairs = [Pair(name, name[0], picture(f'{name}.png', repeating()), lq, 'train') for name in ('a1', 'a2', 'b1')]
    summary = pack('some', [*pairs, *rest()], tmp_path / 'packed', EIGHT)
    expected = (extract(pairs[0].gt, 'a1') | extract(pairs[2].gt, 'b1')).keys()
    assert keys_of(tmp_path / 'packed') == {key for key in expected if '_8px_' in key and 'y00000_x00008' not in key}
    assert summary.dropped['near-duplicate'] == 1 + 24 + 1

    summary = pack('some', [*pairs, *rest()], tmp_path / 'all', replace(EIGHT, duplicate_threshold=-1))
    assert summary.tiles['train'] == 3 * 24
    assert summary.dropped['near-duplicate'] == 0


def test_one_clean_image_in_two_scenes(tmp_path):
    """Tiles dropped in one scene are kept in another."""
    clean = [picture(f'{name}.png', noise(seed=9)) for name in ('first', 'second')]
    lq = picture('lq.png', noise(seed=1))
    pairs = [Pair('a1', 'a', clean[0], lq, 'train'), Pair('a2', 'a', clean[1], lq, 'train')]
    pack('some', [*pairs, Pair('b1', 'b', clean[1], lq, 'train'), *rest()], tmp_path / 'packed', EIGHT)
    assert {key[:2] for key in keys_of(tmp_path / 'packed')} == {'a1', 'b1'}


def noisy_photographs(*clean):
    """Pairs ``a``, ``b`` … of one scene: each clean image with another noisy photograph."""
    return [
        Pair('abcdef'[index], 'scene', image, picture(f'{index}.png', noise(seed=50 + index)), 'train')
        for index, image in enumerate(clean)
    ]


def positions(folder, name):
    return {key.removeprefix(name) for key in keys_of(folder) if key.startswith(f'{name}_')}


def test_noisy_photographs_of_one_clean_one_share_its_tiles(tmp_path):
    clean = picture('clean.png', repeating())
    summary = pack('some', [*noisy_photographs(*[clean] * 6), *rest()], tmp_path / 'packed', EIGHT)
    expected = {key.removeprefix('a') for key in extract(clean, 'a') if '_8px' in key} - {'_8px_y00000_x00008'}
    assert all(positions(tmp_path / 'packed', name) == expected for name in 'abcdef')
    assert summary.dropped['near-duplicate'] == 6
    lq = read_all(tmp_path / 'packed' / 'train_lq.lmdb')
    assert not np.array_equal(lq['a_8px_y00008_x00000'], lq['f_8px_y00008_x00000'])


def test_noisy_photographs_of_two_clean_ones_in_turn(tmp_path):
    """They share its tiles also when not adjacent."""
    first, second = picture('first.png', noise(seed=1)), picture('second.png', noise(seed=2))
    pack('some', [*noisy_photographs(first, second, first), *rest()], tmp_path / 'packed', EIGHT)
    assert [len(positions(tmp_path / 'packed', name)) for name in 'abc'] == [24, 24, 24]


@pytest.mark.parametrize(
    ('off', 'reported'), [((8, -12), [8, -12]), ((-4, 0), [-4, 0]), ((2, -2), None), ((0, 0), None)]
)
def test_misaligned_pairs_are_reported(tmp_path, off, reported):
    whole = cv2.GaussianBlur(noise(200, 160), (0, 0), 2)
    whole = cv2.normalize(whole, None, 0, 255, cv2.NORM_MINMAX)
    down, right = off
    gt, lq = whole[20:180, 20:148], whole[20 - down : 180 - down, 20 - right : 148 - right]
    pair = Pair('some', 'some', picture('gt.png', gt), picture('lq.png', lq), 'train')
    options = replace(PAIRS, tiling=TilingSpec(8, (16,)))
    summary = pack('some', [pair, *rest()], tmp_path / 'packed', options)
    assert summary.misaligned == ([{'gt': 'gt.png', 'lq': 'lq.png', 'shift': reported}] if reported else [])
    assert len([key for key in keys_of(tmp_path / 'packed') if key.startswith('some')]) == 80


def test_misalignment_is_as_large_in_either_direction(tmp_path):
    whole = cv2.normalize(cv2.GaussianBlur(noise(230, 190), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    one, other = picture('one.png', whole[9:219, 9:177]), picture('other.png', whole[:210, :168])
    pairs = [Pair('a', 'a', one, other, 'train'), Pair('b', 'b', other, one, 'train'), *rest()]
    summary = pack('some', pairs, tmp_path / 'packed', replace(PAIRS, tiling=TilingSpec(8, (14,))))
    down, up = (entry['shift'] for entry in summary.misaligned)
    assert down == [-amount for amount in up]
    assert down == pytest.approx([9, 9], abs=1)


def test_sizes_differ(pairs, tmp_path):
    pairs[1] = replace(pairs[1], lq=picture('lq.png', noise(32, 48)))
    message = refusal(pairs, tmp_path / 'packed', PAIRS)
    assert 'lq.png: 48×32 pixels, but second.png has 32×48' in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('kind', [Unreadable, Missing])
@pytest.mark.parametrize('side', ['gt', 'lq'])
def test_bad_images(pairs, tmp_path, kind, side):
    pairs[1] = replace(pairs[1], **{side: kind('bad.png')})
    pairs.append(replace(paired('fifth'), lq=picture('narrow.png', noise(48, 31))))
    message = refusal(pairs, tmp_path / 'packed', PAIRS, workers=2)
    assert 'bad.png' in message
    assert '--skip-bad' in message
    assert not list(tmp_path.iterdir())

    summary = pack('some', pairs, tmp_path / 'packed', PAIRS, skip_bad=True, workers=2)
    bad, narrow = summary.skipped
    assert bad.startswith('bad.png')
    assert narrow.startswith('narrow.png: 31×48 pixels')
    assert keys_of(tmp_path / 'packed') == extract(pairs[0].gt, 'first').keys()
    with open(tmp_path / 'packed' / 'sources.csv', newline='') as file:
        assert [row['tiles'] for row in csv.DictReader(file)] == ['30', '0', '30', '30', '0']


def test_too_small_images_are_counted(pairs, tmp_path):
    tiny = picture('tiny.png', noise(7, 40))
    summary = pack('some', [*pairs, Pair('tiny', 'tiny', tiny, tiny, 'train')], tmp_path / 'packed', PAIRS)
    assert summary.dropped['too small'] == 1
    assert summary.tiles['train'] == 60


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'tiling': TilingSpec(8, (49,))}, 'no train tile is left (dropped: 4 too small)'),
        ({'flat_threshold': 200.0}, 'no train tile is left (dropped: 120 flat)'),
        ({'tiling': TilingSpec(8, (16, 4))}, '--tile-pixels 4: must be at least --tile-size, which is 8'),
        ({'tiling': TilingSpec(8, (), (0, 1))}, '--grid 0 1'),
        ({'corruption': {'type': 'blurr'}}, 'Did you mean blur'),
        ({'corruption': {'type': 'noise', 'size': 3}}, 'corruption.size is unknown'),
    ],
)
def test_mistakes_are_named(clean, tmp_path, more, message):
    assert message in refusal(clean, tmp_path / 'packed', replace(SYNTHETIC, **more))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('split', SPLITS)
def test_empty_split(pairs, tmp_path, split):
    others = [pair for pair in pairs if pair.split != split]
    if split == 'val':  # one of the training scenes would be taken
        others.append(replace(paired('flat', 'val'), gt=picture('flat.png', np.zeros((48, 32, 3), np.uint8))))
    assert f'no {split} tile is left' in refusal(others, tmp_path / 'packed', PAIRS)
    assert not list(tmp_path.iterdir())


def test_number_of_workers(pairs, tmp_path):
    assert '--workers 0' in refusal(pairs, tmp_path / 'packed', PAIRS, workers=0)


def test_overwrite(pairs, tmp_path):
    folder = tmp_path / 'packed'
    folder.mkdir()
    (folder / 'mine').write_text('precious')
    message = refusal(pairs, folder, PAIRS)
    assert '--overwrite' in message
    assert str(folder) in message
    assert [file.name for file in folder.iterdir()] == ['mine']
    # A folder that is no packed dataset is not replaced.
    assert 'no packed dataset' in refusal(pairs, folder, PAIRS, overwrite=True)
    assert [file.name for file in folder.iterdir()] == ['mine']
    (folder / 'mine').unlink()
    for change in ({}, {'seed': 1}):
        summary = pack('some', pairs, folder, replace(PAIRS, **change), overwrite=True)
        assert verify(folder) == summary.tiles
        assert json.loads((folder / 'summary.json').read_text())['options']['seed'] == change.get('seed', 0)
    assert list(tmp_path.iterdir()) == [folder]


def test_failure_leaves_what_was_there(pairs, tmp_path, monkeypatch):
    folder = tmp_path / 'packed'
    pack('some', pairs, folder, PAIRS)
    before = contents(folder)
    bad = [*pairs[:2], replace(paired('bad'), gt=Unreadable('bad.png')), *pairs[2:]]
    assert 'bad.png' in refusal(bad, folder, PAIRS, overwrite=True)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, 'No space left on device')
        patch.setattr('lnca_data.io.contact_sheet.write_image', mock.Mock(side_effect=full))
        assert 'No space left on device' in refusal(pairs, folder, replace(PAIRS, seed=1), overwrite=True)
    assert contents(folder) == before
    assert list(tmp_path.iterdir()) == [folder]
    # The process is still usable.
    assert pack('some', [*pairs, paired('more')], folder, PAIRS, overwrite=True).tiles['train'] == 90
    assert verify(folder)['train'] == 90


@pytest.mark.parametrize('workers', [1, 2])
def test_bug_in_the_middle_leaves_nothing(pairs, tmp_path, workers):
    pairs.insert(2, replace(paired('buggy'), gt=Buggy('buggy.png')))
    assert refusal(pairs, tmp_path / 'packed', PAIRS, workers=workers, kind=ZeroDivisionError) == 'a bug'
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('workers', [1, 2])
def test_worker_that_dies(pairs, tmp_path, workers):
    pairs.insert(2, replace(paired('deadly'), lq=Deadly('deadly.png')))
    assert '--workers' in refusal(pairs, tmp_path / 'packed', PAIRS, workers=workers, skip_bad=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('room', [1000, 1 << 15])
def test_full_disk(pairs, tmp_path, little_room, room):
    with little_room(room):
        message = refusal(pairs, tmp_path / 'packed', PAIRS)
    assert message.startswith(f'{tmp_path / "packed"}: cannot write')
    assert 'make room' in message
    assert not list(tmp_path.iterdir())
    assert pack('some', pairs, tmp_path / 'packed', PAIRS).tiles['train'] == 60


@pytest.mark.parametrize('kind', ['pairs', 'synthetic'])
def test_same_for_any_number_of_workers_and_size_of_tasks(tmp_path, monkeypatch, kind):
    clean = picture('clean.png', repeating())
    if kind == 'pairs':
        scenes = [*noisy_photographs(*[clean] * 5), *(paired(f'pair_{index}') for index in range(6)), *rest()]
        options = PAIRS
    else:
        scenes = [synthetic(f'image_{index}', SPLITS[index % 3]) for index in range(12)]
        options = replace(SYNTHETIC, split='tile')

    def packed(name, workers):
        pack('some', scenes, tmp_path / name, options, workers=workers)
        return contents(tmp_path / name)

    first = packed('first', 1)
    assert packed('two', 2) == first
    assert packed('three', 3) == first
    monkeypatch.setattr(packing, 'TASK_PAIRS', 3)
    monkeypatch.setattr(Picture, 'stored_bytes', lambda self: 1)
    assert packed('larger', 2) == first
