"""Batches of CIFAR-10, in the python or the binary version, unpacked or in the archive."""

import contextlib
import functools
import gzip
import hashlib
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnca_data.io.images import read_bytes
from lnca_utils.errors import DataError, one_line

CIFAR_SHAPE = (3, 32, 32)
RECORD_BYTES = 1 + 3 * 32 * 32  # of the binary version: a label, then the pixels
MAX_BATCH_BYTES = 64 << 20  # a published batch has 31 MB
MAX_ARCHIVE_BYTES = 256 << 20  # uncompressed; the published archives have 186 MB


@dataclass(frozen=True, slots=True)
class CifarImage:
    """An image of a batch of CIFAR-10.

    Args:
        path: file of the batch, or archive.
        index: index of the image in the batch.
        member: name of the batch in the archive; empty if ``path`` is the batch.
    """

    path: str
    index: int
    member: str = ''

    def read(self) -> np.ndarray:
        """Return the image, see :meth:`~lnca_data.io.images.Image.read`."""
        return cifar_batch(self.path, self.member)[self.index]

    def stored_bytes(self) -> int:
        """Return the approximate size on disk, in bytes."""
        return RECORD_BYTES


@functools.lru_cache(maxsize=1)  # images are read in order
def cifar_batch(path: str, member: str = '') -> np.ndarray:
    """Return the images of a batch: ``(N, 32, 32, 3)`` uint8 RGB.

    Args:
        path, member: see :class:`CifarImage`. A name that ends in ``.bin`` is of the binary version.

    Raises:
        DataError: if the batch cannot be read, or is not one of CIFAR-10.
    """
    data = _read_member(path, member) if member else read_bytes(path, MAX_BATCH_BYTES)
    name = f'{path}: {member}' if member else path
    if not name.endswith('.bin'):
        pixels = _unpickle(data, name, Path(member or path).name)
    elif data and len(data) % RECORD_BYTES == 0:
        pixels = np.frombuffer(data, np.uint8).reshape(-1, RECORD_BYTES)[:, 1:]
    else:
        raise DataError(f'{name}: not a batch of CIFAR-10, or truncated: {len(data)} bytes; download it again')
    return np.ascontiguousarray(pixels.reshape(-1, *CIFAR_SHAPE).transpose(0, 2, 3, 1))


def _unpickle(data: bytes, name: str, batch: str) -> np.ndarray:
    """Return the pixels of a batch of the python version: ``(10000, 3072)`` uint8.

    Unpickling can run any code, so only the published files are unpickled.
    """
    from torchvision.datasets import CIFAR10

    published = dict((*CIFAR10.train_list, *CIFAR10.test_list))
    if hashlib.md5(data, usedforsecurity=False).hexdigest() != published.get(batch):
        raise DataError(
            f'{name}: not the published batch of CIFAR-10, its MD5 differs; download it again, or use the binary '
            'version, cifar-10-binary.tar.gz'
        )
    return pickle.loads(data, encoding='bytes')[b'data']


@functools.lru_cache(maxsize=1)  # listing an archive takes seconds, and each batch needs it
def archive_members(path: Path) -> list[str]:
    """Return the names of the files in a ``.tar.gz``.

    Raises:
        DataError: if the archive is damaged, or larger than those of CIFAR-10.
    """
    with _open_archive(path) as (archive, stream):
        names = [member.name for member in archive if member.isfile()]
        while stream.read(1 << 20):  # read to the end, where gzip's checksum is
            pass
        return names


def _read_member(path: str, name: str) -> bytes:
    with _open_archive(path) as (archive, _):
        member = next((member for member in archive if member.name == name and member.isfile()), None)
        if member is None:
            raise DataError(f'{path}: {name} is missing in the archive; download it again')
        if member.size > MAX_BATCH_BYTES:
            raise DataError(f'{path}: {name} is larger than the batches of CIFAR-10; download it again')
        file = archive.extractfile(member)
        assert file is not None  # it is a file
        return file.read()


@contextlib.contextmanager
def _open_archive(path: Path | str) -> Iterator[tuple[tarfile.TarFile, gzip.GzipFile]]:
    try:
        # Mode r| reads the archive as a stream, only through _BoundedGzip.read.
        with _BoundedGzip(path) as stream, tarfile.open(fileobj=stream, mode='r|') as archive:
            yield archive, stream
    except DataError:
        raise
    except Exception as error:  # tarfile raises anything for damaged archives
        raise DataError(f'{path}: not a readable archive ({one_line(error)}); download it again') from None


class _BoundedGzip(gzip.GzipFile):
    """A gzip file whose content may not exceed :data:`MAX_ARCHIVE_BYTES`, since a small file can unpack to any size."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > MAX_ARCHIVE_BYTES:
            raise tarfile.ReadError(f'it contains more than {MAX_ARCHIVE_BYTES >> 20} MB')
        return super().read(size)
