"""Reading of BasicSR-format LMDBs: folders ``NAME.lmdb`` with PNG images in ``data.mdb`` and ``meta_info.txt``."""

import functools
import os
import re
import struct
from pathlib import Path
from typing import ClassVar

import cv2
import lmdb
import numpy as np

from lnca_data.io.lmdb_verification import META_INFO, REPACK, FileStates, file_states, verify_lmdb
from lnca_utils.errors import DataError

MAX_KEY_LENGTH = 511  # bytes; LMDB's limit
# NumPy stores each key at the length of the longest; an array that would be large and mostly padding is refused.
MAX_KEY_BYTES, MAX_TO_MEAN_LENGTH = 64 << 20, 4
PNG_SIGNATURE, PNG_HEADER = b'\x89PNG\r\n\x1a\n', 24  # bytes up to and including width and height


class TileStore:
    """Read access to a BasicSR-format LMDB.

    The LMDB is opened when the first image is read. The stores of a process share its environment, since lmdb refuses
    to open a file twice; an LMDB that was packed again is reopened.

    Args:
        path: the ``.lmdb`` folder.
        use_cache: see :func:`~lnca_data.io.lmdb_verification.verify_lmdb`.

    Attributes:
        key_array: the keys in order, as an array of bytes.

    Raises:
        DataError: if the LMDB is missing, empty or damaged.
    """

    _open: ClassVar[dict[str, tuple[lmdb.Environment, int]]] = {}  # real path → environment, inode of data.mdb

    def __init__(self, path: Path | str, use_cache: bool = True) -> None:
        self.path = str(path)
        self.key_array = _verified_keys(Path(path), file_states(Path(path)), use_cache)

    @property
    def keys(self) -> list[str]:
        """The keys in order. ``key_array`` needs a fifth of the memory."""
        return [key.decode('ascii') for key in self.key_array]

    @functools.cached_property
    def sizes(self) -> set[tuple[int, int]]:
        """Heights and widths that occur among the images; see :func:`image_sizes`."""
        return image_sizes(self.path)

    def __len__(self) -> int:
        return len(self.key_array)

    def __getitem__(self, key: str) -> np.ndarray:
        """Return the image of a key: ``(H, W, 3)`` uint8 RGB.

        Raises:
            DataError: if there is no such key, or no readable image.
        """
        try:
            with _environment(self.path).begin() as transaction:
                data = transaction.get(key.encode('ascii'))
        except lmdb.Error as error:
            raise DataError(f'{self.path}: {key} cannot be read ({error}); {REPACK}') from None
        # A PNG is checked before decoding, which takes as much memory as its header claims; other formats afterwards.
        if data and data.startswith(PNG_SIGNATURE) and len(data) >= PNG_HEADER:
            width, height = struct.unpack('>II', data[16:24])
            self._check_size(key, height, width)
        try:
            image = None if not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:  # OpenCV refuses images above its own size limit
            image = None
        if image is None:
            raise DataError(f'{self.path}: {key} is not a readable image; {REPACK}')
        self._check_size(key, *image.shape[:2])
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def _check_size(self, key: str, height: int, width: int) -> None:
        if (height, width) not in self.sizes:
            raise DataError(f'{self.path}: {key} is {height}×{width}, a size not listed in {META_INFO}; {REPACK}')

    @classmethod
    def close_all(cls) -> None:
        """Close all environments of this process; reading reopens them."""
        for environment, _ in cls._open.values():
            environment.close()
        cls._open.clear()


# A forked worker must not use the environments that it inherits, and lmdb opens no file twice.
if hasattr(os, 'register_at_fork'):  # not on Windows, where processes are spawned
    os.register_at_fork(after_in_child=TileStore.close_all)


def check_pair(gt: Path | str, lq: Path | str) -> tuple[TileStore, TileStore]:
    """Open the LMDBs of a paired dataset.

    Raises:
        DataError: if one is missing or damaged, or their keys differ.
    """
    stores = TileStore(gt), TileStore(lq)
    check_same_keys(*stores)
    return stores


def check_same_keys(gt: TileStore, lq: TileStore) -> None:
    """Raise DataError unless two stores have the same keys."""
    if not np.array_equal(gt.key_array, lq.key_array):
        different = np.setxor1d(gt.key_array, lq.key_array)
        raise DataError(
            f'{gt.path} and {lq.path} do not hold the same images: {len(different)} keys are in one only, such as '
            f'{different[0].decode("ascii")}; {REPACK}'
        )


def image_sizes(path: Path | str) -> set[tuple[int, int]]:
    """Return the heights and widths that the ``meta_info.txt`` of an LMDB lists.

    Raises:
        DataError: if the LMDB is missing, or no sizes are listed.
    """
    file_states(Path(path))
    shapes = set(re.findall(rb'\((\d{1,6}),(\d{1,6}),\d{1,6}\)', _read_meta_info(Path(path))))
    if not shapes:
        raise DataError(f'{path}: {META_INFO} lists no sizes, such as KEY.png (32,32,3) 0; {REPACK}')
    return {(int(height), int(width)) for height, width in shapes}


def _environment(path: Path | str) -> lmdb.Environment:
    """Return the environment of a verified LMDB, opened once per process.

    Raises:
        lmdb.Error: if it cannot be opened.
    """
    name = os.path.realpath(path)
    inode = (Path(name) / 'data.mdb').stat().st_ino
    environment, known = TileStore._open.get(name, (None, None))
    if environment is None or known != inode:
        if environment is not None:
            environment.close()
        environment = lmdb.open(name, readonly=True, lock=False, readahead=False, create=False)
        TileStore._open[name] = (environment, inode)
    return environment


def _read_meta_info(path: Path) -> bytes:
    lines = (path / META_INFO).read_bytes()
    if not lines.isascii():
        raise DataError(f'{path}: {META_INFO} is damaged, it is not ASCII text; {REPACK}')
    return lines


# Cached, since a training opens its datasets twice, to check options and to read; a million keys take seconds.
@functools.lru_cache(maxsize=16)
def _verified_keys(path: Path, states: FileStates, use_cache: bool) -> np.ndarray:
    """Verify an LMDB whose files have these states, and return its keys in order."""
    # As in BasicSR's PairedImageDataset, the key ends at the first dot.
    names = [line.partition(b'.')[0] for line in _read_meta_info(path).splitlines() if line.strip()]
    if not names:
        raise DataError(f'{path}: the LMDB is empty; {REPACK}')
    lengths = [len(name) for name in names]
    longest = max(lengths)
    if not 0 < min(lengths) <= longest <= MAX_KEY_LENGTH:
        raise DataError(f'{path}: {META_INFO} lists an empty key, or one above {MAX_KEY_LENGTH} letters; {REPACK}')
    if len(names) * longest > max(MAX_KEY_BYTES, MAX_TO_MEAN_LENGTH * sum(lengths)):
        raise DataError(f'{path}: {META_INFO} lists a key of {longest} letters among much shorter ones; {REPACK}')
    keys = np.sort(np.array(names, 'S'))
    if (repeated := keys[1:][keys[1:] == keys[:-1]]).size:
        raise DataError(f'{path}: {META_INFO} lists {repeated[0].decode()} twice; {REPACK}')
    verify_lmdb(path, states, keys, use_cache)
    return keys
