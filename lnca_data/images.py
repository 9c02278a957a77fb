"""Images as datasets store them. Each is a small description that is read when its turn comes, in any process."""

import functools
import io
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import cv2
import numpy as np

from lnca_arch.errors import InputError


class Image(Protocol):
    """An image to be read. ``path`` is the file that it is in."""

    path: str

    def read(self) -> np.ndarray:
        """``(H, W, 3)`` RGB, uint8 or uint16.

        Raises:
            InputError: it cannot be read; the message names the file.
        """

    def stored_bytes(self) -> int:
        """About how much of a file it takes.

        Raises:
            OSError: there is no such file.
        """


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file in a format that OpenCV decodes: PNG, JPEG, BMP, TIFF, WebP … Grey becomes RGB, alpha is dropped."""

    path: str

    def read(self) -> np.ndarray:
        data = np.frombuffer(read_bytes(self.path), np.uint8)
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
        except cv2.error:  # more pixels than OpenCV takes
            image = None
        if image is None:
            raise InputError(f'{self.path}: not a readable image; it may be truncated')
        if image.dtype not in (np.uint8, np.uint16):
            raise InputError(f'{self.path}: has pixels of type {image.dtype}; 8 or 16 bits a channel are needed')
        # Not by IMREAD_COLOR_RGB, which OpenCV forgets for TIFFs of 16 bits.
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def stored_bytes(self) -> int:
        return os.stat(self.path).st_size


@dataclass(frozen=True, slots=True)
class RawFile:
    """A camera's raw file, developed by LibRaw: camera white balance, no automatic brightness, 16 bits, sRGB.

    Args:
        path: the file.
        brightness: factor on the linear values, before the tone curve.
    """

    path: str
    brightness: float = 1.0

    def read(self) -> np.ndarray:
        import rawpy

        try:
            with rawpy.imread(self.path) as raw:
                return raw.postprocess(
                    use_camera_wb=True,
                    no_auto_bright=True,
                    adjust_maximum_thr=0,  # nor by the brightest pixel
                    output_bps=16,
                    bright=self.brightness,
                )
        except (rawpy.LibRawError, OSError) as error:
            raise InputError(f'{self.path}: not a readable raw file ({_line(error)})') from None

    def stored_bytes(self) -> int:
        return os.stat(self.path).st_size


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


@dataclass(frozen=True, slots=True)
class Bundled:
    """Rows of a photograph that scikit-image brings along. ``path`` is its name in ``skimage.data``.

    Args:
        path: the name; a pair of photographs is followed by the number of the one meant, ``stereo_motorcycle/0``.
        first, last: shares of the height between which the rows lie, multiples of ``rows``.
        rows: what the borders are multiples of, in pixels.
    """

    path: str
    first: float = 0.0
    last: float = 1.0
    rows: int = 1

    def read(self) -> np.ndarray:
        from skimage import data

        name, _, number = self.path.partition('/')
        image = getattr(data, name)()
        image = image[int(number)] if number else image
        top, bottom = (
            len(image) if share == 1 else int(share * len(image)) // self.rows * self.rows
            for share in (self.first, self.last)
        )
        return image[top:bottom]

    def stored_bytes(self) -> int:
        return 1 << 20


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """uint16 → uint8, rounded; uint8 stays."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8) if image.dtype == np.uint16 else image


def read_bytes(path: str) -> bytes:
    """A file's content.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f'{path}: cannot be read ({error.strerror})') from None


def _line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__


# --- CIFAR-10

CIFAR_SHAPE = (3, 32, 32)
CIFAR_RECORD = 1 + 3 * 32 * 32  # of the binary version: a label, then the pixels


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
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f'{path}: not a readable archive ({_line(error)})') from None


def _archive_member(path: str, name: str) -> bytes:
    # Read in place: what is never unpacked cannot be written elsewhere.
    try:
        with tarfile.open(path) as archive:
            return archive.extractfile(name).read()
    except (OSError, tarfile.TarError, EOFError, zlib.error, KeyError, AttributeError) as error:
        raise InputError(f'{path}: cannot read {name} in the archive ({_line(error)})') from None


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
        raise InputError(f'{where}: not a batch of CIFAR-10 ({_line(error)}); nothing was run') from None
