"""Batches of CIFAR-10, in the python and the binary version, unpacked or in the archive; no pickle is run."""

import contextlib
import functools
import gzip
import io
import itertools
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lnca_data.io.images import read_bytes
from lnca_utils.errors import DataError, one_line

CIFAR_SHAPE = (3, 32, 32)
LARGEST_BATCH = 64 << 20  # bytes; a batch has 31 MB
CIFAR_RECORD = 1 + 3 * 32 * 32  # of the binary version: a label, then the pixels
LARGEST_ARCHIVE = 512 << 20  # bytes of its content; the authors' have 186 MB
LARGEST_HEADERS = 64 << 10  # bytes of all of an archive's; the authors' have 5 kB. tarfile keeps what they say
AT_ONCE = 1 << 20  # bytes
MOST_INSTRUCTIONS = 200_000  # of a pickle; a batch needs 30,000, and 120,000 if Python 3 writes it in protocol 0


@dataclass(frozen=True, slots=True)
class CifarImage:
    """One image of a batch of CIFAR-10, in the python or the binary version, in a folder or in the ``.tar.gz``.

    Args:
        path: the batch's file, or the archive.
        index: which image of the batch.
        member: name of the batch in the archive, if ``path`` is one.
    """

    path: str
    index: int
    member: str = ''

    def read(self) -> np.ndarray:
        return cifar_batch(self.path, self.member)[self.index]

    def stored_bytes(self) -> int:
        return CIFAR_RECORD


# An image at a time is asked for, in order: the batch at hand and no more is kept.
@functools.lru_cache(maxsize=1)
def cifar_batch(path: str, member: str = '') -> np.ndarray:
    """The images of a batch: ``(N, 32, 32, 3)`` uint8 RGB. A name that ends in ``.bin`` is of the binary version.

    Raises:
        DataError: it cannot be read, is damaged, or holds anything but a batch of CIFAR-10.
    """
    data = _archive_member(path, member) if member else read_bytes(path, LARGEST_BATCH)
    where = f'{path}: {member}' if member else path
    if where.endswith('.bin'):
        if not data or len(data) % CIFAR_RECORD:
            raise DataError(f'{where}: not a batch of CIFAR-10, or truncated: {len(data)} bytes')
        pixels = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)[:, 1:]
    else:
        pixels = _unpickled_pixels(data, where)
    return np.ascontiguousarray(pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1))


@functools.lru_cache(maxsize=1)  # each batch asks, and listing an archive takes seconds
def archive_members(path: Path) -> list[str]:
    """The names of the files in a ``.tar.gz``.

    Raises:
        DataError: it is damaged, or larger than any of CIFAR-10.
    """
    with _archive(path) as (archive, stream):
        names = [member.name for member in _files(archive)]
        stream.room = LARGEST_ARCHIVE + AT_ONCE
        while stream.read(AT_ONCE):  # to the checksum, which is the last thing in the file
            pass
        return names


def _archive_member(path: str, name: str) -> bytes:
    # Read in place: what is never unpacked cannot be written elsewhere.
    with _archive(path) as (archive, stream):
        member = next((member for member in _files(archive) if member.name == name), None)
        if member is None:
            raise DataError(f'{path}: has no {name}')
        if member.size > LARGEST_BATCH:
            raise DataError(f'{path}: {name} in the archive is larger than any batch of CIFAR-10')
        stream.room = LARGEST_BATCH
        file = archive.extractfile(member)
        return b''.join(iter(lambda: file.read(AT_ONCE), b''))


