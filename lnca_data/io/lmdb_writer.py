"""Writing of BasicSR-format LMDBs: folders ``NAME.lmdb`` with PNG images in ``data.mdb`` and ``meta_info.txt``."""

import contextlib
import errno
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import lmdb
import numpy as np

from lnca_data.io.lmdb_verification import META_INFO

# Uncompressed PNGs encode and decode twice as fast, and a tile of 32×32 fits into one LMDB page either way.
PNG_COMPRESSION = 0
ENCODING = [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
BATCH = 1000  # images in a transaction
BATCH_BYTES = 16 << 20
PAGE, ENTRY = 4096, 100  # bytes; an image takes whole pages, and about ENTRY in the index
FIRST_MAP_SIZE = 64 << 20


def encode_png(image: np.ndarray) -> bytes:
    """Encode an image ``(H, W, 3)`` uint8 RGB as a PNG file."""
    encoded, png = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ENCODING)
    if not encoded:
        raise RuntimeError('OpenCV cannot encode PNGs')
    return png.tobytes()


def write_lmdb(path: Path | str, images: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write images to a new LMDB.

    Args:
        path: a folder that does not exist; its name ends in ``.lmdb``.
        images: pairs of a key (ASCII without dots) and an image ``(H, W, 3)`` uint8 RGB.

    Returns:
        The number of images.

    Raises:
        OSError: if the LMDB cannot be written.
    """
    count = 0
    with LmdbWriter(path) as writer:
        for key, image in images:
            writer.put(key, encode_png(image), image.shape)
            count += 1
    return count


class LmdbWriter:
    """Context manager that writes PNG files to a new LMDB.

    Args:
        path: a folder that does not exist; its name ends in ``.lmdb``.

    Attributes:
        bytes: approximate size of the images on disk so far.

    Raises:
        OSError: if the LMDB cannot be written; raised by all methods.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True)
        # Nothing is read before close() flushes the file, so transactions need not wait for the disk.
        try:
            self._environment = lmdb.open(str(self.path), map_size=FIRST_MAP_SIZE, sync=False)
        except lmdb.Error as error:
            raise _write_error(self.path, error) from None
        self._meta_info = open(self.path / META_INFO, 'w', encoding='ascii')  # noqa: SIM115  closed by close()
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self.bytes = 0

    def __enter__(self) -> 'LmdbWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(commit=kind is None)

    def put(self, key: str, png: bytes, shape: tuple[int, int, int]) -> None:
        """Add an image.

        Args:
            key: ASCII without dots.
            png: content of the PNG file.
            shape: height, width and channels.
        """
        height, width, channels = shape
        self._meta_info.write(f'{key}.png ({height},{width},{channels}) {PNG_COMPRESSION}\n')
        self._batch.append((key.encode('ascii'), png))
        self._batch_bytes += len(png)
        self.bytes += -(-len(png) // PAGE) * PAGE + ENTRY
        if len(self._batch) == BATCH or self._batch_bytes >= BATCH_BYTES:
            self._commit()

    def close(self, commit: bool = True) -> None:
        """Close the files.

        Args:
            commit: whether to write the last batch and flush everything to disk; if not, the LMDB is incomplete.
        """
        try:
            if commit:
                self._commit()
                self._environment.sync(True)
                self._meta_info.flush()
                os.fsync(self._meta_info.fileno())
        except lmdb.Error as error:
            raise _write_error(self.path, error) from None
        finally:
            self._environment.close()
            with contextlib.suppress(OSError):  # a full disk has been reported already
                self._meta_info.close()

    def _commit(self) -> None:
        """Write the batch, doubling the map until it fits."""
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in self._batch:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(2 * self._environment.info()['map_size'])
            except lmdb.Error as error:
                raise _write_error(self.path, error) from None
        self._batch = []
        self._batch_bytes = 0


def _write_error(path: Path, error: lmdb.Error) -> OSError:
    # lmdb reports a full disk as "Input/output error", too.
    return OSError(errno.EIO, f'{error}; the disk may be full', str(path))
