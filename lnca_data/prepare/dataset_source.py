"""Datasets before packing: their image pairs and the scene of each pair."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lnca_data.io.images import Image, read_bytes
from lnca_utils.errors import DataError

MAX_NAME = 450  # LMDB keys have at most 511 bytes, and the tile's position follows


@dataclass(frozen=True, slots=True)
class Pair:
    """A ground-truth image and the corrupted image of the same scene and size.

    Attributes:
        name: unique name; the keys of the tiles start with it.
        scene: name of its scene; by default all images of a scene belong to one split.
        gt: the ground truth.
        lq: the corrupted image; None if images are corrupted synthetically.
        split: the authors' split: ``train``, ``val`` or ``test``; None if they define none.
    """

    name: str
    scene: str
    gt: Image
    lq: Image | None = None
    split: str | None = None


@dataclass(frozen=True)
class DatasetSource:
    """A kind of dataset that can be packed.

    Attributes:
        name: name on the command line.
        title: name in messages.
        layout: expected files, on one line.
        pairs: function that lists the pairs, called with the folder and the values of ``choices`` as keywords.
        choices: additional command-line options: name → arguments of ``add_argument``.
        synthetic: whether there are only clean images. Those for validation and test are corrupted when packed, those
            for training by the model.
        whole: whether to resize whole images instead of cutting tiles.
        tile_pixels: default sides of the tiles, in pixels.
        needs_folder: whether the command line needs ``--source``.
        split: default split method.
        max_workers: limit of the default number of processes, which keeps them within 1 GB of memory (1.5 GB for raw
            photographs).
    """

    name: str
    title: str
    layout: str
    pairs: Callable[..., Iterable[Pair]]
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    synthetic: bool = False
    whole: bool = False
    tile_pixels: tuple[int, ...] = (128,)
    needs_folder: bool = True
    split: str = 'scene'
    max_workers: int = 16

    def list(self, folder: Path | None, **choices: Any) -> list[Pair]:
        """Return all pairs, sorted by scene and name.

        Args:
            folder: the dataset; None if it needs no folder.
            choices: values of :attr:`choices`.

        Raises:
            DataError: if the folder does not contain the dataset, or a name is too long or not unique.
        """
        if folder is not None and not folder.is_dir():
            raise DataError(f'{folder}: no such folder; {self.title} is expected as {self.layout}')
        pairs = sorted(self.pairs(folder, **choices), key=lambda pair: (pair.scene, pair.name))
        if not pairs:
            raise DataError(f'{folder}: no {self.title} there; expected {self.layout}')
        names: set[str] = set()
        for pair in pairs:
            if len(pair.name) > MAX_NAME:
                raise DataError(f'{pair.gt.path}: a name of {len(pair.name)} letters is too long for a key; shorten it')
            if pair.name in names:
                raise DataError(f'{pair.gt.path}: another image has the same key, {pair.name}; rename one')
            names.add(pair.name)
        return pairs


def key_part(*parts: Any) -> str:
    """Join parts with ``_`` to a part of a key, and replace all but ASCII letters, digits and ``-`` by ``_``."""
    return re.sub(r'[^A-Za-z0-9-]+', '_', '_'.join(map(str, parts))).strip('_')


def rows_of(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a dataset's file list, split at whitespace, without empty lines.

    Raises:
        DataError: if the file cannot be read, or a line has fewer than two names.
    """
    text = read_bytes(str(path)).decode('utf-8', errors='replace')
    for number, line in enumerate(text.splitlines(), 1):
        row = line.split()
        if len(row) == 1:
            raise DataError(f'{path}:{number}: expected two names, found {line!r}')
        if row:
            yield row


def inside(folder: Path, name: str) -> str:
    """Return the path of a file that a file list names.

    Raises:
        DataError: if it is outside the folder.
    """
    if Path(name).is_absolute() or '..' in Path(name).parts or '\0' in name:
        raise DataError(f'{folder}: its list names {name!r}, which is outside the folder; download the list again')
    return str(folder / name)
