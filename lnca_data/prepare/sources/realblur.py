"""RealBlur: sharp and blurred photographs taken at once by two cameras (Rim et al., 2020)."""

from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import ImageFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, inside, key_part, rows_of


def pairs(folder: Path, variant: str) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for split in ('train', 'test'):
        list_file = folder / f'RealBlur_{variant}_{split}_list.txt'
        if not list_file.is_file():
            continue
        for gt, blur, *_ in rows_of(list_file):
            scene = Path(gt).parent.parent.name
            yield Pair(
                name=key_part(variant, scene, Path(blur).stem),
                scene=scene,
                gt=ImageFile(inside(folder, gt)),
                lq=ImageFile(inside(folder, blur)),
                split=split,
            )


SOURCE = DatasetSource(
    name='realblur',
    title='RealBlur',
    layout=(
        'RealBlur_{J,R}_{train,test}_list.txt and the folders that they name, such as '
        'RealBlur-J_ECC_IMCORR_centroid_itensity_ref/sceneNNN/{gt,blur}/*.png'
    ),
    pairs=pairs,
    choices={
        'variant': {
            'choices': ['J', 'R'],
            'default': 'J',
            'help': "the camera's JPEGs, or images developed from its raw files (%(default)s)",
        }
    },
)
