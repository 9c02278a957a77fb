"""Noise and motion blur: golden kernels, distribution of the noise, curriculum."""

import pytest
import torch

from lnca_data.corruptions import MotionBlur, Noise, build_corruption
from lnca_data.corruptions.motion_blur import motion_blur, motion_kernel, motion_kernels
from lnca_utils.errors import LNCAError

GREY = torch.full((4, 3, 64, 64), 0.5)


def golden_cases(expected):
    return [(name, *map(int, name.split('/'))) for name in expected.below('kernel')]


def test_golden_kernels(golden):
    expected = golden('motion_blur')
    cases = golden_cases(expected)
    assert {size for _, size, _ in cases} == {4, 7, 10}
    for name, size, angle in cases:
        kernel = torch.from_numpy(motion_kernel(size, angle))
        torch.testing.assert_close(kernel, expected[f'kernel/{name}'], rtol=0, atol=1e-6, msg=name)
        assert torch.equal(motion_kernels(size)[angle], kernel)


def test_golden_blurred_images(golden):
    """Each image of a batch is convolved with its own kernel."""
    expected = golden('motion_blur')
    image = expected['image_hwc'].permute(2, 0, 1)
    cases = golden_cases(expected)
    for size in (4, 7, 10):
        names = [name for name, of_size, _ in cases if of_size == size]
        kernels = torch.stack([expected[f'kernel/{name}'] for name in names])
        blurred = motion_blur(image.expand(len(names), -1, -1, -1), kernels)
        want = torch.stack([expected[f'blurred/{name}'].permute(2, 0, 1) for name in names])
        torch.testing.assert_close(blurred, want, rtol=0, atol=1e-6)


def test_noise_law():
    noisy = Noise()(GREY)
    assert torch.equal(noisy, noisy[:, :1].expand_as(noisy))
    change = (noisy - GREY)[:, 0]
    hit = change != 0
    assert hit.float().mean() == pytest.approx(0.5, abs=0.02)
    assert change[hit].mean() == pytest.approx(0, abs=0.01)
    assert change[hit].std() == pytest.approx(0.2, abs=0.01)
    assert not torch.equal(change[0], change[1])


def test_noise_adds_one_value_to_all_channels():
    image = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    change = Noise(sigma=0.02, probability=1.0)(image) - image
    assert (change != 0).all()
    torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=0, atol=1e-6)


@pytest.mark.parametrize('level', [0.0, 1.0])
def test_noise_is_clipped(level):
    noisy = Noise()(torch.full_like(GREY, level))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    # Half of the values leave the range and are clipped.
    assert (noisy != level).float().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(('progress', 'share'), [(0.0, 0.25), (0.5, 0.5), (1.0, 0.75), (0.6, 0.6), (None, 0.5)])
def test_noise_curriculum(progress, share):
    assert (Noise()(GREY, progress) != GREY).float().mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ('progress', 'size'),
    [(0.0, 4), (0.25, 4), (0.3, 4), (0.35, 5), (0.4, 6), (0.5, 7), (0.65, 9), (0.7, 10), (1.0, 10), (None, 7)],
)
def test_blur_curriculum(progress, size):
    """A blurred point is the flipped kernel."""
    point = torch.zeros(3, 3, 31, 31)
    point[:, :, 15, 15] = 1
    blurred = MotionBlur()(point, progress)
    torch.testing.assert_close(blurred.sum((2, 3)), torch.ones(3, 3))
    end = 15 + (size - 1) // 2 + 1
    got = blurred[:, :, end - size : end, end - size : end].flip(2, 3)
    distance = (got.unsqueeze(2) - motion_kernels(size)).abs().amax((3, 4))
    assert (distance.amin(2) < 1e-6).all()
    # The channels of an image share a direction; images differ.
    assert torch.equal(blurred[:, 0], blurred[:, 2])
    assert not torch.equal(blurred[0], blurred[1])


@pytest.mark.parametrize('size', [4, 7, 10])
def test_kernels_are_averages(size):
    kernels = motion_kernels(size)
    assert kernels.shape == (360, size, size)
    assert (kernels >= 0).all()
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(360))


def test_blur_darkens_the_borders_only():
    blurred = MotionBlur(size=5)(torch.ones(2, 3, 16, 20))
    assert blurred.shape == (2, 3, 16, 20)
    torch.testing.assert_close(blurred[:, :, 4:-4, 4:-4], torch.ones(2, 3, 8, 12))
    assert blurred[:, :, 0].min() < 0.9 or blurred[:, :, :, 0].min() < 0.9


@pytest.mark.parametrize('name', ['noise', 'blur'])
def test_the_generator_decides(name):
    corruption = build_corruption({'type': name})
    images = torch.rand(2, 3, 16, 16)
    original = images.clone()
    state = torch.get_rng_state()
    first, same, other = (corruption(images, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, original)


def test_options_reach_the_corruption():
    assert torch.equal(build_corruption({'type': 'noise', 'probability': 0})(GREY), GREY)
    assert torch.equal(build_corruption({'type': 'blur', 'size': 1})(GREY), GREY)
    noise = build_corruption({'type': 'noise', 'curriculum': [0.1, 0.2]})
    assert (noise(GREY, 1.0) != GREY).float().mean() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'type': 'nose'}, "'nose' is unknown. Did you mean noise"),
        ({'type': 'noise', 'sigm': 0.1}, 'corruption.sigm is unknown. Did you mean sigma'),
        ({'type': 'noise', 'sigma': -1}, 'sigma must be at least 0, got -1'),
        ({'type': 'noise', 'probability': 1.5}, 'probabilities are in'),
        ({'type': 'noise', 'curriculum': [0.7, 0.2]}, 'curriculum is .lowest, highest.'),
        ({'type': 'blur', 'size': 0}, 'kernel sizes are from 1 to 255 pixels'),
        ({'type': 'blur', 'curriculum': [1]}, 'corruption, type blur'),
        ({'sigma': 0.1}, 'a block with a type'),
        ('noise', 'a block with a type'),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(LNCAError, match=message) as caught:
        build_corruption(options)
    assert '\n' not in str(caught.value)
