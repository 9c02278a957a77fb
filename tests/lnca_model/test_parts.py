"""Optimizers, the sample pool, phases, the sampler, metrics and checkpoints."""

import os
import zipfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from lnca_arch import LatentNAFCA, LatentViTCA
from lnca_data.tile_dataset import TileDataset
from lnca_model.evaluation.scores import batch_by_shape
from lnca_model.metrics import calculate_psnr_batch, calculate_ssim_batch
from lnca_model.models.lnca_model import derangement
from lnca_model.training.optimizers import OPTIMIZERS, build_scheduler, normalize_gradients
from lnca_model.training.phases import phase_at, phases_of
from lnca_model.training.resumable_sampler import ResumableSampler
from lnca_model.training.sample_pool import SamplePool
from lnca_model.training.trainer import build_loaders
from lnca_utils import checkpoint
from lnca_utils.errors import LNCAError
from lnca_utils.option_checks import construct

from basicsr.metrics import calculate_psnr, calculate_ssim


def test_golden_optimizer(golden):
    expected = golden('optimizer')
    weight, bias = (nn.Parameter(expected[name].clone()) for name in ('w0', 'b0'))
    steps = int(expected['total_steps'])
    options = {'type': 'Adam', 'lr': expected['lr0'].item(), 'eps': expected['adam_eps'].item()}
    optimizer = construct(options, OPTIMIZERS.items(), 'optim_g', [weight, bias])
    scheduler = build_scheduler({'type': 'CosineAnnealingRestartLR'}, 'scheduler', optimizer, steps)
    for step in range(steps):
        if step:
            scheduler.step()
        optimizer.zero_grad()
        (100 * ((expected['x'] @ weight.T + bias).tanh() - 0.3).square().mean()).backward()
        normalize_gradients([weight, bias])
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected['w_after_each_step'][step], rtol=0, atol=1e-4)
    torch.testing.assert_close(bias.detach(), expected['b_final'], rtol=0, atol=1e-4)


def test_normalised_gradients_have_norm_one():
    used, zero, unused = (nn.Parameter(torch.ones(3)) for _ in range(3))
    (used.square().sum() * 1e6 + zero.sum() * 0).backward()
    normalize_gradients([used, zero, unused])
    torch.testing.assert_close(used.grad.norm(), torch.tensor(1.0))
    assert (zero.grad == 0).all()
    assert unused.grad is None


def pool_entries(first, count):
    index = torch.arange(first, first + count).float().view(-1, 1, 1, 1)
    return index.expand(-1, 3, 2, 2), index.expand(-1, 3, 2, 2) + 0.5, index.expand(-1, 5, 1, 1)


def test_pool_keeps_the_newest_and_their_images():
    pool = SamplePool(5)
    pool.add(*pool_entries(0, 3))
    assert len(pool) == 3
    assert set(pool.draw(10).state[:, 0, 0, 0].tolist()) == {0, 1, 2}
    pool.add(*pool_entries(3, 4))
    drawn = pool.draw(10)
    assert set(drawn.state[:, 0, 0, 0].tolist()) == {2, 3, 4, 5, 6}
    torch.testing.assert_close(drawn.gt[:, 0, 0, 0], drawn.state[:, 0, 0, 0])
    torch.testing.assert_close(drawn.lq[:, 0, 0, 0], drawn.state[:, 0, 0, 0] + 0.5)


def test_pool_takes_states_back_to_their_places():
    pool = SamplePool(8)
    pool.add(*pool_entries(0, 8))
    drawn = pool.draw(3)
    pool.write_back(drawn.indices, drawn.state + 100)
    after = pool.draw(8)
    changed = after.state[:, 0, 0, 0] >= 100
    assert changed.sum() == 3
    torch.testing.assert_close(after.gt[changed][:, 0, 0, 0] + 100, after.state[changed][:, 0, 0, 0])


def test_pool_survives_saving(tmp_path):
    pool = SamplePool(5)
    pool.add(*pool_entries(0, 7))
    checkpoint.save({'pool': pool.state_dict()}, tmp_path / 'pool.state')
    copy = SamplePool(5)
    copy.load_state_dict(checkpoint.load(tmp_path / 'pool.state')['pool'], torch.device('cpu'))
    for one in (pool, copy):
        one.add(*pool_entries(7, 2))
    torch.manual_seed(1)
    expected = pool.draw(5)
    torch.manual_seed(1)
    for got, want in zip(copy.draw(5), expected, strict=True):
        assert torch.equal(got, want)


def test_phases():
    phases = phases_of({'total_iter': 5, 'a': {'iters': 2}, 'b': {'iters': 3}}, ['a', 'b'])
    assert [(phase.first, phase.last) for phase in phases] == [(1, 2), (3, 5)]
    assert [phase_at(phases, iteration).name for iteration in range(1, 6)] == ['a', 'a', 'b', 'b', 'b']
    assert [phases[1].progress(iteration) for iteration in (3, 4)] == [0, 1 / 3]
    skipped = phases_of({'total_iter': 3, 'a': {'iters': 0}, 'b': {'iters': 3}}, ['a', 'b'])
    assert phase_at(skipped, 1).name == 'b'


