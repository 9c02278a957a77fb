"""Pairs of your own: a folder of clean images and one of damaged images with the same names."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile, RawFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, key_part
from lnca_utils.errors import DataError

FORMATS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
RAW_FORMATS = ('.arw', '.cr2', '.cr3', '.dng', '.nef', '.orf', '.raf', '.rw2')


def pairs(_: None, gt: Path, lq: Path) -> Iterator[Pair]:
    clean, damaged = listing(gt), listing(lq)
    stray = sorted(clean.keys() ^ damaged.keys())
    if stray:
        side, other = (gt, lq) if stray[0] in clean else (lq, gt)
        raise DataError(
            f'{side / stray[0]}.*: no image of that name in {other} ({len(stray)} images have no partner); '
            f'expected {SOURCE.layout}'
        )
    for name in clean:
        folder = Path(name).parent
        # Images in a subfolder belong together; one that is in none stands for itself.
        scene = name if folder == Path() else str(folder)
        yield Pair(key_part(name), key_part(scene), image_file(clean[name]), image_file(damaged[name]))


def listing(folder: Path) -> dict[str, Path]:
    """The images below a folder, by their path in it without suffix.

    Raises:
        DataError: there is no such folder, no image in it, or two of one name.
    """
    images: dict[str, Path] = {}
    for path in sorted(folder.rglob('*')):
        if path.suffix.lower() in FORMATS + RAW_FORMATS and not is_hidden(path.relative_to(folder)):
            name = str(path.relative_to(folder).with_suffix(''))
            if name in images:
                raise DataError(f'{path}: there is {images[name].name}, too; keep one of the two')
            images[name] = path
    if not images:
        raise DataError(f'{folder}: no images there; expected {SOURCE.layout}')
    return images


def is_hidden(path: Path) -> bool:
    return any(part.startswith('.') for part in path.parts)


def image_file(path: Path) -> ImageFile | RawFile:
    return (RawFile if path.suffix.lower() in RAW_FORMATS else ImageFile)(str(path))


SOURCE = DatasetSource(
    name='pairs',
    title='pairs of your own',
    layout='images of the same names below --gt and --lq; those in one subfolder are one scene',
    pairs=pairs,
    choices={
        'gt': {'type': Path, 'required': True, 'help': 'folder of clean images'},
        'lq': {'type': Path, 'required': True, 'help': 'folder of damaged images with the same names'},
    },
    needs_folder=False,
    max_workers=4,
)
