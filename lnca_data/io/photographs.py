"""Photographs, read and written with their bit depth, alpha, EXIF block and ICC profile."""

import io
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from lnca_data.io.images import check_size, open_header, read_bytes, to_8_bits
from lnca_utils.atomic import atomic_file
from lnca_utils.errors import DataError, LNCAError, one_line

JPEG, PNG, WEBP, TIFF = ('.jpg', '.jpeg'), ('.png',), ('.webp',), ('.tif', '.tiff')
SUFFIXES = (*JPEG, *PNG, *WEBP, *TIFF)
MAX_PAGES = 16  # of a TIFF: an image and its reduced copies
QUALITY = 95

ORIENTATION, ICC_PROFILE = 274, 34675  # TIFF and EXIF tags
PROFILE_SPACE = slice(16, 20)  # the colour space in an ICC profile
EXIF_PREFIX = b'Exif\0\0'
MAX_JPEG_EXIF = (1 << 16) - 3 - len(EXIF_PREFIX)  # one segment; of a longer block only the orientation is written
DEPTHS = (np.uint8, np.uint16)
JPEG_COMPRESSIONS = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)


@dataclass(frozen=True)
class Photograph:
    """Pixels with their metadata.

    Attributes:
        pixels: ``(H, W, C)`` uint8 or uint16, with C = 1 (grey), 3 (RGB) or 4 (RGBA), as stored: the orientation is
            not applied.
        exif: the EXIF block, which includes the orientation; None if there is none.
        profile: the ICC profile; None if there is none.
    """

    pixels: np.ndarray
    exif: bytes | None = None
    profile: bytes | None = None

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 (upright) to 8."""
        exif = Image.Exif()
        try:
            exif.load(self.exif or b'')
            return _checked_orientation(exif.get(ORIENTATION))
        except Exception:  # Pillow does not document what it raises for a damaged block
            return 1

    def with_pixels(self, pixels: np.ndarray) -> 'Photograph':
        """Return a copy with other pixels."""
        return replace(self, pixels=pixels)

    def upright(self) -> np.ndarray:
        """Return the pixels with the orientation applied."""
        pixels, orientation = self.pixels, self.orientation
        if orientation >= 5:
            pixels = pixels.transpose(1, 0, 2)
        vertically, horizontally = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
        return np.ascontiguousarray(pixels[:: -1 if vertically else 1, :: -1 if horizontally else 1])


def read_photograph(path: Path | str) -> Photograph:
    """Read a PNG, JPEG, WebP or TIFF: grey, RGB or RGBA, 8 or 16 bits per channel, at most 268 megapixels.

    Raises:
        DataError: if the file cannot be read.
    """
    path = str(path)
    data = read_bytes(path)
    suffix = Path(path).suffix.lower()
    pixels, exif, profile = (_read_tiff if suffix in TIFF else _read_with_opencv)(path, data)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    space = b'GRAY' if pixels.shape[-1] == 1 else b'RGB '
    # The profile of a CMYK file does not describe the RGB pixels decoded from it.
    return Photograph(pixels, exif, profile if profile and profile[PROFILE_SPACE] == space else None)


def write_photograph(path: Path | str, photograph: Photograph) -> None:
    """Write a photograph atomically, in the format of the path's suffix.

    PNG and TIFF keep 16 bits, other formats have 8. TIFF keeps only the orientation of the EXIF block, and so does JPEG
    if the block exceeds 64 kB.

    Raises:
        DataError: if the format is unknown, or does not support the photograph's channels.
        OSError: if the file cannot be written.
    """
    check_format(path, photograph.pixels.shape[-1])
    suffix = Path(path).suffix.lower()
    pixels = photograph.pixels if suffix in (*PNG, *TIFF) else to_8_bits(photograph.pixels)
    if suffix in WEBP and pixels.shape[-1] == 1:  # WebP stores grey as RGB, which the profile does not describe
        photograph = replace(photograph, profile=None)
    photograph = photograph.with_pixels(pixels)
    with atomic_file(path) as temporary:
        if suffix in TIFF:
            _write_tiff(temporary, photograph)
        elif suffix in JPEG:
            _write_jpeg(temporary, photograph)
        elif not _write_with_opencv(temporary, photograph):
            raise OSError(f'{path}: cannot be written, encoding failed; the colour profile may be damaged')


def _checked_orientation(value: Any) -> int:
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _exif_of(orientation: int) -> bytes:
    """Return an EXIF block that contains only an orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes().removeprefix(EXIF_PREFIX)


