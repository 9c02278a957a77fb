"""Your own pairs: a folder of clean and one of corrupted images with the same names."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile, RawFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, key_part
from lnca_utils.errors import DataError

FORMATS = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
RAW_FORMATS = ('.arw', '.cr2', '.cr3', '.dng', '.nef', '.orf', '.raf', '.rw2')


def pairs(_: None, gt: Path, lq: Path) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    gt_images, lq_images = list_images(gt), list_images(lq)
    unpaired = sorted(gt_images.keys() ^ lq_images.keys())
    if unpaired:
        side, other = (gt, lq) if unpaired[0] in gt_images else (lq, gt)
        raise DataError(
            f'{side / unpaired[0]}.*: no image of that name in {other} ({len(unpaired)} images have no partner); '
            f'expected {SOURCE.layout}'
        )
    for name, image in gt_images.items():
        folder = Path(name).parent
        # The images of a subfolder are one scene; outside of subfolders, each image is a scene of its own.
        scene = name if folder == Path() else str(folder)
        yield Pair(key_part(name), key_part(scene), image, lq_images[name])


def list_images(folder: Path) -> dict[str, ImageFile | RawFile]:
    """Return the images below a folder, without hidden files: relative path without suffix → image.

    Raises:
        DataError: if there are no images, or two of one name.
    """
    images: dict[str, ImageFile | RawFile] = {}
    for path in sorted(folder.rglob('*')):
        relative, suffix = path.relative_to(folder), path.suffix.lower()
        if suffix in FORMATS + RAW_FORMATS and not any(part.startswith('.') for part in relative.parts):
            name = str(relative.with_suffix(''))
            if name in images:
                raise DataError(f'{path}: there is {Path(images[name].path).name}, too; keep one of the two')
            images[name] = (RawFile if suffix in RAW_FORMATS else ImageFile)(str(path))
    if not images:
        raise DataError(f'{folder}: no images there; expected {SOURCE.layout}')
    return images


SOURCE = DatasetSource(
    name='pairs',
    title='your own pairs',
    layout='images of the same names below --gt and --lq; those in one subfolder are one scene',
    pairs=pairs,
    choices={
        'gt': {'type': Path, 'required': True, 'help': 'folder of clean images'},
        'lq': {'type': Path, 'required': True, 'help': 'folder of corrupted images with the same names'},
    },
    needs_folder=False,
    max_workers=4,
)
