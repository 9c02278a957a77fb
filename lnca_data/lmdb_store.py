"""BasicSR-format LMDBs: a folder ``NAME.lmdb`` with ``data.mdb`` and ``meta_info.txt``, PNG images by key."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

import cv2
import lmdb
import numpy as np

from lnca_arch.errors import InputError

META_INFO = 'meta_info.txt'
PNG_COMPRESSION = 1
BATCH = 1000
FIRST_MAP_SIZE = 64 << 20


def write_lmdb(path: Path | str, images: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write images into a new LMDB.

    Args:
        path: a folder that does not exist, its name ending in ``.lmdb``.
        images: pairs of a key (ASCII without dots) and a ``(H, W, 3)`` uint8 RGB image.

    Returns:
        How many images were written.
    """
    path = Path(path)
    path.mkdir(parents=True)
    count, batch = 0, []
    with lmdb.open(str(path), map_size=FIRST_MAP_SIZE) as environment, open(path / META_INFO, 'w') as meta_info:
        for key, image in images:
            encoded, png = cv2.imencode(
                '.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION]
            )
            if not encoded:
                raise RuntimeError(f'{path}: {key} cannot be encoded as PNG')
            height, width, channels = image.shape
            meta_info.write(f'{key}.png ({height},{width},{channels}) {PNG_COMPRESSION}\n')
            batch.append((key.encode('ascii'), png.tobytes()))
            count += 1
            if len(batch) == BATCH:
                _put(environment, batch)
                batch = []
        _put(environment, batch)
    return count


def _put(environment: lmdb.Environment, batch: list[tuple[bytes, bytes]]) -> None:
    """Commit a batch, doubling the map until it fits."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in batch:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()['map_size'])
        except lmdb.Error as error:
            raise InputError(f'{environment.path()}: cannot write ({error}); make room, then run again') from None


class TileStore:
    """Read access to a BasicSR-format LMDB.

    The LMDB is opened when the first image is read and once a process, whose stores share it: lmdb refuses to open one
    twice. One that was packed anew since is opened anew.

    Args:
        path: the ``.lmdb`` folder.

    Raises:
        InputError: the LMDB is missing, empty, truncated or unreadable.
    """

    _open: ClassVar[dict[str, tuple[lmdb.Environment, int]]] = {}  # real path → environment, inode of its data

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self.keys = sorted(_checked_keys(Path(path)))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, key: str) -> np.ndarray:
        """The image of a key: ``(H, W, 3)`` uint8 RGB.

        Raises:
            InputError: no such key, or not an image.
        """
        try:
            with _environment(self.path).begin() as transaction:
                data = transaction.get(key.encode('ascii'))
        except lmdb.Error as error:
            raise InputError(f'{self.path}: cannot read {key!r} ({error}); pack the dataset again') from None
        image = None if not data else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise InputError(f'{self.path}: {key} is not a readable image; pack the dataset again')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    @classmethod
    def close_all(cls) -> None:
        """Close what this process holds open; what is read later is opened again."""
        for environment, _ in cls._open.values():
            environment.close()
        cls._open.clear()


# A forked worker inherits its parent's environments, which it may not use, and beside which lmdb opens no others.
os.register_at_fork(after_in_child=TileStore.close_all)


def check_pair(gt: Path | str, lq: Path | str) -> None:
    """Raise InputError unless both LMDBs are readable and hold the same keys."""
    gt_keys, lq_keys = set(TileStore(gt).keys), set(TileStore(lq).keys)
    if gt_keys != lq_keys:
        stray = sorted(gt_keys ^ lq_keys)[0]
        raise InputError(
            f'{gt} and {lq} do not hold the same images: {len(gt_keys ^ lq_keys)} keys are in one only, '
            f'{stray} for example; pack the dataset again'
        )


def image_sizes(path: Path | str) -> set[tuple[int, int]]:
    """The heights and widths that occur in an LMDB, by its ``meta_info.txt``."""
    shapes = re.findall(r'\((\d+),(\d+),\d+\)', (Path(path) / META_INFO).read_text())
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


def _checked_keys(path: Path) -> list[str]:
    data, meta_info = path / 'data.mdb', path / META_INFO
    advice = 'pack the dataset with datasets/prepare.py'
    if not path.is_dir():
        raise InputError(f'{path}: there is no such LMDB; {advice}')
    for file in (data, meta_info):
        if not file.is_file():
            raise InputError(f'{path}: {file.name} is missing, so this is not an LMDB that BasicSR can read; {advice}')
    try:
        lines = meta_info.read_text(encoding='utf-8').splitlines()
    except UnicodeDecodeError:
        raise InputError(f'{path}: {META_INFO} is damaged, it is not text; {advice} again') from None
    # PairedImageDataset, too, takes what comes before the first dot for the key.
    keys = [line.split('.')[0] for line in lines if line.strip()]
    if not keys:
        raise InputError(f'{path}: the LMDB is empty; {advice}')
    name = os.path.realpath(path)
    was_open = name in TileStore._open
    try:
        environment = _environment(path)
        entries = environment.stat()['entries']
        needed = (environment.info()['last_pgno'] + 1) * environment.stat()['psize']
        if not was_open:  # so that BasicSR's own datasets can open it
            TileStore._open.pop(name)[0].close()
    except lmdb.Error as error:
        raise InputError(f'{path}: the LMDB is damaged ({error}); {advice} again') from None
    # Reading past the end of a truncated file would kill the process.
    if data.stat().st_size < needed:
        raise InputError(f'{path}: data.mdb is truncated, {data.stat().st_size} of {needed} bytes; {advice} again')
    if entries != len(keys):
        raise InputError(f'{path}: {META_INFO} lists {len(keys)} images, data.mdb holds {entries}; {advice} again')
    return keys