@contextlib.contextmanager
def _archive(path: Path | str) -> Iterator[tuple[tarfile.TarFile, '_Bounded']]:
    try:
        with gzip.open(path) as unpacked:
            stream = _Bounded(unpacked)
            with tarfile.open(fileobj=stream, mode='r:') as archive:
                yield archive, stream
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f'{path}: not a readable archive ({one_line(error)})') from None


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in an archive, one after the other; links and what else there may be are left out."""
    while (member := archive.next()) is not None:
        archive.members = []  # or it keeps all of them
        if member.isfile():
            yield member


class _Bounded:
    """What tarfile reads from, of bounded length.

    Attributes:
        room: how many more bytes may be read; headers, until it is set.
    """

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self.tell = stream.tell
        self.room = LARGEST_HEADERS

    def read(self, size: int) -> bytes:
        self.room -= size
        if size < 0 or self.room < 0:
            raise tarfile.ReadError(f'it has headers of more than {LARGEST_HEADERS >> 10} kB')
        self._check(self.tell() + size)
        return self._stream.read(size)

    def seek(self, position: int) -> int:
        self._check(position)
        return self._stream.seek(position)

    def _check(self, position: int) -> None:
        if position > LARGEST_ARCHIVE + AT_ONCE:
            raise tarfile.ReadError(f'it holds more than {LARGEST_ARCHIVE >> 20} MB, and CIFAR-10 does not')


class _PickledArray:
    """Takes the place of a pickled NumPy array; its state is data, and looked at as such."""

    pixels: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, _, _, data = state
        self.pixels = np.frombuffer(data, np.uint8).reshape(shape)


class _PickledType:
    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def _last_in_a_list(length: int, unpickler: pickle._Unpickler) -> None:
    unpickler.stack[-length:] = [unpickler.stack[-length:]]


class _CifarUnpickler(pickle._Unpickler):
    """Knows what a batch of CIFAR-10 is made of, and nothing else: a pickle could run any code otherwise.

    The one in Python, which takes memory for what there is and not for what there could be, and in which tuples can
    become lists: as keys they would be hashed, and a few bytes can nest them so that this never ends.
    """

    dispatch: ClassVar[dict[int, Callable]] = pickle._Unpickler.dispatch | {
        pickle.EMPTY_TUPLE[0]: pickle._Unpickler.load_empty_list,
        pickle.TUPLE1[0]: functools.partial(_last_in_a_list, 1),
        pickle.TUPLE2[0]: functools.partial(_last_in_a_list, 2),
        pickle.TUPLE3[0]: functools.partial(_last_in_a_list, 3),
        pickle.TUPLE[0]: pickle._Unpickler.load_list,
        pickle.FROZENSET[0]: pickle._Unpickler.load_list,
    }
    KNOWN: ClassVar[dict[tuple[str, str], Callable]] = {
        ('numpy.core.multiarray', '_reconstruct'): lambda *_: _PickledArray(),
        ('numpy', 'ndarray'): _PickledArray,
        ('numpy', 'dtype'): _PickledType,
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding='bytes')
        self._room = LARGEST_BATCH

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) == ('_codecs', 'encode'):
            return self._encode
        known = self.KNOWN.get((module.replace('numpy._core', 'numpy.core'), name))
        if known is None:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no batch of CIFAR-10 needs')
        return known

    def _encode(self, text: str, _: str) -> bytes:
        """How Python 3 writes bytes for Python 2. It can be asked for the same again and again."""
        self._room -= len(text)
        if self._room < 0:
            raise pickle.UnpicklingError('it unpacks to more than any batch of CIFAR-10')
        return text.encode('latin1')


def _unpickled_pixels(data: bytes, where: str) -> np.ndarray:
    try:
        # One takes up to 216 bytes of memory.
        if next(itertools.islice(pickletools.genops(data), MOST_INSTRUCTIONS, None), None):
            raise pickle.UnpicklingError(f'it has more than {MOST_INSTRUCTIONS:,} instructions')
        batch = _CifarUnpickler(io.BytesIO(data)).load()
        pixels = batch[b'data'].pixels
        return pixels.reshape(-1, CIFAR_RECORD - 1)
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(f'{where}: not a batch of CIFAR-10 ({one_line(error)}); nothing was run') from None
