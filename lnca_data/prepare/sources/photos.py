"""Colour photographs bundled with scikit-image and scikit-learn: enough to train and evaluate a small network."""

from collections.abc import Iterator

from lnca_data.io.images import BundledPhoto
from lnca_data.prepare.dataset_source import DatasetSource, Pair

TRAINING = {
    'astronaut': 'astronaut',
    'coffee': 'coffee',
    'rocket': 'rocket',
    'retina': 'retina',
    'hubble_deep_field': 'hubble_deep_field',
    'motorcycle_left': 'stereo_motorcycle/0',
    'motorcycle_right': 'stereo_motorcycle/1',
}
TEST = {'chelsea': 'chelsea', 'china': 'china.jpg', 'flower': 'flower.jpg'}
# Seven photographs are too few to set some aside for validation; their bottom fifths are used instead. The border is a
# multiple of the tile sides, 32 and 64 pixels.
BORDER, ROWS = 0.8, 64


def pairs(_: None) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for name, data in TRAINING.items():
        scene = name.partition('_')[0] if name.startswith('motorcycle') else name  # a stereo pair
        yield Pair(f'{name}_top', scene, BundledPhoto(data, last=BORDER, rows=ROWS), split='train')
        yield Pair(f'{name}_bottom', scene, BundledPhoto(data, first=BORDER, rows=ROWS), split='val')
    for name, data in TEST.items():
        yield Pair(name, name, BundledPhoto(data), split='test')


SOURCE = DatasetSource(
    name='photos',
    title='colour photographs of scikit-image and scikit-learn, three of them held out for the test',
    layout='nothing, they are installed',
    pairs=pairs,
    synthetic=True,
    tile_pixels=(32, 64),
    needs_folder=False,
    split='official',
)
