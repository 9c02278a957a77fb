"""Batches of CIFAR-10, in the python and the binary version, unpacked or in the archive; no pickle is run."""

import contextlib
import functools
import gzip
import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lnca_arch.errors import InputError, one_line
from lnca_data.images import read_bytes

CIFAR_SHAPE = (3, 32, 32)
LARGEST_BATCH = 64 << 20  # bytes; a batch has 31 MB
CIFAR_RECORD = 1 + 3 * 32 * 32  # of the binary version: a label, then the pixels
LARGEST_ARCHIVE = 512 << 20  # bytes of its content; the authors' have 186 MB
AT_ONCE = 1 << 20  # bytes that tarfile may ask for; headers, which it reads whole, can claim any length
PUTS = ('PUT', 'BINPUT', 'LONG_BINPUT')


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
        InputError: it cannot be read, is damaged, or holds anything but a batch of CIFAR-10.
    """
    data = _archive_member(path, member) if member else read_bytes(path)
    where = f'{path}: {member}' if member else path
    if where.endswith('.bin'):
        if not data or len(data) % CIFAR_RECORD:
            raise InputError(f'{where}: not a batch of CIFAR-10, or truncated: {len(data)} bytes')
        pixels = np.frombuffer(data, np.uint8).reshape(-1, CIFAR_RECORD)[:, 1:]
    else:
        pixels = _unpickled_pixels(data, where)
    return np.ascontiguousarray(pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1))


@functools.lru_cache(maxsize=1)  # each batch asks, and listing an archive takes seconds
def archive_members(path: Path) -> list[str]:
    """The names of the files in a ``.tar.gz``.

    Raises:
        InputError: it is damaged, or larger than any of CIFAR-10.
    """
    with _archive(path) as (archive, stream):
        names = [member.name for member in _files(archive)]
        while stream.read(AT_ONCE):  # to the checksum, which is the last thing in the file
            pass
        return names


def _archive_member(path: str, name: str) -> bytes:
    # Read in place: what is never unpacked cannot be written elsewhere.
    with _archive(path) as (archive, _):
        member = next((member for member in _files(archive) if member.name == name), None)
        if member is None:
            raise InputError(f'{path}: has no {name}')
        if member.size > LARGEST_BATCH:
            raise InputError(f'{path}: {name} in the archive is larger than any batch of CIFAR-10')
        file = archive.extractfile(member)
        return b''.join(iter(lambda: file.read(AT_ONCE), b''))


@contextlib.contextmanager
def _archive(path: Path | str) -> Iterator[tuple[tarfile.TarFile, '_Bounded']]:
    try:
        with gzip.open(path) as unpacked:
            stream = _Bounded(unpacked)
            with tarfile.open(fileobj=stream, mode='r:') as archive:
                yield archive, stream
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f'{path}: not a readable archive ({one_line(error)})') from None


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files in an archive, one after the other; links and what else there may be are left out."""
    while (member := archive.next()) is not None:
        archive.members = []  # or it keeps all of them
        if member.isfile():
            yield member


class _Bounded:
    """What tarfile reads from, of bounded length and in parts of bounded length."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= AT_ONCE:
            raise tarfile.ReadError(f'a header of {size:,} bytes')
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


class _CifarUnpickler(pickle.Unpickler):
    """Knows what a batch of CIFAR-10 is made of, and nothing else: a pickle could run any code otherwise."""

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


def _check_memory(data: bytes) -> None:
    """Raise UnpicklingError for a few bytes that take any amount of memory."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        # The unpickler has room for as many objects as the largest number, of which each needs an instruction.
        if (opcode.name in PUTS and argument > count) or opcode.name == 'BYTEARRAY8':
            raise pickle.UnpicklingError(f'{opcode.name} {argument}, which no batch of CIFAR-10 needs')


def _unpickled_pixels(data: bytes, where: str) -> np.ndarray:
    try:
        _check_memory(data)
        batch = _CifarUnpickler(io.BytesIO(data)).load()
        pixels = batch[b'data'].pixels
        return pixels.reshape(-1, CIFAR_RECORD - 1)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f'{where}: not a batch of CIFAR-10 ({one_line(error)}); nothing was run') from None
