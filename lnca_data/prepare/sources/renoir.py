"""Renoir: aligned photographs with low noise and with the noise of low light (Anaya and Barbu, 2018)."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, key_part

CAMERAS = ('Mi3', 'T3i', 'S90')


def pairs(folder: Path) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for camera in CAMERAS:
        for batch in (folder / f'{camera}_Aligned').glob('Batch_*'):
            references = sorted(batch.glob('*Reference.bmp'))
            for noisy in batch.glob('*Noisy.bmp') if references else ():
                yield Pair(
                    name=key_part(camera, batch.name, noisy.stem),
                    scene=f'{camera}_{batch.name}',
                    gt=ImageFile(str(references[0])),
                    lq=ImageFile(str(noisy)),
                )


SOURCE = DatasetSource(
    name='renoir',
    title='Renoir',
    layout='{Mi3,T3i,S90}_Aligned/Batch_NNN/ with a *Reference.bmp and one or more *Noisy.bmp',
    pairs=pairs,
    max_workers=4,
)
