"""BasicSR-format LMDBs: a folder ``NAME.lmdb`` with ``data.mdb`` and ``meta_info.txt``, PNG images by key."""

import contextlib
import errno
import functools
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import cv2
import lmdb
import numpy as np

from lnca_utils.errors import DataError

META_INFO = 'meta_info.txt'
PACK = 'pack the dataset with datasets/prepare.py'
# A tile of 32×32 fills one page of the LMDB, compressed or not, and is encoded and decoded in half the time if not.
PNG_COMPRESSION = 0
ENCODING = [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
BATCH = 1000
BATCH_BYTES = 16 << 20
# An image takes whole pages of its own, and about this much to be found.
PAGE = 4096
ENTRY = 100
LONGEST_KEY = 511  # bytes, of LMDB
MOST_KEY_BYTES, LONGEST_TO_MEAN = 64 << 20, 4  # of an array of keys that are not about as long
PNG_SIGNATURE, PNG_HEADER = b'\x89PNG\r\n\x1a\n', 24  # up to width and height
FIRST_MAP_SIZE = 64 << 20
# LMDB believes what a file says of itself, so that a damaged one kills the process that reads it. Another process finds
# every image first, just as a reader does, and prints what it does not like. The last byte of an image tells whether it
# ends in the file: behind that it maps room for the longest of images, which could end in the memory of something else
# otherwise. With lmdb's readahead, as getting an image takes its pages from the disk.
FIND_EVERY_IMAGE = """
import os
import sys

import lmdb

path, keys = sys.argv[1], sys.stdin.buffer.read().split(b'\\n')
size = os.stat(os.path.join(path, 'data.mdb')).st_size
try:
    environment = lmdb.open(path, size + (1 << 32), readonly=True, lock=False, create=False)
    entries, needed = environment.stat()['entries'], (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
    if size < needed:
        sys.exit(print(f'data.mdb is truncated, {size} of {needed} bytes'))
    if entries != len(keys):
        sys.exit(print(f'meta_info.txt lists {len(keys)} images, data.mdb holds {entries}'))
    total = 0
    with environment.begin(buffers=True) as transaction:
        for key in keys:
            image = transaction.get(key)
            if image is None:
                sys.exit(print(f'data.mdb has no {key.decode()!r}, which meta_info.txt lists'))
            image[-1:].tobytes()
            total += len(image)
    if total > size:
        print('the LMDB is damaged, images overlap')
except lmdb.Error as error:
    print(f'the LMDB is damaged ({error})')
"""
SECONDS, BYTES_A_SECOND = 60, 5e6  # that it may take, and reads at least: a damaged one may never end


def encode_png(image: np.ndarray) -> bytes:
    """A ``(H, W, 3)`` uint8 RGB image as a PNG file."""
    encoded, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ENCODING)
    if not encoded:
        raise RuntimeError('OpenCV cannot encode PNGs')
    return png.tobytes()


class LmdbWriter:
    """Writes PNG files into a new LMDB.

    Args:
        path: a folder that does not exist, its name ending in ``.lmdb``.

    Raises:
        OSError: it cannot be written, here or later.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True)
        # Nothing is read before all is written and flushed: no need to wait for the disk each time.
        try:
            self._environment = lmdb.open(str(self.path), map_size=FIRST_MAP_SIZE, sync=False)
        except lmdb.Error as error:
            raise _write_error(self.path, error) from None
        self._meta_info = open(self.path / META_INFO, 'w', encoding='ascii')  # noqa: SIM115  closed by close()
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self.bytes = 0  # about what the images put so far take on the disk

    def put(self, key: str, png: bytes, shape: tuple[int, int, int]) -> None:
        """Add an image.

        Args:
            key: ASCII without dots.
            png: the file.
            shape: height, width and channels.
        """
        height, width, channels = shape
        self._meta_info.write(f'{key}.png ({height},{width},{channels}) {PNG_COMPRESSION}\n')
        self._batch.append((key.encode('ascii'), png))
        self._batch_bytes += len(png)
        self.bytes += -(-len(png) // PAGE) * PAGE + ENTRY
        if len(self._batch) == BATCH or self._batch_bytes >= BATCH_BYTES:
            self._commit()

    def close(self, is_whole: bool = True) -> None:
        """Write what is left and flush it to disk, unless the writing is given up."""
        try:
            if is_whole:
                self._commit()
                self._environment.sync(True)
                self._meta_info.flush()
                os.fsync(self._meta_info.fileno())
        except lmdb.Error as error:
            raise _write_error(self.path, error) from None
        finally:
            self._environment.close()
            with contextlib.suppress(OSError):  # that there is no room was said already
                self._meta_info.close()

    def _commit(self) -> None:
        """Write the batch, doubling the map until it fits."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._batch:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()['map_size'])
            except lmdb.Error as error:
                raise _write_error(self.path, error) from None
        self._batch = []
        self._batch_bytes = 0


