"""CelebA: faces of celebrities, aligned and cropped (Liu et al., 2015)."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, rows_of

PARTITION = 'list_eval_partition.txt'
SPLITS = {'0': 'train', '1': 'val', '2': 'test'}


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    partition = folder / PARTITION
    splits = {row[0]: SPLITS.get(row[1]) for row in rows_of(partition)} if partition.is_file() else {}
    for image in (folder / 'img_align_celeba').glob('*.jpg'):
        yield Pair(name := image.stem, name, ImageFile(str(image)), split=splits.get(image.name))


SOURCE = DatasetSource(
    name='celeba',
    title='CelebA',
    layout=f'img_align_celeba/NNNNNN.jpg and, for --split official, {PARTITION}',
    pairs=pairs,
    synthetic=True,
    whole=True,
)