def test_phases_that_do_not_add_up():
    with pytest.raises(LNCAError, match='total_iter: is 6, but .* is 5'):
        phases_of({'total_iter': 6, 'a': {'iters': 2}, 'b': {'iters': 3}}, ['a', 'b'])


@pytest.mark.parametrize('count', [2, 3, 8])
def test_derangements(count):
    seen = set()
    for _ in range(50):
        order = derangement(count)
        assert sorted(order.tolist()) == list(range(count))
        assert not (order == torch.arange(count)).any()
        seen.add(tuple(order.tolist()))
    assert len(seen) > 1 or count == 2
    with pytest.raises(ValueError, match='no derangement'):
        derangement(1)


@pytest.mark.parametrize(
    'settings', [{'crop_border': 0}, {'crop_border': 3}, {'crop_border': 0, 'test_y_channel': True}]
)
@pytest.mark.parametrize('shape', [(20, 32, 32, 3), (2, 40, 23, 3)])
def test_batched_metrics_are_those_of_basicsr(settings, shape):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, shape, dtype=np.uint8)
    other = np.clip(images + random.integers(-30, 30, shape), 0, 255).astype(np.uint8)
    for batched, single in ((calculate_psnr_batch, calculate_psnr), (calculate_ssim_batch, calculate_ssim)):
        expected = [single(one, two, **settings) for one, two in zip(images, other, strict=True)]
        np.testing.assert_allclose(batched(images, other, **settings), expected, rtol=1e-10)
        np.testing.assert_allclose(batched(images[0], other[0], **settings), expected[0], rtol=1e-10)


def test_metrics_of_equal_and_of_impossible_images():
    image = np.zeros((16, 16, 3), np.uint8)
    assert calculate_psnr_batch(image, image, 0) == float('inf')
    assert calculate_ssim_batch(image, image, 0) == 1
    with pytest.raises(ValueError, match='at least 11×11'):
        calculate_ssim_batch(image, image, 3)
    with pytest.raises(ValueError, match='cannot be compared'):
        calculate_ssim_batch(image, image[1:], 0)


def test_batches_join_neighbours_of_one_size():
    sizes = [4, 4, 4, 6, 4]
    items = [{'lq': torch.full((1, 3, s, s), float(i)), 'lq_path': [str(i)]} for i, s in enumerate(sizes)]
    batches = list(batch_by_shape(items, 2))
    assert [batch['lq_path'] for batch in batches] == [['0', '1'], ['2'], ['3'], ['4']]
    assert [batch['lq'].shape[-1] for batch in batches] == [4, 4, 6, 4]


def test_batches_of_large_images_are_small():
    items = [{'lq': torch.zeros(1, 3, size, size), 'lq_path': [str(size)]} for size in [4] * 5 + [9] * 2]
    assert [len(batch['lq']) for batch in batch_by_shape(items, 64, max_pixels=3 * 4 * 4)] == [3, 2, 1, 1]
    assert [len(batch['lq']) for batch in batch_by_shape(items, 2, max_pixels=3 * 4 * 4)] == [2, 2, 1, 1, 1]
    photographs = [{'lq': torch.zeros(1, 1, 600, 400)} for _ in range(3)]
    assert [len(batch['lq']) for batch in batch_by_shape(photographs, 64)] == [1, 1, 1]