def _write_error(path: Path, error: lmdb.Error) -> OSError:
    # lmdb says "Input/output error" of a full disk, too.
    return OSError(errno.EIO, f'{error}; the disk may be full', str(path))


def write_lmdb(path: Path | str, images: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write images into a new LMDB.

    Args:
        path: a folder that does not exist, its name ending in ``.lmdb``.
        images: pairs of a key (ASCII without dots) and a ``(H, W, 3)`` uint8 RGB image.

    Returns:
        How many images were written.

    Raises:
        OSError: it cannot be written.
    """
    writer, count = LmdbWriter(path), 0
    try:
        for key, image in images:
            writer.put(key, encode_png(image), image.shape)
            count += 1
    except BaseException:
        writer.close(is_whole=False)
        raise
    writer.close()
    return count


class TileStore:
    """Read access to a BasicSR-format LMDB.

    The LMDB is opened when the first image is read and once a process, whose stores share it: lmdb refuses to open one
    twice. One that was packed anew since is opened anew.

    Args:
        path: the ``.lmdb`` folder.

    Raises:
        DataError: the LMDB is missing, empty, truncated or unreadable.
    """

    _open: ClassVar[dict[str, tuple[lmdb.Environment, int]]] = {}  # real path → environment, inode of its data

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        states = (file.stat() for file in _files(Path(path)))
        self.key_array = _checked_keys(self.path, *((it.st_ino, it.st_size, it.st_mtime_ns) for it in states))

    @property
    def keys(self) -> list[str]:
        """All keys, in order. ``key_array`` holds them as bytes in a fifth of the memory."""
        return [key.decode('ascii') for key in self.key_array]

    @functools.cached_property
    def sizes(self) -> set[tuple[int, int]]:
        """The heights and widths that occur; see :func:`image_sizes`."""
        return image_sizes(self.path)

    def __len__(self) -> int:
        return len(self.key_array)

    def __getitem__(self, key: str) -> np.ndarray:
        """The image of a key: ``(H, W, 3)`` uint8 RGB.

        Raises:
            DataError: no such key, or not an image.
        """
        try:
            with _environment(self.path).begin() as transaction:
                data = transaction.get(key.encode('ascii'))
        except lmdb.Error as error:
            raise DataError(f'{self.path}: cannot read {key!r} ({error}); pack the dataset again') from None
        # Before it is decoded, which can take any amount of memory; what is no PNG is looked at afterwards.
        if data and data.startswith(PNG_SIGNATURE) and len(data) >= PNG_HEADER:
            width, height = struct.unpack('>II', data[16:24])
            self._check_size(key, height, width)
        try:
            image = None if not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:  # more pixels than OpenCV takes
            image = None
        if image is None:
            raise DataError(f'{self.path}: {key} is not a readable image; pack the dataset again')
        self._check_size(key, *image.shape[:2])
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _check_size(self, key: str, height: int, width: int) -> None:
        if (height, width) not in self.sizes:
            raise DataError(
                f'{self.path}: {key} is {height}×{width}, which {META_INFO} says of no image; pack the dataset again'
            )

    @classmethod
    def close_all(cls) -> None:
        """Close what this process holds open; what is read later is opened again."""
        for environment, _ in cls._open.values():
            environment.close()
        cls._open.clear()


# A forked worker inherits its parent's environments, which it may not use, and beside which lmdb opens no others.
os.register_at_fork(after_in_child=TileStore.close_all)


def check_pair(gt: Path | str, lq: Path | str) -> tuple[TileStore, TileStore]:
    """Open both LMDBs; raise LNCAError unless they are readable and hold the same keys."""
    stores = TileStore(gt), TileStore(lq)
    check_same_keys(*stores)
    return stores


def check_same_keys(gt: TileStore, lq: TileStore) -> None:
    """Raise DataError unless two stores hold the same keys."""
    if not np.array_equal(gt.key_array, lq.key_array):
        stray = np.setxor1d(gt.key_array, lq.key_array)
        raise DataError(
            f'{gt.path} and {lq.path} do not hold the same images: {len(stray)} keys are in one only, '
            f'{stray[0].decode("ascii")} for example; pack the dataset again'
        )


def image_sizes(path: Path | str) -> set[tuple[int, int]]:
    """The heights and widths that occur in an LMDB, by its ``meta_info.txt``.

    Raises:
        DataError: it names none, or there is no such LMDB.
    """
    shapes = set(re.findall(rb'\((\d{1,6}),(\d{1,6}),\d{1,6}\)', _meta_info(Path(path))))
    if not shapes:
        raise DataError(f'{path}: {META_INFO} names no sizes, such as KEY.png (32,32,3) 0; pack the dataset again')
    return {(int(height), int(width)) for height, width in shapes}


def _environment(path: Path | str) -> lmdb.Environment:
    """The environment of an LMDB that exists, opened once a process.

    Raises:
        lmdb.Error: it is damaged.
    """
    name = os.path.realpath(path)
    inode = (Path(name) / 'data.mdb').stat().st_ino
    environment, known = TileStore._open.get(name, (None, None))
    if known != inode:
        if environment is not None:
            environment.close()
        environment = lmdb.open(name, readonly=True, lock=False, readahead=False, create=False)
        TileStore._open[name] = (environment, inode)
    return environment


def _files(path: Path) -> tuple[Path, Path]:
    """``data.mdb`` and ``meta_info.txt`` of an LMDB; raises LNCAError if there are none."""
    if not path.is_dir():
        raise DataError(f'{path}: there is no such LMDB; {PACK}')
    files = path / 'data.mdb', path / META_INFO
    for file in files:
        if not file.is_file():
            raise DataError(f'{path}: {file.name} is missing, so this is not an LMDB that BasicSR can read; {PACK}')
    return files


def _meta_info(path: Path) -> bytes:
    """The lines of an LMDB's ``meta_info.txt``, which are ASCII."""
    lines = _files(path)[1].read_bytes()
    if not lines.isascii():
        raise DataError(f'{path}: {META_INFO} is damaged, it is not ASCII text; {PACK} again')
    return lines


# A training asks twice, when it checks its options and when it begins, and it takes seconds for millions of tiles.
@functools.lru_cache(maxsize=16)
def _checked_keys(path: str, *_: tuple[int, int, int]) -> np.ndarray:
    """The keys of an LMDB, sorted; what follows tells whether its files are those of an earlier call."""
    # PairedImageDataset, too, takes what comes before the first dot for the key.
    names = [line.partition(b'.')[0] for line in _meta_info(Path(path)).splitlines() if line.strip()]
    if not names:
        raise DataError(f'{path}: the LMDB is empty; {PACK}')
    # An array of them takes the longest's room for each.
    lengths = [len(name) for name in names]
    longest = max(lengths)
    if not 0 < min(lengths) <= longest <= LONGEST_KEY:
        raise DataError(f'{path}: {META_INFO} names a key of no letter, or of more than {LONGEST_KEY}; {PACK} again')
    if len(names) * longest > max(MOST_KEY_BYTES, LONGEST_TO_MEAN * sum(lengths)):
        raise DataError(f'{path}: {META_INFO} names a key of {longest} letters among much shorter ones; {PACK} again')
    keys = np.sort(np.array(names, 'S'))
    if (twice := keys[1:][keys[1:] == keys[:-1]]).size:
        raise DataError(f'{path}: {META_INFO} names {twice[0].decode()} twice; {PACK} again')
    try:
        walk = subprocess.run(
            [sys.executable, '-c', FIND_EVERY_IMAGE, path],
            input=b'\n'.join(keys),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS + os.path.getsize(Path(path) / 'data.mdb') / BYTES_A_SECOND,
            check=False,
        )
        problem = walk.stdout.decode().strip() or (walk.returncode and 'the LMDB is damaged, data.mdb cannot be read')
    except subprocess.TimeoutExpired:
        problem = 'the LMDB is damaged, or cannot be read in reasonable time'
    if problem:
        raise DataError(f'{path}: {problem}; {PACK} again')
    return keys
