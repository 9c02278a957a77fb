"""Writing, verification and reading of BasicSR-format LMDBs, including damaged ones."""

import multiprocessing
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from unittest import mock

import cv2
import lmdb
import numpy as np
import pytest
from torch.utils.data import DataLoader

from lnca_data.io import lmdb_store, lmdb_verification, lmdb_writer
from lnca_data.io.lmdb_store import TileStore, check_pair, image_sizes
from lnca_data.io.lmdb_verification import META_INFO, file_states
from lnca_data.io.lmdb_writer import LmdbWriter, encode_png, write_lmdb
from lnca_data.tile_dataset import TileDataset
from lnca_utils.errors import LNCAError


def images_of(count, size=(8, 10)):
    pixels = np.random.default_rng(count).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    # In reverse order; reading sorts them.
    return [(f'tile_{index:03d}', pixels[index]) for index in reversed(range(count))]


@pytest.fixture
def images():
    return images_of(12)


@pytest.fixture
def path(tmp_path, images):
    path = tmp_path / 'some.lmdb'
    write_lmdb(path, images)
    return path


def refusal(call, *arguments, kind=LNCAError):
    with pytest.raises(kind) as caught:
        call(*arguments)
    message = str(caught.value)
    assert '\n' not in message
    return message


def read_all(store):
    return [(key, store[key]) for key in store.keys]


def assert_same(got, images):
    assert [key for key, _ in got] == sorted(key for key, _ in images)
    for key, image in got:
        np.testing.assert_array_equal(image, dict(images)[key], err_msg=key)


def test_round_trip(path, images):
    store = TileStore(path)
    assert len(store) == 12
    assert_same(read_all(store), images)
    assert image_sizes(path) == {(8, 10)}


def test_keys(path, images):
    store = TileStore(path)
    assert store.keys == sorted(key for key, _ in images)
    assert all(type(key) is str for key in store.keys)
    assert store.key_array.dtype == 'S8'
    assert store.key_array.tolist() == [key.encode() for key in store.keys]


def test_count_is_returned_and_images_may_be_an_iterator(tmp_path, images):
    assert write_lmdb(tmp_path / 'some.lmdb', iter(images)) == 12


def test_format_is_that_of_basicsr(path, images):
    """Keys have no suffix, OpenCV reads the PNGs as BGR, and meta_info.txt has one line per image."""
    lines = (path / 'meta_info.txt').read_text().splitlines()
    assert lines == [f'{key}.png (8,10,3) 0' for key, _ in images]
    key, image = images[0]
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        data = transaction.get(key.encode())
    assert data.startswith(b'\x89PNG')
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), image[..., ::-1])


