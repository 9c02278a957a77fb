"""Photographs: round trips of pixels, orientation and profile in every format."""

import io

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, ImageOps

from lnca_data.io import images, photographs
from lnca_data.io.animation import write_animation
from lnca_data.io.images import ImageFile
from lnca_data.io.photographs import ORIENTATION, Photograph, read_photograph, write_photograph
from lnca_utils.errors import LNCAError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes()


def pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def exif(orientation):
    block = Image.Exif()
    block[ORIENTATION] = orientation
    return block


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_what_is_written_is_read(tmp_path, suffix, dtype, channels):
    image = pixels(9, 7, channels, dtype=dtype)
    write_photograph(tmp_path / f'a{suffix}', Photograph(image))
    found = read_photograph(tmp_path / f'a{suffix}').pixels
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize('suffix', ['.jpg', '.webp'])
def test_lossy_formats_stay_near(tmp_path, suffix):
    image = cv2.GaussianBlur(pixels(32, 40, 3, dtype=np.uint16), (0, 0), 4)
    write_photograph(tmp_path / f'a{suffix}', Photograph(image))
    found = read_photograph(tmp_path / f'a{suffix}').pixels
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - image / 257).mean() < 3


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.webp', '.tif'])
def test_orientation_and_profile_stay_in_every_format(tmp_path, suffix, orientation):
    source = tmp_path / f'a{suffix}'
    Image.fromarray(pixels(20, 30, 3)).save(source, exif=exif(orientation), icc_profile=PROFILE)
    photograph = read_photograph(source)
    assert photograph.pixels.shape == (20, 30, 3)
    if suffix in ('.png', '.tif'):
        expected = ImageOps.exif_transpose(Image.open(source))
        np.testing.assert_array_equal(photograph.upright(), np.asarray(expected))
    for other in ('.png', '.jpg', '.webp', '.tif'):
        target = tmp_path / f'b{other}'
        write_photograph(target, photograph)
        with Image.open(target) as written:
            assert written.getexif()[ORIENTATION] == orientation
            assert written.info['icc_profile'] == PROFILE


def test_profile_of_other_colours_is_dropped(tmp_path):
    grey = bytearray(PROFILE)
    grey[photographs.PROFILE_SPACE] = b'GRAY'
    Image.fromarray(pixels(5, 5, 3)).save(tmp_path / 'a.png', icc_profile=bytes(grey))
    assert read_photograph(tmp_path / 'a.png').profile is None


@pytest.mark.parametrize('compression', ['lzw', 'jpeg', 'packbits', 'zlib'])
def test_compressed_tiffs(tmp_path, compression):
    image = cv2.GaussianBlur(pixels(32, 48, 3), (0, 0), 3)
    tifffile.imwrite(tmp_path / 'a.tif', image, compression=compression, photometric='rgb')
    found = read_photograph(tmp_path / 'a.tif').pixels
    assert np.abs(found.astype(int) - image).mean() < (3 if compression == 'jpeg' else 1e-9)


def test_tiffs_of_other_kinds(tmp_path):
    path = tmp_path / 'a.tif'
    image = pixels(6, 8, 3)
    tifffile.imwrite(path, np.moveaxis(image, -1, 0), planarconfig='separate', photometric='rgb')
    np.testing.assert_array_equal(read_photograph(path).pixels, image)
    tifffile.imwrite(path, image[..., 0], photometric='miniswhite')
    np.testing.assert_array_equal(read_photograph(path).pixels[..., 0], 255 - image[..., 0])
    tifffile.imwrite(path, image[..., :2], photometric='minisblack', planarconfig='contig', extrasamples=['unassalpha'])
    np.testing.assert_array_equal(read_photograph(path).pixels, image[..., [0, 0, 0, 1]])
    tifffile.imwrite(path, image.astype(np.float32), photometric='rgb')
    with pytest.raises(LNCAError, match='a.tif: pixels are float32'):
        read_photograph(path)
    tifffile.imwrite(path, pixels(6, 8, 4), photometric='separated')
    with pytest.raises(LNCAError, match='SEPARATED'):
        read_photograph(path)


