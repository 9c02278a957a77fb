"""TileDataset: items, augmentation, caching and refused options."""

import itertools
import random
import shutil
import types

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from lnca_data.io.lmdb_writer import write_lmdb
from lnca_data.tile_dataset import TileDataset, to_image, to_tensor
from lnca_utils.errors import LNCAError

from basicsr.data import build_dataset


def pixels(height=4, width=4):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def pair(tmp_path):
    """Options of pairs whose lq is the negative of gt."""
    images = [(f'tile_{index}', pixels() // (index + 1)) for index in range(3)]
    write_lmdb(tmp_path / 'gt.lmdb', images)
    write_lmdb(tmp_path / 'lq.lmdb', [(key, 255 - image) for key, image in images])
    return {'name': 'some', 'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'dataroot_lq': str(tmp_path / 'lq.lmdb')}


def refusal(opt):
    messages = []
    for call in (TileDataset, TileDataset.check_options):
        with pytest.raises(LNCAError) as caught:
            call(opt)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert '\n' not in messages[0]
    return messages[0]


def test_built_by_basicsr(tiles):
    dataset = build_dataset(
        {'name': 'some', 'type': 'TileDataset', 'phase': 'train', 'dataroot_gt': str(tiles / 'train_gt.lmdb')}
    )
    assert isinstance(dataset, TileDataset)
    assert len(dataset) == 21


def test_pairs(pair):
    dataset = TileDataset(pair | {'phase': 'val', 'use_hflip': True, 'use_rot': True})
    assert len(dataset) == 3
    for index in range(3):
        # Not augmented, since the phase is not training.
        for _ in range(4):
            item = dataset[index]
            assert item.keys() == {'gt', 'gt_path', 'lq', 'lq_path'}
            assert item['gt_path'] == item['lq_path'] == f'tile_{index}'
            assert item['gt'].dtype == torch.float32
            want = torch.from_numpy(pixels() // (index + 1)).permute(2, 0, 1) / 255
            torch.testing.assert_close(item['gt'], want, rtol=0, atol=1e-7)
            torch.testing.assert_close(item['lq'], 1 - want, rtol=0, atol=1e-6)


def test_clean_tiles_only(pair):
    item = TileDataset({'name': 'some', 'phase': 'train', 'dataroot_gt': pair['dataroot_gt']})[1]
    assert item.keys() == {'gt', 'gt_path'}


def test_rgb_from_0_to_1(tmp_path):
    image = np.zeros((4, 6, 3), np.uint8)
    image[..., 0], image[..., 1] = 255, 51
    write_lmdb(tmp_path / 'gt.lmdb', [('orange', image)])
    tile = TileDataset({'name': 'some', 'phase': 'train', 'dataroot_gt': str(tmp_path / 'gt.lmdb')})[0]['gt']
    assert tile.shape == (3, 4, 6)
    assert (tile[0] == 1).all()
    torch.testing.assert_close(tile[1], torch.full((4, 6), 0.2))
    assert (tile[2] == 0).all()


@pytest.mark.parametrize(('flip', 'turn', 'views'), [(False, False, 1), (True, False, 2), (False, True, 4), (1, 1, 8)])
def test_flips_and_turns(pair, flip, turn, views):
    random.seed(0)
    dataset = TileDataset(pair | {'phase': 'train', 'use_hflip': flip, 'use_rot': turn})
    seen = set()
    for _ in range(60):
        item = dataset[0]
        torch.testing.assert_close(item['lq'], 1 - item['gt'], rtol=0, atol=1e-6)
        seen.add(to_image(item['gt']).tobytes())
    turned = itertools.product((pixels(), pixels()[:, ::-1]) if flip else (pixels(),), range(4) if turn else (0,))
    assert seen == {np.ascontiguousarray(np.rot90(image, turns)).tobytes() for image, turns in turned}
    assert len(seen) == views


def test_other_colours(pair):
    dataset = TileDataset(pair | {'phase': 'train', 'use_channel_jitter': True})
    plain = TileDataset(pair | {'phase': 'train'})
    changed = 0
    for place in range(3, 303):  # as a sampler numbers them
        item, stored = dataset[place], plain[place % 3]
        if torch.equal(item['gt'], stored['gt']):
            assert torch.equal(item['lq'], stored['lq'])
            continue
        changed += 1
        assert torch.equal(item['gt'], dataset[place]['gt'])
        assert 0 <= item['gt'].min() <= item['gt'].max() <= 1
        # Both have the same jitter: their sum, originally 1, is constant.
        sums = (item['gt'] + item['lq']).flatten(1)
        torch.testing.assert_close(sums, sums[:, :1].expand_as(sums))
        for channel in item['gt']:
            # The channel is a linear function of its source, with a slope of at least a quarter.
            slopes = [torch.corrcoef(torch.stack([channel.flatten(), of.flatten()]))[0, 1] for of in stored['gt']]
            source = stored['gt'][int(torch.stack(slopes).nan_to_num().argmax())]
            span = (channel.max() - channel.min()) / (source.max() - source.min())
            assert 0.249 < span < 1.001
    assert 110 < changed < 190
    assert torch.equal(TileDataset(pair | {'phase': 'val', 'use_channel_jitter': True})[0]['gt'], plain[0]['gt'])


def test_batches(pair):
    batch = next(iter(DataLoader(TileDataset(pair | {'phase': 'train', 'use_rot': True}), batch_size=3)))
    assert batch['gt'].shape == batch['lq'].shape == (3, 3, 4, 4)
    assert batch['gt'].min() >= 0
    assert batch['gt'].max() <= 1


def test_tensors_and_images():
    image = pixels(5, 7)
    tensor = to_tensor(image)
    assert tensor.shape == (3, 5, 7)
    np.testing.assert_array_equal(to_image(tensor), image)
    np.testing.assert_array_equal(
        to_image(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1).requires_grad_()), [[[0, 128, 255]]]
    )


@pytest.mark.parametrize('phase', ['val', 'test'])
def test_missing_lq(pair, phase):
    assert 'dataset some: dataroot_lq is missing' in refusal(
        {'name': 'some', 'phase': phase, 'dataroot_gt': pair['dataroot_gt']}
    )


@pytest.mark.parametrize('more', [{}, {'dataroot_gt': None}, {'dataroot_gt': ''}])
def test_missing_gt(more):
    assert 'dataset some: dataroot_gt is missing' in refusal({'name': 'some', 'phase': 'train'} | more)


@pytest.mark.parametrize('side', ['gt', 'lq'])
def test_lmdb_that_is_not_there(pair, tmp_path, side):
    message = refusal(pair | {'phase': 'val', f'dataroot_{side}': str(tmp_path / 'none.lmdb')})
    assert 'none.lmdb: there is no such LMDB' in message


def test_other_keys(pair, tiles):
    assert 'do not hold the same images' in refusal(
        pair | {'phase': 'train', 'dataroot_lq': str(tiles / 'val_lq.lmdb')}
    )


def test_sizes_that_make_no_batch(tmp_path):
    mixed = {'name': 'some'}
    for side in ('gt', 'lq'):
        mixed[f'dataroot_{side}'] = str(tmp_path / f'{side}.lmdb')
        write_lmdb(mixed[f'dataroot_{side}'], [('a', pixels()), ('b', pixels(4, 6))])
    message = refusal(mixed | {'phase': 'train'})
    assert 'tiles of one size' in message
    assert '4×4, 4×6' in message
    # Validation accepts them, one image at a time.
    assert TileDataset(mixed | {'phase': 'val'})[1]['lq'].shape == (3, 4, 6)


def test_lq_of_another_size(pair, tmp_path):
    write_lmdb(tmp_path / 'small.lmdb', [(f'tile_{index}', pixels(2, 2)) for index in range(3)])
    assert 'size' in refusal(pair | {'phase': 'train', 'dataroot_lq': str(tmp_path / 'small.lmdb')})


def test_turning_tiles_that_are_not_square(tmp_path):
    write_lmdb(tmp_path / 'gt.lmdb', [('a', pixels(4, 6)), ('b', pixels(4, 6))])
    opt = {'name': 'some', 'phase': 'train', 'dataroot_gt': str(tmp_path / 'gt.lmdb'), 'use_rot': True}
    assert 'use_rot' in refusal(opt)


# --- tiles in memory


def same_items(first, second):
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def items(opt, indices=(2, 0, 1, 0)):
    random.seed(3)
    return TileDataset(opt).__getitems__(indices)


def test_kept_in_memory(pair):
    opt = pair | {'phase': 'train', 'use_hflip': True, 'use_rot': True}
    from_lmdb = items(opt)
    same_items(items(opt | {'cache': 'memory'}), from_lmdb)
    dataset = TileDataset(opt | {'cache': 'memory'})
    for side in ('gt', 'lq'):
        shutil.rmtree(pair[f'dataroot_{side}'])
    random.seed(3)
    same_items([dataset[index] for index in (2, 0, 1, 0)], from_lmdb)


def test_read_from_the_lmdb_if_there_is_no_room(pair, monkeypatch):
    opt = pair | {'phase': 'train', 'cache': 'memory'}
    assert TileDataset(opt).cached['gt'].shape == (3, 4, 4, 3)
    needed = 2 * 3 * 4 * 4 * 3
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=2 * needed - 1))
    assert not TileDataset(opt).cached
    same_items(items(opt), items(pair | {'phase': 'train'}))
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: types.SimpleNamespace(available=2 * needed))
    assert TileDataset(opt).cached