def check_format(path: Path | str, channels: int = 3) -> None:
    """Raise DataError unless a photograph with this number of channels can be written to a path."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f'{path}: cannot write {suffix or "a file without a suffix"}; use {", ".join(SUFFIXES)}')
    if suffix in JPEG and channels == 4:
        raise DataError(f'{path}: a JPEG has no transparency; write PNG, WebP or TIFF')


def _check_header(path: str, data: bytes) -> None:
    try:
        with open_header(data) as image:
            size, frames = image.size, getattr(image, 'n_frames', 1)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f'{path}: not a readable image ({one_line(error).partition("<")[0].strip()})') from None
    if frames > 1:
        raise DataError(f'{path}: holds {frames} pictures; save each by itself')
    check_size(path, *size)


def _check_depth(path: str, pixels: np.ndarray) -> None:
    if pixels.dtype not in DEPTHS:
        raise DataError(f'{path}: pixels are {pixels.dtype}; convert them to 8 or 16 bits per channel')


def _read_with_opencv(path: str, data: bytes) -> tuple[np.ndarray, bytes | None, bytes | None]:
    _check_header(path, data)
    try:
        pixels, kinds, blocks = cv2.imdecodeWithMetadata(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        raise DataError(f'{path}: not a readable image; it may be truncated')
    _check_depth(path, pixels)
    found = {kind: np.asarray(block).tobytes() for kind, block in zip(np.ravel(kinds), blocks, strict=True)}
    return _swap_red_blue(pixels), found.get(cv2.IMAGE_METADATA_EXIF), found.get(cv2.IMAGE_METADATA_ICCP)


def _write_with_opencv(path: Path, photograph: Photograph) -> bool:
    metadata = {cv2.IMAGE_METADATA_EXIF: photograph.exif, cv2.IMAGE_METADATA_ICCP: photograph.profile}
    kinds = [kind for kind, block in metadata.items() if block]
    options = [cv2.IMWRITE_WEBP_QUALITY, QUALITY] if path.suffix.lower() in WEBP else []
    blocks = [np.frombuffer(block, np.uint8) for block in metadata.values() if block]
    # Encode in memory: OpenCV crashes on file names that are not UTF-8.
    done, data = cv2.imencodeWithMetadata(path.suffix, _swap_red_blue(photograph.pixels), kinds, blocks, options)
    if done:
        path.write_bytes(data.tobytes())
    return done


def _write_jpeg(path: Path, photograph: Photograph) -> None:
    # Pillow, since OpenCV fails for profiles longer than one segment.
    pixels, exif = photograph.pixels, photograph.exif or b''
    if len(exif) > MAX_JPEG_EXIF:
        exif = _exif_of(photograph.orientation)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    # 4:2:0 is what OpenCV and cameras use at this quality.
    image.save(
        path, quality=QUALITY, subsampling='4:2:0', exif=exif and EXIF_PREFIX + exif, icc_profile=photograph.profile
    )


def _read_tiff(path: str, data: bytes) -> tuple[np.ndarray, bytes | None, bytes | None]:
    # tifffile, since OpenCV rotates some files, fails for others, and drops the metadata.
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            # Only the first pages: in a damaged file, a page may name itself as the next one.
            pages: list[Any] = list(itertools.islice(file.pages, MAX_PAGES + 1))
            page, others = pages[0], pages[1:]
            # More than four samples per pixel, and depth, count as more pixels.
            check_size(path, page.imagewidth * page.imagedepth * -(-page.samplesperpixel // 4), page.imagelength)
            exceeds_limit = len(others) == MAX_PAGES
            if exceeds_limit or any(not other.is_reduced for other in others):
                count = f'more than {MAX_PAGES}' if exceeds_limit else 1 + len(others)
                raise DataError(f'{path}: holds {count} pictures; save each by itself')
            return _decode_page(path, page)
    except LNCAError:
        raise
    except Exception as error:  # tifffile does not document what it raises for a damaged file
        raise DataError(f'{path}: not a readable image; it may be truncated ({one_line(error)})') from None


def _decode_page(path: str, page: Any) -> tuple[np.ndarray, bytes | None, bytes | None]:
    """Decode a page of a TIFF. Raises anything if the file is damaged."""
    pixels, tags = page.asarray(), {tag.code: tag.value for tag in page.tags}
    bits, photometric, compression = page.bitspersample, page.photometric, page.compression
    pixels = np.moveaxis(pixels, 0, -1) if page.axes.startswith('S') else pixels
    if pixels.dtype != bool:
        _check_depth(path, pixels)
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = ~pixels
    elif photometric not in (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB) and not (
        photometric == tifffile.PHOTOMETRIC.YCBCR and compression in JPEG_COMPRESSIONS  # decoded to RGB
    ):
        raise DataError(f'{path}: a TIFF in {photometric.name} colours; save it as grey or RGB')
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif bits != pixels.dtype.itemsize * 8:
        raise DataError(f'{path}: a TIFF of {bits} bits per channel; save it with 8 or 16')
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if channels == 2:  # grey and alpha
        pixels = pixels[..., [0, 0, 0, 1]]
    elif pixels.ndim > 3 or channels not in (1, 3, 4):
        raise DataError(f'{path}: a TIFF of shape {pixels.shape}; save it as a single grey or RGB image')
    if tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples and pixels.ndim == 3 and pixels.shape[-1] == 4:
        pixels = _unpremultiply(pixels)
    return pixels, _exif_of(_checked_orientation(tags.get(ORIENTATION))), tags.get(ICC_PROFILE)


def _unpremultiply(pixels: np.ndarray) -> np.ndarray:
    """Divide the colours of RGBA pixels by alpha."""
    limit = np.float32(np.iinfo(pixels.dtype).max)
    alpha = pixels[..., 3:].astype(np.float32)
    colours = np.rint(pixels[..., :3] * (limit / np.maximum(alpha, 1)))
    return np.concatenate([np.minimum(colours, limit).astype(pixels.dtype), pixels[..., 3:]], axis=-1)


def _write_tiff(path: Path, photograph: Photograph) -> None:
    pixels = photograph.pixels
    tags: list[tuple[int, str, int, int | bytes, bool]] = [(ORIENTATION, 'H', 1, photograph.orientation, True)]
    if photograph.profile:
        tags.append((ICC_PROFILE, 'B', len(photograph.profile), photograph.profile, True))
    grey = pixels.shape[-1] == 1
    tifffile.imwrite(
        path,
        pixels[..., 0] if grey else pixels,
        photometric='minisblack' if grey else 'rgb',
        extrasamples=['unassalpha'] if pixels.shape[-1] == 4 else None,
        compression='zlib',
        predictor=True,
        extratags=tags,
        metadata=None,
    )


def _swap_red_blue(pixels: np.ndarray) -> np.ndarray:
    """Convert BGR(A) to RGB(A) or back; return grey unchanged."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    if channels < 3:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if channels == 3 else cv2.COLOR_BGRA2RGBA)