class Images(Dataset):
    """Ten images that are their own index."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index


def test_the_seed_determines_the_order():
    def order(seed, epoch=0):
        sampler = ResumableSampler(Images(), 1, 0, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(3) == order(3)
    assert sorted(order(3)) == sorted(order(4)) == list(range(10))
    assert order(3) != order(4)
    assert order(3) != order(3, epoch=1)


def test_a_resumed_run_keeps_the_seed_of_its_data(model_options):
    """Also without manual_seed, when every start draws another one."""
    first, _, position = build_loaders(model_options | {'manual_seed': 7})
    assert position.at(2) == {'epoch': 0, 'seen': 8, 'data_seed': 7}
    second, _, resumed = build_loaders(model_options | {'manual_seed': 8}, {'iter': 2, **position.at(2)})
    assert resumed.at(3) == position.at(3)
    assert list(second.sampler) == list(first.sampler)[8:]


def test_the_seed_determines_flips_and_turns(tiles):
    root = str(tiles / 'train_gt.lmdb')
    dataset = TileDataset({'name': 'train', 'phase': 'train', 'dataroot_gt': root, 'use_hflip': True, 'use_rot': True})

    def augmentations(seed, ranks=1):
        """Key → augmentation in the first epoch."""
        samplers = [ResumableSampler(dataset, ranks, rank, seed=seed) for rank in range(ranks)]
        return {
            dataset.keys[place % len(dataset)]: dataset._augmentation(place)
            for sampler in samplers
            for place in sampler
        }

    assert len(augmentations(0)) == len(dataset) == 21
    assert augmentations(5) == augmentations(5) == augmentations(5, ranks=3)
    changed = [augmentations(5)[key] != augmentations(6)[key] for key in dataset.keys]
    assert 10 < sum(changed) < 21


@pytest.mark.parametrize('count', [3, 4, 6, 7])
def test_a_smaller_pool_takes_the_newest(count):
    pool, smaller = SamplePool(4), SamplePool(2)
    for number in range(count):
        pool.add(*pool_entries(number, 1))
    smaller.load_state_dict(pool.state_dict(), torch.device('cpu'))
    assert set(smaller.draw(2).state[:, 0, 0, 0].tolist()) == {count - 2, count - 1}
    smaller.add(*pool_entries(count, 1))
    assert set(smaller.draw(2).state[:, 0, 0, 0].tolist()) == {count - 1, count}


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / 'net.pth'
    checkpoint.save({'params': {'w': torch.ones(2)}}, path)

    def fail(content, file):
        file.write(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(LNCAError, match='No space left.*free disk space'):
        checkpoint.save({'params': {'w': torch.zeros(2)}}, path)
    assert checkpoint.load(path)['params']['w'].tolist() == [1, 1]
    assert [file.name for file in tmp_path.iterdir()] == ['net.pth']


def test_weights_of_another_network(tmp_path):
    path = tmp_path / 'net.pth'
    source = LatentNAFCA(latent_channels=4, hidden_channels=4)
    checkpoint.save({'params': source.state_dict()}, path)
    target = LatentViTCA(latent_channels=4, hidden_channels=4)
    with pytest.raises(LNCAError, match='not a checkpoint of this LatentViTCA.* missing, .* unknown, ') as error:
        checkpoint.read_weights(target, path, True, 'params')
    assert '\n' not in str(error.value)
    # Not strictly, the weights of the autoencoder load, which both networks have.
    weights = checkpoint.read_weights(target, path, False, 'params')
    assert {name for name in weights if name.startswith('autoencoder.')} == set(weights) - {
        name for name in weights if name.startswith('automaton.')
    }
    assert all(torch.equal(weights[name], source.state_dict()[name]) for name in weights)
    assert len([name for name in weights if name.startswith('autoencoder.')]) == len(source.autoencoder.state_dict())
    with pytest.raises(LNCAError, match='of another shape'):
        checkpoint.read_weights(LatentNAFCA(latent_channels=8, hidden_channels=4), path, True, 'params')


def test_truncated_foreign_and_hostile_checkpoints(tmp_path):
    whole = tmp_path / 'whole.pth'
    checkpoint.save({'params': {'w': torch.rand(1000)}}, whole)
    (tmp_path / 'cut.pth').write_bytes(whole.read_bytes()[:1000])
    (tmp_path / 'text.pth').write_text('not a checkpoint')
    torch.save(torch.ones(3), tmp_path / 'tensor.pth')
    torch.save({'params': nn.Linear(2, 2)}, tmp_path / 'code.pth')
    for name in ('cut', 'text', 'tensor', 'code', 'missing'):
        with pytest.raises(LNCAError, match=f'{name}.pth') as error:
            checkpoint.load(tmp_path / f'{name}.pth')
        assert '\n' not in str(error.value)


class Hostile:
    """An object whose pickle runs a function."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize('in_zip', [True, False])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, in_zip):
    file = tmp_path / 'net.pth'
    torch.save({'params': Hostile(tmp_path / 'ran')}, file, _use_new_zipfile_serialization=in_zip)
    with pytest.raises(LNCAError, match='net.pth: refused: contains pickled code') as error:
        checkpoint.load(file)
    assert '\n' not in str(error.value)
    assert not (tmp_path / 'ran').exists()


def test_a_compressed_checkpoint_is_refused_before_it_is_unpacked(tmp_path):
    file = tmp_path / 'net.pth'
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('net/data.pkl', bytes(1 << 20))
    with pytest.raises(LNCAError, match='compressed, unlike checkpoints of PyTorch'):
        checkpoint.load(file)


def test_a_pool_of_another_size_goes_on():
    """The next place of the full pool is in its middle; only samples that were added are drawn."""
    pool = SamplePool(10)
    for first in range(0, 15, 5):
        values = torch.arange(first, first + 5.0).view(5, 1, 1, 1) + 1
        pool.add(values, values, values)
    for size in (10, 20, 4):
        copy = SamplePool(size)
        copy.load_state_dict(pool.state_dict(), torch.device('cpu'))
        assert len(copy) == min(size, 10)
        new = torch.full((2, 1, 1, 1), 100.0)
        copy.add(new, new, new)
        drawn = copy.draw(size).state.flatten().tolist()
        assert len(drawn) == min(size, 12) and drawn.count(100) == 2
        assert set(drawn) <= {100.0, *range(6, 16)}