def test_read_from_the_lmdb_if_sizes_differ(tmp_path):
    for side in ('gt', 'lq'):
        write_lmdb(tmp_path / f'{side}.lmdb', [('a', pixels()), ('b', pixels(4, 6))])
    roots = {f'dataroot_{side}': str(tmp_path / f'{side}.lmdb') for side in ('gt', 'lq')}
    dataset = TileDataset({'name': 'some', 'phase': 'val', 'cache': 'memory', **roots})
    assert not dataset.cached
    assert dataset[1]['gt'].shape == (3, 4, 6)


def test_unknown_cache_is_named(pair):
    assert "cache 'disk' is unknown" in refusal(pair | {'phase': 'val', 'cache': 'disk'})


class SharedMemory(TileDataset):
    """Returns for each batch how many bytes of the cached tiles are shared with other processes."""

    def __getitems__(self, indices):
        for index in range(len(self)):
            super().__getitems__([index])
        address = self.cached['gt'].data_ptr()
        for mapping in psutil.Process().memory_maps(grouped=False):
            first, last = (int(end, 16) for end in mapping.addr.split('-'))
            if first <= address < last:
                return [{'shared': mapping.shared_clean + mapping.shared_dirty} for _ in indices]
        raise AssertionError('the tiles are nowhere')


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_share_one_copy(tmp_path, method):
    tile = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    write_lmdb(tmp_path / 'gt.lmdb', [(f'tile_{index}', tile) for index in range(20)])
    opt = {'name': 'some', 'phase': 'train', 'cache': 'memory', 'dataroot_gt': str(tmp_path / 'gt.lmdb')}
    loader = DataLoader(SharedMemory(opt), batch_size=10, num_workers=2, multiprocessing_context=method)
    shared = [int(count) for batch in loader for count in batch['shared']]
    assert len(shared) == 20
    assert min(shared) > 0.95 * 20 * tile.nbytes
