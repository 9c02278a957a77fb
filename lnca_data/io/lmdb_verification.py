"""Verification of LMDBs before they are read: in full once per machine, then only the size and number of entries."""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lnca_utils.cache import cache_dir
from lnca_utils.errors import DataError

META_INFO = 'meta_info.txt'
REPACK = 'pack the dataset again with datasets/prepare.py'
SCAN = Path(__file__).with_name('lmdb_scan.py')
# A scan of a damaged file may never end: time limit in seconds, plus the size of the file at this rate.
MIN_TIMEOUT, MIN_BYTES_PER_SECOND = 60, 5e6

FileStates = tuple[tuple[int, ...], ...]


def file_states(path: Path) -> FileStates:
    """Return device, inode, size and modification time of both files of an LMDB, which identify its content.

    Raises:
        DataError: if a file is missing.
    """
    if not path.is_dir():
        raise DataError(f'{path}: there is no such LMDB; pack the dataset with datasets/prepare.py')
    states = []
    for name in ('data.mdb', META_INFO):
        if not (path / name).is_file():
            raise DataError(f'{path}: {name} is missing; {REPACK}')
        state = (path / name).stat()
        states.append((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
    return tuple(states)


def verify_lmdb(path: Path, states: FileStates, keys: np.ndarray, use_cache: bool = True) -> None:
    """Check that an LMDB can be read without killing the process.

    A full verification locates every image, which reads the whole file. Its success is remembered in the cache folder
    for these file states; later calls check only the size of the file and the number of entries. Where the cache folder
    cannot be written, each call verifies in full.

    Args:
        path: the ``.lmdb`` folder.
        states: from :func:`file_states`, before ``keys`` was read.
        keys: keys listed in ``meta_info.txt``.
        use_cache: whether an earlier verification counts.

    Raises:
        DataError: if the LMDB is damaged, or its keys are not the listed ones.
    """
    marker = _marker(states)
    is_verified = use_cache and marker is not None and os.path.exists(marker)  # Path.exists may raise
    try:
        scan = subprocess.run(
            [sys.executable, SCAN, path, str(len(keys))],
            input=b'' if is_verified else b'\n'.join(keys),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=MIN_TIMEOUT + os.path.getsize(path / 'data.mdb') / MIN_BYTES_PER_SECOND,
            check=False,
        )
        problem = scan.stdout.decode().strip() or (scan.returncode and 'data.mdb is damaged, it cannot be read')
    except subprocess.TimeoutExpired:
        problem = 'data.mdb is damaged, or cannot be read in reasonable time'
    if problem:
        raise DataError(f'{path}: {problem}; {REPACK}')
    if marker and not is_verified:
        with contextlib.suppress(OSError):
            marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            marker.touch()


def _marker(states: FileStates) -> Path | None:
    """Return the path of the empty file that marks an LMDB as verified; None if the user has no home folder."""
    try:
        return cache_dir() / f'lmdb-{hashlib.sha256(repr(states).encode()).hexdigest()[:24]}'
    except RuntimeError:
        return None