@pytest.mark.parametrize(
    ('tiff', 'message'),
    [
        (
            {'data': pixels(6, 8, 3, dtype=np.uint16) >> 4, 'bitspersample': 12},
            '12 bits per channel; save it with 8 or 16',
        ),
        ({'data': pixels(2, 6, 8, 3), 'photometric': 'rgb'}, 'holds 2 pictures; save each by itself'),
        ({'data': pixels(6, 8, 3), 'photometric': 'ycbcr'}, 'YCBCR colours'),
    ],
)
def test_tiffs_that_would_look_otherwise_are_refused(tmp_path, tiff, message):
    tifffile.imwrite(tmp_path / 'a.tif', **tiff)
    with pytest.raises(LNCAError, match=f'a.tif: .*{message}'):
        read_photograph(tmp_path / 'a.tif')


def test_a_preview_in_a_tiff_is_no_second_picture(tmp_path):
    image = pixels(6, 8, 3)
    with tifffile.TiffWriter(tmp_path / 'a.tif') as file:
        file.write(image, photometric='rgb')
        file.write(image[::2, ::2], photometric='rgb', subfiletype=1)
    np.testing.assert_array_equal(read_photograph(tmp_path / 'a.tif').pixels, image)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_colours_that_were_multiplied_by_alpha(tmp_path, dtype):
    limit = np.iinfo(dtype).max
    image = pixels(16, 8, 4, dtype=dtype)
    image[0, :, 3], image[1, :, 3] = 0, limit
    share = image[..., 3:] / limit
    stored = np.concatenate([np.rint(image[..., :3] * share), image[..., 3:]], axis=-1).astype(dtype)
    tifffile.imwrite(tmp_path / 'a.tif', stored, photometric='rgb', extrasamples=['assocalpha'])
    found = read_photograph(tmp_path / 'a.tif').pixels
    np.testing.assert_array_equal(found[..., 3], image[..., 3])
    error = np.abs(found[..., :3].astype(float) - image[..., :3]) * share
    assert error[1:].max() <= 1  # as far as the stored numbers tell
    assert (found[0, :, :3] == 0).all()


@pytest.mark.parametrize('block', [b'MM\0*', b'II*\0\xff\xff\xff\xff', b'nonsense', b'Exif\0\0' * 3])
def test_a_damaged_exif_block_is_upright(block):
    photograph = Photograph(pixels(3, 4, 3), block)
    assert photograph.orientation == 1
    np.testing.assert_array_equal(photograph.upright(), photograph.pixels)


def test_a_tiff_whose_orientation_is_none(tmp_path):
    image = pixels(3, 4, 3)
    for count, value in ((1, 9), (2, (6, 6))):
        tags = [(ORIENTATION, 'H', count, value, True)]
        tifffile.imwrite(tmp_path / 'a.tif', image, photometric='rgb', extratags=tags)
        assert read_photograph(tmp_path / 'a.tif').orientation == 1


@pytest.mark.parametrize('suffix', ['.jpg', '.webp'])
def test_long_blocks(tmp_path, suffix):
    """JPEG segments have 64 kB: longer profiles use several; of a longer EXIF block only the orientation is kept."""
    block = exif(6)
    block[0x010E] = 'long ' * 20_000
    block, profile = block.tobytes().removeprefix(photographs.EXIF_PREFIX), PROFILE + bytes(100_000)
    write_photograph(tmp_path / f'a{suffix}', Photograph(pixels(9, 7, 3), block, profile))
    found = read_photograph(tmp_path / f'a{suffix}')
    assert (found.orientation, found.profile) == (6, profile)
    assert suffix == '.jpg' or found.exif == block


def test_a_failed_write_names_the_file(tmp_path):
    broken = PROFILE[: photographs.PROFILE_SPACE.stop] + bytes(500)
    with pytest.raises(OSError, match='/a.png: cannot be written'):
        write_photograph(tmp_path / 'a.png', Photograph(pixels(4, 4, 3), None, broken))
    assert not list(tmp_path.iterdir())


def encoded(suffix):
    buffer = io.BytesIO()
    Image.fromarray(pixels(64, 64, 3)).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.webp', 'a.tif'])
def test_broken_files_are_named(tmp_path, name):
    kind = {'jpg': 'jpeg', 'tif': 'tiff'}.get(name[2:], name[2:])
    for content in (b'', b'not an image', encoded(kind)[:60], encoded(kind)[:2000]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LNCAError, match=name):
            read_photograph(tmp_path / name)
    with pytest.raises(LNCAError, match='missing'):
        read_photograph(tmp_path / f'missing-{name}')


