"""See-in-the-Dark: raw photographs with short and long exposure (Chen et al., 2018)."""

import re
from collections.abc import Iterator
from pathlib import Path

from lnca_data.io.images import RawFile
from lnca_data.prepare.dataset_source import DatasetSource, Pair, inside, key_part, rows_of
from lnca_utils.errors import DataError

CAMERAS = ('Sony', 'Fuji')
MAX_RATIO = 300  # of the exposures, as in the authors' code


def pairs(folder: Path, cameras: list[str] | None) -> Iterator[Pair]:
    """Yield the pairs of the dataset."""
    for camera in cameras or CAMERAS:
        lists = [folder / f'{camera}_{split}_list.txt' for split in ('train', 'val', 'test')]
        if cameras and not any(file.is_file() for file in lists):
            raise DataError(f'{folder}: no {camera} there; expected {SOURCE.layout}')
        for file in lists:
            for short, long, *_ in rows_of(file) if file.is_file() else ():
                ratio = min(exposure(long) / exposure(short), MAX_RATIO)
                yield Pair(
                    name=key_part(camera, Path(short).stem),
                    scene=f'{camera}_{Path(short).name.partition("_")[0]}',
                    gt=RawFile(inside(folder, long)),
                    lq=RawFile(inside(folder, short), brightness=ratio),
                    split=file.name.split('_')[1],
                )


def exposure(name: str) -> float:
    """Return the exposure in a file name such as ``00001_00_0.04s.ARW``, in seconds.

    Raises:
        DataError: if the name contains none.
    """
    found = re.search(r'_(\d+(?:\.\d+)?)s\.\w+$', name)
    if not found or not float(found[1]):
        raise DataError(f'{name}: no exposure in the name; expected a name like 00001_00_0.04s.ARW')
    return float(found[1])


SOURCE = DatasetSource(
    name='sid',
    title='SID',
    layout='{Sony,Fuji}_{train,val,test}_list.txt and {Sony,Fuji}/{short,long}/NNNNN_NN_EXPOSUREs.{ARW,RAF}',
    pairs=pairs,
    choices={'cameras': {'nargs': '+', 'choices': CAMERAS, 'help': 'default: those in the folder'}},
    max_workers=3,
)
