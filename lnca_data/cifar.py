"""Batches of CIFAR-10, in the python and the binary version, unpacked or in the archive; no pickle is run."""

import functools
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lnca_arch.errors import InputError, one_line
from lnca_data.images import read_bytes

CIFAR_SHAPE = (3, 32, 32)
LARGEST_BATCH = 64 << 20  # bytes; a batch has 31 MB
CIFAR_RECORD = 1 + 3 * 32 * 32  # of the binary version: a label, then the pixels


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
    """The names of the files in a tar archive.

    Raises:
        InputError: it is damaged.
    """
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
            while archive.fileobj.read(1 << 20):  # to the checksum, which is the last thing in the file
                pass
            return names
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise InputError(f'{path}: not a readable archive ({one_line(error)})') from None


def _archive_member(path: str, name: str) -> bytes:
    # Read in place: what is never unpacked cannot be written elsewhere.
    try:
        with tarfile.open(path) as archive:
            data = archive.extractfile(name).read(LARGEST_BATCH + 1)
    # RecursionError: links to each other.
    except (
        OSError,
        tarfile.TarError,
        EOFError,
        zlib.error,
        KeyError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        raise InputError(f'{path}: cannot read {name} in the archive ({one_line(error)})') from None
    if len(data) > LARGEST_BATCH:
        raise InputError(f'{path}: {name} in the archive is larger than any batch of CIFAR-10')
    return data


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
        # How Python 3 writes bytes for Python 2.
        ('_codecs', 'encode'): lambda text, _: text.encode('latin1'),
    }

    def find_class(self, module: str, name: str) -> Callable:
        known = self.KNOWN.get((module.replace('numpy._core', 'numpy.core'), name))
        if known is None:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}, which no batch of CIFAR-10 needs')
        return known


def _unpickled_pixels(data: bytes, where: str) -> np.ndarray:
    try:
        batch = _CifarUnpickler(io.BytesIO(data), encoding='bytes').load()
        pixels = batch[b'data'].pixels
        return pixels.reshape(-1, CIFAR_RECORD - 1)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f'{where}: not a batch of CIFAR-10 ({one_line(error)}); nothing was run') from None