@pytest.mark.parametrize('batch', [7, 1000])
def test_map_grows(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(lmdb_writer, 'FIRST_MAP_SIZE', 1 << 16)
    monkeypatch.setattr(lmdb_writer, 'BATCH', batch)
    images = images_of(60, (40, 40))
    path = tmp_path / 'some.lmdb'
    assert write_lmdb(path, images) == 60
    assert (path / 'data.mdb').stat().st_size > 4 << 16
    assert_same(read_all(TileStore(path)), images)


@pytest.mark.parametrize('room', [1000, 1 << 15, 1 << 16])
def test_full_disk_is_named(tmp_path, little_room, room):
    with little_room(room):
        message = refusal(write_lmdb, tmp_path / 'some.lmdb', images_of(60, (40, 40)), kind=OSError)
    assert 'some.lmdb' in message
    assert 'the disk may be full' in message


def committed(path, copy):
    """Return the keys committed so far to an LMDB that is being written."""
    shutil.copytree(path, copy)
    with lmdb.open(str(copy), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return [key.decode() for key, _ in transaction.cursor()]


def test_batches(tmp_path, monkeypatch):
    """A batch is committed when it has many images, or large ones."""
    images = [(key, encode_png(image), image.shape) for key, image in images_of(12)]
    monkeypatch.setattr(lmdb_writer, 'BATCH_BYTES', 4 * len(images[0][1]))
    writer = LmdbWriter(tmp_path / 'some.lmdb')
    counts = []
    for number, image in enumerate(images):
        writer.put(*image)
        counts.append(len(committed(writer.path, tmp_path / f'copy_{number}')))
    assert counts == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]

    monkeypatch.setattr(lmdb_writer, 'BATCH', 3)
    writer.put('large', bytes(lmdb_writer.BATCH_BYTES), (1, 1, 3))
    for key in 'abcd':
        writer.put(key, b'small', (1, 1, 3))
    assert len(committed(writer.path, tmp_path / 'copy')) == 12 + 1 + 3
    writer.close()
    assert len(TileStore(writer.path)) == 12 + 1 + 4


def open_files():
    return len(os.listdir('/proc/self/fd'))


def test_writing_given_up(tmp_path):
    """Nothing else is written, and no file stays open."""
    before = open_files()
    writer = LmdbWriter(tmp_path / 'some.lmdb')
    for key, image in images_of(3):
        writer.put(key, encode_png(image), image.shape)
    writer.close(commit=False)
    assert open_files() == before
    assert not committed(writer.path, tmp_path / 'copy')
    shutil.rmtree(writer.path)
    write_lmdb(writer.path, images_of(3))
    assert_same(read_all(TileStore(writer.path)), images_of(3))


def test_images_that_fail(tmp_path):
    def images():
        yield from images_of(3)
        raise ZeroDivisionError('no more')

    before = open_files()
    with pytest.raises(ZeroDivisionError) as caught:
        write_lmdb(tmp_path / 'some.lmdb', images())
    assert open_files() == before
    assert str(caught.value) == 'no more'  # its traceback referenced the writer until here
    refusal(TileStore, tmp_path / 'some.lmdb')


def test_nothing_is_written_over(path, images):
    assert 'some.lmdb' in refusal(write_lmdb, path, images_of(3), kind=FileExistsError)
    assert_same(read_all(TileStore(path)), images)


def test_missing(tmp_path):
    assert 'there is no such LMDB' in refusal(TileStore, tmp_path / 'none.lmdb')


@pytest.mark.parametrize('name', ['data.mdb', 'meta_info.txt'])
def test_missing_file(path, name):
    (path / name).unlink()
    assert f'{name} is missing' in refusal(TileStore, path)


@pytest.fixture
def scans(monkeypatch):
    """The number of images that each verification locates."""
    counts, run = [], lmdb_verification.subprocess.run

    def count(*arguments, **keywords):
        counts.append(len(keywords['input'].split()))
        return run(*arguments, **keywords)

    monkeypatch.setattr(lmdb_verification.subprocess, 'run', count)
    lmdb_store._verified_keys.cache_clear()
    return counts


def open_anew(path, **keywords):
    """Open an LMDB as another process would."""
    lmdb_store._verified_keys.cache_clear()
    TileStore.close_all()
    return TileStore(path, **keywords)


def test_verified_in_full_once_per_machine(path, images, scans, cache_home):
    TileStore(path)
    TileStore(path)
    assert scans == [12]
    assert_same(read_all(open_anew(path)), images)
    assert scans == [12, 0]
    assert (cache_home / 'lnca').stat().st_mode & 0o777 == 0o700
    open_anew(path, use_cache=False)
    assert scans == [12, 0, 12]
    path.rename(path.with_name('other.lmdb'))
    open_anew(path.with_name('other.lmdb'))
    assert scans == [12, 0, 12, 0]


@pytest.mark.parametrize('name', ['data.mdb', META_INFO])
def test_verified_again_when_a_file_changes(path, scans, name):
    TileStore(path)
    (path / name).touch()
    open_anew(path)
    assert scans == [12, 12]
    content = (path / name).read_bytes()
    (path / name).unlink()
    (path / name).write_bytes(content)
    open_anew(path)
    assert scans == [12, 12, 12]


def test_a_failed_verification_is_not_remembered(path, scans, cache_home):
    os.truncate(path / 'data.mdb', 3 * (path / 'data.mdb').stat().st_size // 4)
    for _ in range(2):
        assert 'truncated' in refusal(open_anew, path)
    assert scans == [12, 12]
    assert not list(cache_home.iterdir())


@pytest.mark.parametrize('damage', ['truncated', 'one more key'])
def test_what_is_verified_is_still_checked_for_size_and_entries(path, scans, damage):
    TileStore(path)
    if damage == 'truncated':
        os.truncate(path / 'data.mdb', 3 * (path / 'data.mdb').stat().st_size // 4)
    else:
        with open(path / META_INFO, 'a') as file:
            file.write('one_more.png (8,10,3) 1\n')
    lmdb_verification._marker(file_states(path)).touch()
    message = refusal(open_anew, path)
    assert 'truncated' in message or 'lists 13 images, data.mdb contains 12' in message
    assert scans == [12, 0]


@pytest.mark.parametrize('reason', ['a file in the place of the folder', 'no home', 'no permission'])
def test_verified_each_time_without_a_cache_folder(path, scans, monkeypatch, cache_home, reason):
    if reason == 'no home':
        monkeypatch.delenv('XDG_CACHE_HOME')
        monkeypatch.setattr(lmdb_verification.Path, 'home', mock.Mock(side_effect=RuntimeError))
    elif reason == 'no permission':
        denied = mock.Mock(side_effect=PermissionError)
        monkeypatch.setattr(lmdb_verification.Path, 'exists', denied)
        monkeypatch.setattr(lmdb_verification.Path, 'touch', denied)
    else:
        (cache_home / 'lnca').touch()
    TileStore(path)
    open_anew(path)
    assert scans == [12, 12]


WITHOUT_FORK = """
import os, random, sys
import lmdb, numpy, torch, lnca_arch
del os.register_at_fork
from lnca_data.io.lmdb_store import TileStore
print(len(TileStore(sys.argv[1])))
"""


def test_a_system_without_fork(path):
    """Windows has no os.register_at_fork."""
    child = subprocess.run([sys.executable, '-c', WITHOUT_FORK, path], capture_output=True, text=True, timeout=120)
    assert child.stdout.strip() == '12', child.stderr


def test_empty(tmp_path):
    assert write_lmdb(tmp_path / 'some.lmdb', []) == 0
    assert 'the LMDB is empty' in refusal(TileStore, tmp_path / 'some.lmdb')


@pytest.mark.parametrize(
    ('kept', 'message'), [(0.9, 'truncated'), (0.5, 'truncated'), (1, 'is damaged'), (0, 'is damaged')]
)
def test_truncated(tmp_path, kept, message):
    path = tmp_path / 'some.lmdb'
    write_lmdb(path, images_of(40, (40, 40)))
    data = path / 'data.mdb'
    os.truncate(data, kept if isinstance(kept, int) else int(kept * data.stat().st_size))
    got = refusal(TileStore, path)
    assert message in got
    assert str(path) in got


def test_not_an_lmdb(path):
    (path / 'data.mdb').write_bytes(b'no' * 10_000)
    assert 'is damaged' in refusal(TileStore, path)


def test_other_count_in_meta_info(path):
    with open(path / 'meta_info.txt', 'a') as file:
        file.write('one_more.png (8,10,3) 1\n')
    assert 'meta_info.txt lists 13 images, data.mdb contains 12' in refusal(TileStore, path)


def test_other_key_in_meta_info(path):
    lines = (path / META_INFO).read_text()
    (path / META_INFO).write_text(lines.replace('tile_003', 'tile_3'))
    assert "data.mdb has no 'tile_3', which meta_info.txt lists" in refusal(TileStore, path)


@pytest.mark.parametrize(('share', 'message'), [(2, 'data.mdb is damaged, it cannot be read'), (0.3, 'images overlap')])
def test_an_image_of_another_length(tmp_path, share, message):
    """It extends beyond the file, which kills a process that reads it, or into other images."""
    path = tmp_path / 'some.lmdb'
    write_lmdb(path, images_of(40, (36, 36)))  # a page each, nearly full
    data = bytearray((path / 'data.mdb').read_bytes())
    place = data.index(b'tile_039') - 8  # the length, flags, the length of the key, the key
    data[place : place + 4] = struct.pack('<I', int(share * len(data)))
    (path / 'data.mdb').write_bytes(data)
    assert message in refusal(TileStore, path)


def test_a_key_twice(tmp_path, images):
    write_lmdb(tmp_path / 'some.lmdb', [*images, images[0]])
    assert f'lists {images[0][0]} twice' in refusal(TileStore, tmp_path / 'some.lmdb')


def test_a_key_twice_in_the_place_of_another(path):
    lines = (path / META_INFO).read_text().splitlines()
    (path / META_INFO).write_text('\n'.join([lines[1], *lines[1:]]))
    assert f'lists {lines[1].partition(".")[0]} twice' in refusal(TileStore, path)


def test_a_long_key_among_many_short_ones(path):
    """An array of these keys would take 350 MB."""
    lines = [f'{number}.png (4,4,3) 0' for number in range(700_000)]
    (path / META_INFO).write_text('\n'.join([f'{"x" * 500}.png (4,4,3) 0', *lines]))
    assert 'lists a key of 500 letters among much shorter ones' in refusal(TileStore, path)


def test_unreadable_image(path, images):
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b'tile_003', b'\x89PNG, but nothing comes')
        transaction.put(b'tile_004', b'')
    store = TileStore(path)
    for key in ('tile_003', 'tile_004', 'unknown'):
        message = refusal(store.__getitem__, key)
        assert f'{key} is not a readable image' in message
        assert str(path) in message
    np.testing.assert_array_equal(store['tile_005'], dict(images)['tile_005'])


def test_damage_within(tmp_path):
    path = tmp_path / 'some.lmdb'
    write_lmdb(path, images_of(40, (40, 40)))
    size = (path / 'data.mdb').stat().st_size
    with open(path / 'data.mdb', 'r+b') as file:
        file.seek(8192)
        file.write(bytes(size - 8192))
    assert 'some.lmdb' in refusal(lambda: read_all(TileStore(path)))


def test_meta_info_is_not_text(path):
    (path / 'meta_info.txt').write_bytes(b'\xff\xfe\x00\x80')
    assert 'meta_info.txt' in refusal(TileStore, path)


def test_pair(path, tmp_path, images):
    same, other = tmp_path / 'same.lmdb', tmp_path / 'other.lmdb'
    write_lmdb(same, images)
    write_lmdb(other, [*images[1:], ('stray', images[0][1])])
    check_pair(path, same)
    check_pair(path, path)
    message = refusal(check_pair, path, other)
    assert '2 keys are in one only' in message
    assert 'stray' in message
    assert 'there is no such LMDB' in refusal(check_pair, path, tmp_path / 'none.lmdb')


def test_opened_twice(path, images, monkeypatch):
    first, second = TileStore(path), TileStore(str(path))
    assert_same(read_all(first), images)
    assert_same(read_all(second), images)
    # Also by another path while it is open.
    monkeypatch.chdir(path.parent)
    assert_same(read_all(TileStore('some.lmdb')), images)
    assert_same(read_all(first), images)


def read_in_workers(path):
    dataset = TileDataset({'name': 'some', 'phase': 'train', 'dataroot_gt': str(path)})
    loader = DataLoader(dataset, batch_size=3, num_workers=2, multiprocessing_context='fork')
    return [
        (key, (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        for batch in loader
        for key, image in zip(batch['gt_path'], batch['gt'], strict=True)
    ]


def test_forked_workers(path, images):
    assert_same(read_in_workers(path), images)
    assert_same(read_in_workers(path), images)


def test_forked_workers_after_the_parent_has_read(path, images):
    assert_same(read_all(TileStore(path)), images)
    assert_same(read_in_workers(path), images)


def test_new_store_in_a_forked_child(path, images):
    assert_same(read_all(TileStore(path)), images)
    context = multiprocessing.get_context('fork')
    child = context.Process(target=TileStore, args=(path,))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_packed_again_in_the_same_process(path):
    read_all(TileStore(path))
    shutil.rmtree(path)
    images = images_of(3)
    write_lmdb(path, images)
    assert_same(read_all(TileStore(path)), images)


def put(path, key, value):
    TileStore.close_all()
    with lmdb.open(str(path)) as environment, environment.begin(write=True) as transaction:
        transaction.put(key.encode(), value)


def test_meta_info_lies_about_sizes(path):
    key = TileStore(path).keys[0]
    lines = (path / META_INFO).read_text()
    (path / META_INFO).write_text(re.sub(r'\(\d+,\d+,', '(7,9,', lines))
    with pytest.raises(LNCAError, match=f'{key} is .*, a size not listed in meta_info.txt; pack the dataset again'):
        TileStore(path)[key]
    (path / META_INFO).write_text(re.sub(r'\(.*\)', '', lines))
    with pytest.raises(LNCAError, match='meta_info.txt lists no sizes'):
        TileStore(path)[key]


def test_a_small_png_of_a_huge_image_is_not_decoded(path):
    """The header claims 10 gigapixels, which would take 30 GB."""
    key = TileStore(path).keys[0]
    header = struct.pack('>II5B', 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b'IHDR' + header
    png = b'\x89PNG\r\n\x1a\n' + struct.pack('>I', len(header)) + chunk + struct.pack('>I', zlib.crc32(chunk))
    put(path, key, png)
    with pytest.raises(LNCAError, match=f'{key} is 100000×100000'):
        TileStore(path)[key]


@pytest.mark.parametrize('name', ['', 'x' * 600])
def test_keys_of_no_letter_or_too_many(path, name):
    lines = (path / META_INFO).read_text().splitlines()
    (path / META_INFO).write_text('\n'.join([f'{name}.png (4,4,3) 0', *lines[1:]]))
    with pytest.raises(LNCAError, match='lists an empty key, or one above 511 letters'):
        TileStore(path)
