"""Tiling, flat tiles and near-duplicates, estimation of offsets."""

import cv2
import numpy as np
import PIL.Image
import pytest

from lnca_data.io.images import to_8_bits
from lnca_data.prepare.tiling import NearDuplicates, TilingSpec, estimate_offset, is_flat, perceptual_hash
from lnca_utils.errors import LNCAError


def noise(height, width, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width, 3), dtype, endpoint=True)


def scene(height=160, width=200, seed=0):
    """An image with the spectrum of photographs: 1/f."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).normal(size=(height, width)))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1
    grey = np.fft.irfft2(spectrum / frequency, (height, width))
    return ((grey - grey.min()) / np.ptp(grey) * 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def tiles_by_position(grids):
    return {position: tile for grid in grids for position, tile in grid.tiles()}


def resized_one_by_one(image, height, width, size, side):
    return {
        f'_{side}_y{top:05d}_x{left:05d}': to_8_bits(
            cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_AREA)
        )
        for top in range(0, image.shape[0] - height + 1, height)
        for left in range(0, image.shape[1] - width + 1, width)
    }


def assert_same(tiles, expected):
    assert list(tiles) == list(expected)
    for place, tile in tiles.items():
        assert tile.dtype == np.uint8
        np.testing.assert_array_equal(tile, expected[place], err_msg=place)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize(('side', 'size'), [(32, 32), (64, 32), (96, 32), (100, 32), (33, 32), (50, 7)])
def test_tiles_are_shrunk_as_if_one_by_one(side, size, dtype):
    image = noise(233, 317, dtype)
    tiles = tiles_by_position(TilingSpec(size, (side,)).extract(image))
    assert_same(tiles, resized_one_by_one(image, side, side, size, f'{side}px'))
    assert len(tiles) == (233 // side) * (317 // side)


def test_integer_factors_average():
    image = noise(16, 32)
    (grid,) = TilingSpec(4, (16,)).extract(image)
    np.testing.assert_allclose(grid.image, image.reshape(4, 4, 8, 4, 3).mean((1, 3)), atol=0.51)


def test_16_bits_are_rounded_once():
    image = np.zeros((2, 2, 3), np.uint16)
    image[0] = 2 * 100 * 257 + 256  # averages to 100 × 257 + 128, which rounds to 100
    assert (TilingSpec(1, (2,)).extract(image)[0].image == 100).all()
    image[0] += 2  # 129 rounds up
    assert (TilingSpec(1, (2,)).extract(image)[0].image == 101).all()


def test_several_sides_in_the_order_given():
    image = noise(70, 70)
    grids = TilingSpec(8, (32, 8, 71)).extract(image)
    assert [(grid.height, grid.width, grid.image.shape[0]) for grid in grids] == [
        (32, 32, 16),
        (8, 8, 64),
    ]


@pytest.mark.parametrize(
    ('grid', 'height', 'width', 'side'), [((3, 5), 77, 63, '63x77px'), ((2, 3), 116, 105, '105x116px')]
)
def test_grid(grid, height, width, side):
    image = noise(233, 317)
    tiles = tiles_by_position(TilingSpec(16, (), grid).extract(image))
    used = image[: grid[0] * height, : grid[1] * width]
    assert_same(tiles, resized_one_by_one(used, height, width, 16, side))
    assert len(tiles) == grid[0] * grid[1]


def test_grid_of_square_tiles_and_its_exact_number():
    # The remainder of 9 pixels would fit another column of tiles.
    tiles = tiles_by_position(TilingSpec(8, (), (4, 10)).extract(noise(32, 89)))
    assert len(tiles) == 40
    assert list(tiles)[-1] == '_8px_y00024_x00072'


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_whole(dtype):
    image = noise(50, 30, dtype)
    (grid,) = TilingSpec(32, (), whole=True).extract(image)
    expected = PIL.Image.fromarray(to_8_bits(image)).resize((32, 32), PIL.Image.Resampling.LANCZOS)
    assert_same(tiles_by_position([grid]), {'': np.asarray(expected)})


@pytest.mark.parametrize(
    'tiling',
    [
        TilingSpec(8, (64,)),
        TilingSpec(8, (65,)),
        TilingSpec(32, (), (2, 1)),
        TilingSpec(8, (), (100, 1)),
    ],
)
def test_too_small_an_image_has_no_tiles(tiling):
    assert not tiling.extract(noise(63, 200))
    assert tiling.extract(noise(800, 200))


@pytest.mark.parametrize(
    ('tiling', 'message'),
    [
        (TilingSpec(0, (8,)), '--tile-size 0'),
        (TilingSpec(8, (), (0, 3)), '--grid 0 3'),
        (TilingSpec(8, ()), '--tile-pixels'),
        (TilingSpec(8, (16, 32, 16)), '--tile-pixels 16 32 16'),
        (TilingSpec(32, (64, 16)), '--tile-pixels 16: must be at least --tile-size, which is 32'),
    ],
)
def test_mistakes_are_named(tiling, message):
    with pytest.raises(LNCAError, match=message) as caught:
        tiling.check()
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'tiling', [TilingSpec(8, (8,)), TilingSpec(8, (16, 8)), TilingSpec(32, (), (1, 1)), TilingSpec(32, (), None, True)]
)
def test_what_makes_sense_passes(tiling):
    tiling.check()


def test_flat():
    tile = np.full((8, 8, 3), (10, 100, 200), np.uint8)
    assert is_flat(tile, 4.0)
    assert not is_flat(tile, 0.0)
    tile[::2, :, 2] += 10  # a standard deviation of 5, in one channel
    assert not is_flat(tile, 5.0)
    assert is_flat(tile, 5.1)


def bits(one, other):
    return (perceptual_hash(one) ^ perceptual_hash(other)).bit_count()


def test_perceptual_hash():
    tiles = [scene(32, 32, seed) for seed in range(20)]
    for seed, tile in enumerate(tiles):
        assert 0 <= perceptual_hash(tile) < 2**64
        brighter = (tile * 0.8 + 20).astype(np.uint8)
        grainy = (tile + np.random.default_rng(seed).normal(0, 2, tile.shape)).clip(0, 255).astype(np.uint8)
        assert max(bits(tile, brighter), bits(tile, grainy)) <= 6
    assert min(bits(tile, other) for index, tile in enumerate(tiles) for other in tiles[:index]) > 10


def test_perceptual_hash_tells_gradients_apart():
    down, right = np.mgrid[:32, :32]
    grain = np.random.default_rng(0).normal(0, 1, (32, 32))
    tiles = [
        (gradient + grain).clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
        for gradient in (6 * down, 6 * right, 3 * (down + right))
    ]
    assert min(bits(tile, other) for index, tile in enumerate(tiles) for other in tiles[:index]) > 3


def test_perceptual_hash_is_of_the_luminance_of_rgb():
    tile = noise(32, 32)
    grey = PIL.Image.fromarray(tile).convert('L')
    assert bits(tile, np.asarray(grey)[..., None].repeat(3, axis=2)) <= 2
    assert bits(tile, np.ascontiguousarray(tile[..., ::-1])) > 2


def test_near_duplicates():
    duplicates = NearDuplicates(3)
    assert not duplicates.repeats(0)
    assert duplicates.repeats(0b111)
    assert not duplicates.repeats(0b1111)
    # Only hashes that are no near-duplicates are remembered.
    assert not duplicates.repeats(0b111000111)
    assert duplicates.repeats(0b1111111)
    assert not duplicates.repeats(2**64 - 1)
    assert duplicates.repeats(2**64 - 1 - 2**63)


@pytest.mark.parametrize('threshold', [0, 3])
def test_near_duplicates_beyond_the_first_block(threshold):
    values = [int(value) for value in np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64)]
    duplicates = NearDuplicates(threshold)
    assert not any(duplicates.repeats(value) for value in values)
    assert all(duplicates.repeats(value ^ threshold) for value in values)
    assert not duplicates.repeats(values[0] ^ 0b11111)


def test_thresholds_at_their_ends():
    exact, none = NearDuplicates(0), NearDuplicates(-1)
    assert [exact.repeats(value) for value in (5, 5, 4, 0)] == [False, True, False, False]
    assert [none.repeats(value) for value in (5, 5, 4, 0)] == [False] * 4


@pytest.mark.parametrize('off', [(0, 0), (1, 0), (0, -1), (3, -5), (-8, 8), (8, 0)])
def test_shift_is_found(off):
    whole = scene(200, 240)
    down, right = off
    gt, lq = whole[20:180, 20:220], whole[20 - down : 180 - down, 20 - right : 220 - right]
    assert estimate_offset(gt, lq) == off
    assert estimate_offset(lq, gt) == (-down, -right)
    blurred = cv2.GaussianBlur(lq, (0, 0), 1.5)
    assert estimate_offset(gt, blurred) == off
    darker = (lq * 0.4 + np.random.default_rng(0).normal(0, 5, lq.shape)).clip(0, 255).astype(np.uint8)
    assert estimate_offset(gt, darker) == off


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('kernel', [np.ones((1, 15)), np.ones((15, 1)), np.eye(15)], ids=['across', 'down', 'diagonal'])
def test_long_blur_is_no_shift(kernel, seed):
    image = scene(200, 240, seed)
    blurred = cv2.filter2D(image, -1, kernel / 15)
    assert estimate_offset(image[20:180, 20:220], blurred[20:180, 20:220]) == (0, 0)


@pytest.mark.parametrize('seed', range(4))
def test_noise_is_no_shift(seed):
    image = scene(seed=seed)
    noisy = (image + np.random.default_rng(seed).normal(0, 100, image.shape)).clip(0, 255).astype(np.uint8)
    assert estimate_offset(image, noisy) == (0, 0)


def test_flat_images_are_not_shifted():
    flat, image = np.full((160, 200, 3), 77, np.uint8), scene()
    assert estimate_offset(flat, flat) == estimate_offset(flat, image) == estimate_offset(image, flat) == (0, 0)
    nearly_black = (np.random.default_rng(0).random((48, 48, 3)) < 0.02).astype(np.uint8)
    assert estimate_offset(scene(48, 48), nearly_black) == (0, 0)


@pytest.mark.parametrize('size', [(1, 1), (3, 40), (4, 4), (7, 5), (16, 16)])
def test_tiny_images(size):
    image = noise(*size)
    assert estimate_offset(image, image) == (0, 0)


def test_shift_of_small_images_is_chance():
    image = scene(80, 80)
    assert estimate_offset(image[4:68, 4:68], image[3:67, 6:70]) == (1, -2)
    assert estimate_offset(image[4:67, 4:68], image[3:66, 6:70]) == (0, 0)
