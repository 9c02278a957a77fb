"""TinyImageNet: 120,000 images of 64×64 pixels in 200 classes (Le and Yang, 2015)."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair

PATTERNS = {'train': 'train/n*/images/*.JPEG', 'val': 'val/images/*.JPEG', 'test': 'test/images/*.JPEG'}


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for split, pattern in PATTERNS.items():
        for image in folder.glob(pattern):
            yield Pair(name := image.stem, name, ImageFile(str(image)), split=split)


SOURCE = DatasetSource(
    name='tinyimagenet',
    title='TinyImageNet',
    layout='train/nNNNNNNNN/images/*.JPEG, val/images/*.JPEG and test/images/*.JPEG',
    pairs=pairs,
    synthetic=True,
    whole=True,
)