def test_a_small_file_that_claims_a_huge_size_is_refused_before_it_is_decoded(tmp_path):
    Image.new('1', (30_000, 30_000)).save(tmp_path / 'a.png')
    for read in (read_photograph, lambda path: ImageFile(str(path)).read()):
        with pytest.raises(LNCAError, match='30,000×30,000 pixels exceed the limit of'):
            read(tmp_path / 'a.png')


def test_what_a_format_cannot_hold(tmp_path):
    with pytest.raises(LNCAError, match='no transparency'):
        write_photograph(tmp_path / 'a.jpg', Photograph(pixels(4, 4, 4)))
    with pytest.raises(LNCAError, match=r'cannot write \.bmp'):
        write_photograph(tmp_path / 'a.bmp', Photograph(pixels(4, 4, 3)))
    assert not list(tmp_path.iterdir())


def test_a_film_that_was_not_written_whole(tmp_path, monkeypatch):
    class Full:
        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, path, *_):
            self.path = path

        def isOpened(self):  # noqa: N802  OpenCV's name
            return True

        def write(self, frame):
            pass

        def release(self):
            open(self.path, 'w').close()

    monkeypatch.setattr(cv2, 'VideoWriter', Full)
    with pytest.raises(OSError, match='the disk may be full'):
        write_animation(tmp_path / 'a.mp4', [np.zeros((8, 8, 3), np.uint8)], ['0'])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('shape', [(33, 47, 3), (1, 1, 3)])
def test_traces(tmp_path, shape):
    frames = [np.full(shape, value, np.uint8) for value in (0, 120, 250)]
    for suffix in ('.gif', '.mp4', '.png'):
        write_animation(tmp_path / f'a{suffix}', frames, ['0', '1', '2'])
    with Image.open(tmp_path / 'a.gif') as animation:
        assert animation.n_frames == 3
        durations = []
        for index, value in enumerate((0, 120, 250)):
            animation.seek(index)
            durations.append(animation.info['duration'])
            assert abs(np.asarray(animation.convert('RGB')).mean() - value) < 4
        assert durations[2] > durations[0]
    film = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    means = []
    while (read := film.read())[0]:
        means.append(read[1].mean())
    np.testing.assert_allclose(means[:3], [0, 120, 250], atol=6)
    assert len(means) == 3 + 5
    strip = cv2.imread(str(tmp_path / 'a.png'))
    assert strip.shape[1] > 3 * shape[1]


def test_a_tiff_that_names_itself_as_the_next(tmp_path):
    path = tmp_path / 'a.tif'
    tifffile.imwrite(path, pixels(6, 8, 3), photometric='rgb', metadata=None)
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        first, last = page.offset, page.offset + 2 + 12 * len(page.tags)
    data = bytearray(path.read_bytes())
    assert data[last : last + 4] == bytes(4)
    data[last : last + 4] = first.to_bytes(4, 'little')
    path.write_bytes(data)
    with pytest.raises(LNCAError, match='a.tif: '):
        read_photograph(path)


def test_many_pictures_in_a_tiff(tmp_path):
    with tifffile.TiffWriter(tmp_path / 'a.tif') as file:
        for reduced in [0] + [1] * 40:
            file.write(pixels(6, 8, 3), photometric='rgb', subfiletype=reduced)
    with pytest.raises(LNCAError, match='holds more than 16 pictures'):
        read_photograph(tmp_path / 'a.tif')


def test_a_tiff_of_numbers_that_are_no_colours(tmp_path):
    tifffile.imwrite(tmp_path / 'a.tif', pixels(6, 8).astype(np.float32), photometric='miniswhite')
    with pytest.raises(LNCAError, match='pixels are float32'):
        read_photograph(tmp_path / 'a.tif')


def test_a_tiff_that_claims_many_samples(tmp_path, monkeypatch):
    """All samples count, since they take memory."""
    monkeypatch.setattr(images, 'MAX_PIXELS', 100)
    tifffile.imwrite(tmp_path / 'a.tif', pixels(6, 8, 40), photometric='minisblack', planarconfig='contig')
    with pytest.raises(LNCAError, match='exceed the limit of 100'):
        read_photograph(tmp_path / 'a.tif')


def test_an_image_that_cannot_be_encoded_is_named(tmp_path):
    with pytest.raises(OSError, match='large.webp: OpenCV cannot encode'):
        images.write_image(tmp_path / 'large.webp', np.zeros((1, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())
