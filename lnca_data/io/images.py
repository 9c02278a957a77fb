"""Images as datasets store them. Each is a small description that is read when its turn comes, in any process."""

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import PIL.Image

from lnca_utils.atomic import atomic_file
from lnca_utils.errors import DataError, one_line

MAX_PIXELS = 1 << 28


class Image(Protocol):
    """An image to be read. ``path`` is the file that it is in."""

    path: str

    def read(self) -> np.ndarray:
        """``(H, W, 3)`` RGB, uint8 or uint16.

        Raises:
            DataError: it cannot be read; the message names the file.
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
        content = read_bytes(self.path)
        size = (0, 0)
        # Pillow knows fewer kinds than OpenCV.
        with contextlib.suppress(OSError, ValueError, SyntaxError), header(content) as image:
            size = image.size
        check_size(self.path, *size)
        data = np.frombuffer(content, np.uint8)
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
        except cv2.error:  # more pixels than OpenCV takes
            image = None
        if image is None:
            raise DataError(f'{self.path}: not a readable image; it may be truncated')
        if image.dtype not in (np.uint8, np.uint16):
            raise DataError(f'{self.path}: has pixels of type {image.dtype}; 8 or 16 bits a channel are needed')
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
            raise DataError(f'{self.path}: not a readable raw file ({one_line(error)})') from None

    def stored_bytes(self) -> int:
        return os.stat(self.path).st_size


@dataclass(frozen=True, slots=True)
class BundledPhoto:
    """Rows of a photograph that scikit-image or scikit-learn brings along.

    Args:
        path: its name in ``skimage.data``, a pair of photographs followed by the number of the one meant:
            ``stereo_motorcycle/0``; or its file in ``sklearn.datasets``: ``china.jpg``.
        first, last: shares of the height between which the rows lie, multiples of ``rows``.
        rows: what the borders are multiples of, in pixels.
    """

    path: str
    first: float = 0.0
    last: float = 1.0
    rows: int = 1

    def read(self) -> np.ndarray:
        name, _, number = self.path.partition('/')
        if name.endswith('.jpg'):
            from sklearn.datasets import load_sample_image

            image = load_sample_image(name).copy()  # it is not writable, of which PyTorch warns
        else:
            from skimage import data

            image = getattr(data, name)()
        image = image[int(number)] if number else image
        top, bottom = (
            len(image) if share == 1 else int(share * len(image)) // self.rows * self.rows
            for share in (self.first, self.last)
        )
        return image[top:bottom]

    def stored_bytes(self) -> int:
        return 1 << 20


@contextlib.contextmanager
def header(data: bytes) -> Iterator[PIL.Image.Image]:
    """An image of which nothing is decoded yet, so that its size is known before: a small file can claim any.

    Raises:
        OSError, ValueError, SyntaxError: it is none that Pillow knows.
    """
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # the limit here is ours
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            yield image
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def check_size(path: str, width: int, height: int) -> None:
    """Raise DataError for an image of more pixels than are read."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f'{path}: {width:,}×{height:,} pixels are more than the {MAX_PIXELS:,} that are read; cut it into parts'
        )


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """uint16 → uint8, rounded; uint8 stays."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8) if image.dtype == np.uint16 else image


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write ``(H, W)`` grey or ``(H, W, 3)`` BGR, whole or not at all, in the format of the path's suffix.

    Raises:
        OSError: it cannot be written. OpenCV's own imwrite does not say why.
    """
    _, encoded = cv2.imencode(Path(path).suffix, image)
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded)


def read_bytes(path: str, most: int | None = None) -> bytes:
    """A file's content.

    Args:
        path: of the file.
        most: bytes that it may have; any number unless given.

    Raises:
        DataError: it cannot be read, or is larger.
    """
    try:
        with open(path, 'rb') as file:
            content = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from None
    if most is not None and len(content) > most:
        raise DataError(f'{path}: has more than {most >> 20} MB, and should not')
    return content
