"""Images of datasets, as picklable objects that a worker process reads later."""

import contextlib
import io
import os
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import PIL.Image

from lnca_utils.atomic import atomic_file
from lnca_utils.errors import DataError, one_line

MAX_PIXELS = 1 << 28


class Image(Hashable, Protocol):
    """An image that has not been read yet."""

    @property
    def path(self) -> str:
        """The file that contains it."""

    def read(self) -> np.ndarray:
        """Return the image: ``(H, W, 3)`` RGB, uint8 or uint16.

        Raises:
            DataError: if it cannot be read.
        """

    def stored_bytes(self) -> int:
        """Return its approximate size on disk, in bytes.

        Raises:
            OSError: if there is no such file.
        """


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file in a format that OpenCV decodes, such as PNG, JPEG, BMP, TIFF or WebP.

    Grey images become RGB; alpha is dropped.
    """

    path: str

    def read(self) -> np.ndarray:
        """Return the image, see :meth:`Image.read`."""
        content = read_bytes(self.path)
        size = (0, 0)
        # Pillow knows fewer formats than OpenCV.
        with contextlib.suppress(OSError, ValueError, SyntaxError), open_header(content) as header:
            size = header.size
        check_size(self.path, *size)
        data = np.frombuffer(content, np.uint8)
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data.size else None
        except cv2.error:  # OpenCV refuses images above its own size limit
            image = None
        if image is None:
            raise DataError(f'{self.path}: not a readable image; it may be truncated')
        if image.dtype not in (np.uint8, np.uint16):
            raise DataError(f'{self.path}: pixels are {image.dtype}; convert them to 8 or 16 bits per channel')
        # OpenCV ignores IMREAD_COLOR_RGB for 16-bit TIFFs.
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def stored_bytes(self) -> int:
        """Return the approximate size on disk, in bytes."""
        return os.stat(self.path).st_size


@dataclass(frozen=True, slots=True)
class RawFile:
    """A camera's raw file, developed by LibRaw to 16-bit sRGB with the camera's white balance and no auto-brightness.

    Args:
        path: the file.
        brightness: factor on the linear values, before the tone curve.
    """

    path: str
    brightness: float = 1.0

    def read(self) -> np.ndarray:
        """Return the image, see :meth:`Image.read`."""
        import rawpy

        try:
            with rawpy.imread(self.path) as raw:
                return raw.postprocess(
                    use_camera_wb=True,
                    no_auto_bright=True,
                    adjust_maximum_thr=0,  # otherwise the brightest pixel sets the white level
                    output_bps=16,
                    bright=self.brightness,
                )
        except (rawpy.LibRawError, OSError) as error:
            raise DataError(f'{self.path}: not a readable raw file ({one_line(error)})') from None

    def stored_bytes(self) -> int:
        """Return the approximate size on disk, in bytes."""
        return os.stat(self.path).st_size


@dataclass(frozen=True, slots=True)
class BundledPhoto:
    """Rows of a photograph bundled with scikit-image or scikit-learn.

    Args:
        path: name in ``skimage.data``, with an index for stereo pairs (``stereo_motorcycle/0``); or file in
            ``sklearn.datasets`` (``china.jpg``).
        first, last: where the rows start and end, as fractions of the height.
        rows: start and end are rounded down to a multiple of this, in pixels.
    """

    path: str
    first: float = 0.0
    last: float = 1.0
    rows: int = 1

    def read(self) -> np.ndarray:
        """Return the image, see :meth:`Image.read`."""
        name, _, number = self.path.partition('/')
        if name.endswith('.jpg'):
            from sklearn.datasets import load_sample_image

            image = load_sample_image(name).copy()  # PyTorch warns about arrays that are not writable
        else:
            from skimage import data

            image = getattr(data, name)()
        image = image[int(number)] if number else image
        top, bottom = (
            len(image) if fraction == 1 else int(fraction * len(image)) // self.rows * self.rows
            for fraction in (self.first, self.last)
        )
        return image[top:bottom]

    def stored_bytes(self) -> int:
        """Return the approximate size on disk, in bytes."""
        return 1 << 20


@contextlib.contextmanager
def open_header(data: bytes) -> Iterator[PIL.Image.Image]:
    """Open an image without decoding it, so that its size can be checked first.

    A small file can claim any size.

    Raises:
        OSError, ValueError, SyntaxError: if Pillow cannot read the header.
    """
    limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None  # check_size replaces Pillow's limit
    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            yield image
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def check_size(path: str, width: int, height: int) -> None:
    """Raise DataError if an image has more than :data:`MAX_PIXELS` pixels, 268 million."""
    if width * height > MAX_PIXELS:
        raise DataError(f'{path}: {width:,}×{height:,} pixels exceed the limit of {MAX_PIXELS:,}; cut it into parts')


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """Convert uint16 to uint8 with rounding; return uint8 unchanged."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8) if image.dtype == np.uint16 else image


def write_image(path: Path | str, image: np.ndarray) -> None:
    """Write an image atomically, in the format of the path's suffix.

    Args:
        path: file to write.
        image: ``(H, W)`` grey or ``(H, W, 3)`` BGR.

    Raises:
        OSError: if the file cannot be written.
    """
    done, encoded = cv2.imencode(Path(path).suffix, image)
    if not done:
        raise OSError(f'{path}: OpenCV cannot encode an image of shape {image.shape}')
    with atomic_file(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """Return the content of a file.

    Args:
        path: the file.
        limit: largest accepted size, in bytes; None for any size.

    Raises:
        DataError: if the file cannot be read, or is larger.
    """
    try:
        with open(path, 'rb') as file:
            content = file.read(-1 if limit is None else limit + 1)
    except OSError as error:
        raise DataError(f'{path}: cannot be read ({error.strerror})') from None
    if limit is not None and len(content) > limit:
        raise DataError(f'{path}: larger than {limit >> 20} MB; not a file of this dataset')
    return content
