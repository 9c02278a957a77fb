"""From photographs to LMDBs, with small synthetic photographs."""

import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from lnca_arch.errors import InputError
from lnca_data.lmdb_store import TileStore
from lnca_data.packing import PackingOptions, Photograph, pack
from lnca_data.tiles import NearDuplicates, cut, is_flat

OPTIONS = PackingOptions({'type': 'noise'}, tile_pixels=(8, 16), tile_size=8)
LMDBS = ['train_gt', 'val_gt', 'val_lq', 'test_gt', 'test_lq']


def photograph(name, height=80, width=48):
    pixels = np.random.default_rng(len(name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Photograph(name, lambda: pixels, is_test=name == 'test')


@pytest.fixture
def photographs():
    return [photograph('first'), photograph('second'), photograph('test')]


def read(path):
    store = TileStore(path)
    return {key: store[key] for key in store.keys}


def place(key):
    """Name, side, top, left."""
    name, *numbers = re.fullmatch(r'(\w+)_(\d+)px_y(\d+)_x(\d+)', key).groups()
    return name, *map(int, numbers)


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


def refusal(*arguments):
    with pytest.raises(InputError) as caught:
        pack(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_cut_covers_what_fits():
    image = np.arange(21 * 30 * 3, dtype=np.uint32).reshape(21, 30, 3).astype(np.uint8)
    tiles = list(cut(image, 8, 8))
    assert [(tile.top, tile.left) for tile in tiles] == [(y, x) for y in (0, 8) for x in (0, 8, 16)]
    for tile in tiles:
        assert tile.side == 8
        np.testing.assert_array_equal(tile.image, image[tile.top : tile.top + 8, tile.left : tile.left + 8])
    assert not list(cut(image, 22, 8))


def test_cut_shrinks_by_averaging():
    image = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    left, right = cut(image, 16, 4)
    means = image.reshape(4, 4, 8, 4, 3).mean((1, 3))
    np.testing.assert_allclose(left.image, means[:, :4], atol=0.51)
    np.testing.assert_allclose(right.image, means[:, 4:], atol=0.51)


def test_flat_tiles():
    tile = np.full((8, 8, 3), (10, 100, 200), np.uint8)
    assert is_flat(tile, 4.0)
    assert not is_flat(tile, 0.0)
    tile[::2, :, 2] += 10
    assert not is_flat(tile, 4.0)
    assert is_flat(tile, 5.1)


def test_near_duplicates():
    tile = np.random.default_rng(0).integers(10, 240, (8, 8, 3), dtype=np.uint8)
    duplicates = NearDuplicates(2.0)
    assert not duplicates.repeats(tile)
    assert not duplicates.repeats(tile + 3)
    assert duplicates.repeats(tile)
    assert duplicates.repeats(tile + 2)
    assert duplicates.repeats(tile - 2)
    assert not duplicates.repeats(tile + 6)
    one_pixel = tile.copy()
    one_pixel[0, 0] -= 10
    assert duplicates.repeats(one_pixel)


def test_pack(photographs, tmp_path):
    output = tmp_path / 'more' / 'packed'
    summary = pack(photographs, output, OPTIONS, overwrite=False)
    assert {file.name for file in output.iterdir()} == {
        *(f'{name}.lmdb' for name in LMDBS),
        'summary.json',
        'contact_sheet.png',
    }
    assert list(output.parent.iterdir()) == [output]
    tiles = {name: read(output / f'{name}.lmdb') for name in LMDBS}
    assert summary.tiles == {split: len(tiles[f'{split}_gt']) for split in ('train', 'val', 'test')}

    # 80 × 48 pixels are 60 tiles of 8 and 15 of 16; the last fifth is what begins at row 64.
    assert summary.tiles == {'train': 2 * (48 + 12), 'val': 2 * (12 + 3), 'test': 60 + 15}
    assert {place(key)[0] for key in tiles['test_gt']} == {'test'}
    for split in ('train', 'val'):
        assert {place(key)[0] for key in tiles[f'{split}_gt']} == {'first', 'second'}
        assert {place(key)[2] >= 64 for key in tiles[f'{split}_gt']} == {split == 'val'}

    pixels = {photo.name: photo.load() for photo in photographs}
    for split in ('train', 'val', 'test'):
        for key, image in tiles[f'{split}_gt'].items():
            name, side, top, left = place(key)
            cutting = pixels[name][top : top + side, left : left + side]
            np.testing.assert_array_equal(image, cv2.resize(cutting, (8, 8), interpolation=cv2.INTER_AREA))
    for split in ('val', 'test'):
        gt, lq = tiles[f'{split}_gt'], tiles[f'{split}_lq']
        assert gt.keys() == lq.keys()
        assert not any(np.array_equal(gt[key], lq[key]) for key in gt)

    written = json.loads((output / 'summary.json').read_text())
    assert written['content_hash'] == summary.content_hash
    assert written['photographs'] == {'first': 'train', 'second': 'train', 'test': 'test'}
    assert written['tiles'] == summary.tiles
    assert written['options']['corruption'] == {'type': 'noise'}


@pytest.mark.parametrize(
    'sides',
    [
        (8, 16),
        (16, 8),
        pytest.param((16, 24)),
    ],
)
def test_training_and_validation_do_not_overlap(tmp_path, sides):
    photos = [photograph('first', 160), photograph('test', 32)]
    pack(photos, tmp_path / 'packed', replace(OPTIONS, tile_pixels=sides), overwrite=False)
    train, val = (TileStore(tmp_path / 'packed' / f'{split}_gt.lmdb').keys for split in ('train', 'val'))
    first_val = min(top for _, _, top, _ in map(place, val))
    assert max(top + side for _, side, top, _ in map(place, train)) <= first_val


def test_dropped_tiles(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (80, 48, 3), dtype=np.uint8)
    image[:8, :24] = 128  # three flat tiles
    image[8:16, :8] = image[16:24, :8]  # a repetition
    photos = [Photograph('first', lambda: image, is_test=False), Photograph('test', lambda: image, is_test=True)]
    summary = pack(photos, tmp_path / 'packed', replace(OPTIONS, tile_pixels=(8,)), overwrite=False)
    # Twice, since a photograph is compared with itself only.
    assert summary.dropped == {'flat': 6, 'near-duplicate': 2}
    assert summary.tiles == {'train': 48 - 4, 'val': 12, 'test': 60 - 4}
    keys = TileStore(tmp_path / 'packed' / 'train_gt.lmdb').keys
    assert 'first_8px_y0008_x0000' in keys
    assert 'first_8px_y0016_x0000' not in keys
    assert 'first_8px_y0000_x0000' not in keys


def test_blur(photographs, tmp_path):
    pack(photographs, tmp_path / 'packed', replace(OPTIONS, corruption={'type': 'blur', 'size': 5}), overwrite=False)
    gt, lq = (read(tmp_path / 'packed' / f'val_{side}.lmdb') for side in ('gt', 'lq'))
    assert gt.keys() == lq.keys()
    assert not any(np.array_equal(gt[key], lq[key]) for key in gt)
    assert np.mean([image.std() for image in lq.values()]) < 0.8 * np.mean([image.std() for image in gt.values()])


def test_content_hash(photographs, tmp_path):
    def packed(name, **more):
        return pack(photographs, tmp_path / name, replace(OPTIONS, **more), overwrite=False).content_hash

    first = packed('first')
    assert packed('same') == first
    for name in ('val_lq', 'test_lq'):
        for key, image in read(tmp_path / 'first' / f'{name}.lmdb').items():
            np.testing.assert_array_equal(image, TileStore(tmp_path / 'same' / f'{name}.lmdb')[key])
    assert len({first, packed('seed', seed=1), packed('blur', corruption={'type': 'blur'})}) == 3


def test_overwrite(photographs, tmp_path):
    output = tmp_path / 'packed'
    output.mkdir()
    (output / 'mine').write_text('precious')
    message = refusal(photographs, output, OPTIONS, False)
    assert '--overwrite' in message
    assert str(output) in message
    assert [file.name for file in output.iterdir()] == ['mine']
    pack(photographs, output, OPTIONS, overwrite=True)
    assert not (output / 'mine').exists()
    assert len(TileStore(output / 'train_gt.lmdb')) == 120
    assert list(tmp_path.iterdir()) == [output]


def test_failure_leaves_what_was_there(photographs, tmp_path, monkeypatch):
    output = tmp_path / 'packed'
    pack(photographs, output, OPTIONS, overwrite=False)
    before = contents(output)

    def fails(*_):
        raise InputError('no more room')

    with monkeypatch.context() as patch:
        patch.setattr('lnca_data.packing.write_sheet', fails)
        assert refusal(photographs, output, replace(OPTIONS, seed=1), True) == 'no more room'
    broken = [*photographs, Photograph('broken', fails, is_test=False)]
    assert refusal(broken, output, OPTIONS, True) == 'no more room'
    assert contents(output) == before
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'tile_pixels': (16, 4)}, 'tiles of 4 pixels cannot be shrunk to 8'),
        ({'tile_pixels': (128,)}, 'no train tile is left'),
        ({'flat_threshold': 200.0}, 'no train tile is left'),
        ({'tile_pixels': (48,)}, 'no val tile is left'),
        ({'corruption': {'type': 'blurr'}}, 'Did you mean blur'),
        ({'corruption': {'type': 'noise', 'size': 3}}, "'size'"),
        pytest.param(
            {'tile_pixels': (8, 8)},
            '8',
        ),
        pytest.param({'tile_size': 0}, '0'),
    ],
)
def test_mistakes_are_named(photographs, tmp_path, more, message):
    assert message in refusal(photographs, tmp_path / 'packed', replace(OPTIONS, **more), False)
    assert not list(tmp_path.iterdir())


def test_no_test_photograph(tmp_path):
    assert 'no test tile is left' in refusal([photograph('first')], tmp_path / 'packed', OPTIONS, False)
    assert not list(tmp_path.iterdir())
