"""GoPro: sharp video frames, and averages of successive frames as blurred ones (Nah et al., 2017)."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, key_part


def pairs(folder: Path, blur: str) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for sharp in folder.glob('*/GOPR*/sharp/*.png'):
        sequence = sharp.parent.parent
        if sequence.parent.name in ('train', 'test'):
            yield Pair(
                name=key_part(sequence.name, sharp.stem),
                # Sequences of one recording show one place, such as GOPR0384_11_00 and GOPR0384_11_01.
                scene=sequence.name.partition('_')[0],
                gt=ImageFile(str(sharp)),
                lq=ImageFile(str(sequence / blur / sharp.name)),
                split=sequence.parent.name,
            )


SOURCE = DatasetSource(
    name='gopro',
    title='GoPro',
    layout='{train,test}/GOPRxxxx_xx_xx/{blur,blur_gamma,sharp}/NNNNNN.png',
    pairs=pairs,
    choices={
        'blur': {
            'choices': ['blur', 'blur_gamma'],
            'default': 'blur',
            'help': 'frames averaged in gamma space, or in linear light (%(default)s)',
        }
    },
)
