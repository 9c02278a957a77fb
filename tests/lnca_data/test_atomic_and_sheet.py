"""Atomic files and folders; contact sheets."""

import errno
import os
import stat

import cv2
import numpy as np
import pytest

from lnca_data.io.contact_sheet import MARGIN, TITLE_HEIGHT, write_contact_sheet
from lnca_utils.atomic import atomic_dir, atomic_file
from lnca_utils.errors import DISK_FULL


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_file_is_there_when_it_is_complete(tmp_path):
    path = tmp_path / 'some.txt'
    path.write_text('old')
    with atomic_file(path) as temporary:
        temporary.write_text('new')
        assert temporary.parent == tmp_path
        assert temporary.suffix == '.txt'
        assert path.read_text() == 'old'
    assert path.read_text() == 'new'
    assert names(tmp_path) == ['some.txt']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(tmp_path, error):
    (tmp_path / 'some.txt').write_text('old')
    for name in ('some.txt', 'other.txt'):
        with pytest.raises(error), atomic_file(tmp_path / name) as temporary:
            temporary.write_text('half')
            raise error
    assert names(tmp_path) == ['some.txt']
    assert (tmp_path / 'some.txt').read_text() == 'old'


def test_failure_before_anything_is_written(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_file(str(tmp_path / 'some.txt')):
        raise ZeroDivisionError
    assert not names(tmp_path)


def old_folder(path):
    (path / 'inner').mkdir(parents=True)
    (path / 'inner' / 'old').write_text('old')
    return path


def test_folder_is_there_when_it_is_complete(tmp_path):
    path = old_folder(tmp_path / 'some')
    with atomic_dir(path) as temporary:
        assert not names(temporary)
        (temporary / 'new').write_text('new')
        assert names(path) == ['inner']
    assert names(path) == ['new']
    assert names(tmp_path) == ['some']


def test_new_folder_with_its_parents(tmp_path):
    path = tmp_path / 'more' / 'some'
    with atomic_dir(str(path)) as temporary:
        (temporary / 'new').write_text('new')
        assert not path.exists()
    assert names(path) == ['new']
    assert names(path.parent) == ['some']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_folder(tmp_path, error):
    path = old_folder(tmp_path / 'some')
    for name in ('some', 'other'):
        with pytest.raises(error), atomic_dir(tmp_path / name) as temporary:
            (temporary / 'half').write_text('half')
            raise error
    assert names(tmp_path) == ['some']
    assert (path / 'inner' / 'old').read_text() == 'old'


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    path = old_folder(tmp_path / 'some')
    old_folder(tmp_path / '.some.partial')
    old_folder(tmp_path / '.some.previous')
    with atomic_dir(path) as temporary:
        assert not names(temporary)
        (temporary / 'new').write_text('new')
    assert names(tmp_path) == ['some']
    assert names(path) == ['new']


def test_killed_between_the_renames(tmp_path):
    old_folder(tmp_path / '.some.previous')
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / 'some'):
        raise ZeroDivisionError
    assert names(tmp_path) == ['some']
    assert names(tmp_path / 'some') == ['inner']


def test_folder_in_place_of_a_file(tmp_path):
    (tmp_path / 'some').write_text('old')
    with atomic_dir(tmp_path / 'some') as temporary:
        (temporary / 'new').write_text('new')
    assert names(tmp_path) == ['some']


@pytest.mark.parametrize(
    ('count', 'groups', 'rows'),
    [
        (1, 1, 1),
        (3, 1, 3),
        (4, 1, 4),
        (8, 2, 4),
        pytest.param(5, 2, 4),
        pytest.param(11, 3, 4),
    ],
)
def test_sheet(tmp_path, count, groups, rows):
    """Corrupted tiles are left of clean ones, in four rows and as many columns as needed."""
    clean = [np.full((64, 32, 3), (255, 20 * index, 0), np.uint8) for index in range(count)]
    path = tmp_path / 'sheet.png'
    write_contact_sheet(path, {'corrupted': [255 - image for image in clean], 'clean': clean}, rows=4)
    assert names(tmp_path) == ['sheet.png']
    sheet = cv2.imread(str(path))[..., ::-1]
    height, width = 128 + MARGIN, 64 + MARGIN
    assert sheet.shape == (TITLE_HEIGHT + rows * height, 2 * groups * width, 3)
    for index, image in enumerate(clean):
        group, row = divmod(index, 4)
        top, left = TITLE_HEIGHT + row * height, 2 * group * width
        for column, want in ((0, 255 - image), (1, image)):
            x = left + column * width
            assert (sheet[top : top + 128, x : x + 64] == want[0, 0]).all()
            assert (sheet[top + 128 : top + height, x : x + 64] == 255).all()
    assert (sheet[:TITLE_HEIGHT, :width] < 128).any()


def test_sheet_of_large_tiles_is_not_enlarged(tmp_path):
    write_contact_sheet(tmp_path / 'sheet.png', {'some': [np.zeros((200, 150, 3), np.uint8)]})
    assert cv2.imread(str(tmp_path / 'sheet.png')).shape == (TITLE_HEIGHT + 200 + MARGIN, 150 + MARGIN, 3)


def test_sheet_replaces_whole_files_only(tmp_path, little_room):
    path = tmp_path / 'sheet.png'
    path.write_text('old')
    with little_room(10), pytest.raises(OSError) as error:
        write_contact_sheet(path, {'some': [np.zeros((8, 8, 3), np.uint8)]})
    assert error.value.filename == str(path)
    assert error.value.errno in DISK_FULL
    assert names(tmp_path) == ['sheet.png']
    assert path.read_text() == 'old'


def test_what_is_renamed_is_flushed_before_and_its_name_after(tmp_path, monkeypatch):
    flushed = []

    def fsync(descriptor):
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / 'a.txt').exists()))

    monkeypatch.setattr(os, 'fsync', fsync)
    with atomic_file(tmp_path / 'a.txt') as temporary:
        temporary.write_text('new')
    assert flushed == [(False, False), (True, True)]


def test_a_file_is_written_where_folders_cannot_be_flushed(tmp_path, monkeypatch):
    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, 'fsync', fsync)
    with atomic_file(tmp_path / 'a.txt') as temporary:
        temporary.write_text('new')
    assert (tmp_path / 'a.txt').read_text() == 'new'
