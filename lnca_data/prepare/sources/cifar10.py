"""CIFAR-10: 60,000 images of 32×32 pixels (Krizhevsky, 2009), in the python or the binary version."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.prepare.dataset_source import DatasetSource, Pair
from lnca_data.prepare.sources.cifar_files import CifarImage, archive_members, cifar_batch
from lnca_utils.errors import DataError

FOLDERS = {'cifar-10-batches-py': '', 'cifar-10-batches-bin': '.bin'}  # folder → suffix of its files
ARCHIVES = ('cifar-10-python.tar.gz', 'cifar-10-binary.tar.gz')
BATCHES = {**{f'data_batch_{number}': 'train' for number in range(1, 6)}, 'test_batch': 'test'}


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    missing = []
    for batch, split in BATCHES.items():
        path, member = find(folder, batch)
        if not path:
            missing.append(batch)
            continue
        for index in range(len(cifar_batch(path, member))):
            name = f'{batch}_{index:05d}'
            yield Pair(name, name, CifarImage(path, index, member), split=split)
    if 0 < len(missing) < len(BATCHES):
        raise DataError(f'{folder}: {", ".join(missing)} missing; expected {SOURCE.layout}')


def find(folder: Path, batch: str) -> tuple[str, str]:
    """Return ``path`` and ``member`` of a batch as in :class:`CifarImage`; two empty strings if it is missing.

    Args:
        folder: folder of the dataset, or of the batches themselves.
        batch: name of the batch.
    """
    for name, suffix in FOLDERS.items():
        for parent in (folder / name, folder):
            if parent.resolve().name == name and (parent / f'{batch}{suffix}').is_file():
                return str(parent / f'{batch}{suffix}'), ''
    for archive, (name, suffix) in zip(ARCHIVES, FOLDERS.items(), strict=True):
        member = f'{name}/{batch}{suffix}'
        if (folder / archive).is_file() and member in archive_members(folder / archive):
            return str(folder / archive), member
    return '', ''


SOURCE = DatasetSource(
    name='cifar10',
    title='CIFAR-10',
    layout=(
        'cifar-10-batches-py/{data_batch_1 … 5,test_batch}, '
        f'or cifar-10-batches-bin with the same and .bin, or {" or ".join(ARCHIVES)}'
    ),
    pairs=pairs,
    synthetic=True,
    whole=True,
)
