"""What a dataset is before it is packed: which images pair up, and which scene each belongs to."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lnca_data.io.images import Image, read_bytes
from lnca_utils.errors import DataError

MAX_NAME = 450  # an LMDB's keys have 511 bytes at most, and the tile's place follows


@dataclass(frozen=True, slots=True)
class Pair:
    """A clean image and, unless it is damaged synthetically, the damaged one of the same scene and size.

    Attributes:
        name: unlike any other's; the first part of the tiles' keys.
        scene: images of one scene stay on one side of the split.
        gt: the clean image.
        lq: the damaged image, or None.
        split: where the dataset's authors put it: train, val or test, or None if they do not say.
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
        name: what a user types.
        title: what people call it.
        layout: how its authors lay it out, in one line.
        pairs: lists it. Called with the folder and with ``choices`` by name.
        choices: command-line options of its own: name → arguments of ``add_argument``.
        synthetic: clean images only, which are corrupted for validation and test; training corrupts its own.
        whole: images are resized as they are rather than cut into tiles.
        tile_pixels: sides of the tiles unless the user says otherwise, in pixels.
        needs_folder: the user has to say where it is.
        split: how it is split unless the user says otherwise.
        max_workers: for how many processes 1 GB of memory is enough (1.5 GB for raw photographs); more are started only
            if the user says so.
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
        """All pairs, those of a scene together, in the same order on every machine.

        Raises:
            DataError: the folder is not such a dataset, two images have one name, or a name is too long.
        """
        if folder is not None and not folder.is_dir():
            raise DataError(f'{folder}: there is no such folder; {self.title} is expected as {self.layout}')
        pairs = sorted(self.pairs(folder, **choices), key=lambda pair: (pair.scene, pair.name))
        if not pairs:
            raise DataError(f'{folder}: no {self.title} there; expected {self.layout}')
        names: set[str] = set()
        for pair in pairs:
            if len(pair.name) > MAX_NAME:
                raise DataError(f'{pair.gt.path}: the name is too long for a key, {len(pair.name)} letters; shorten it')
            if pair.name in names:
                raise DataError(f'{pair.gt.path}: another image would get the same key, {pair.name}; rename one')
            names.add(pair.name)
        return pairs


def key_part(*parts: Any) -> str:
    """Text that can be part of a key: ASCII letters, digits, ``-`` and ``_`` stay, anything else becomes ``_``."""
    return re.sub(r'[^A-Za-z0-9-]+', '_', '_'.join(map(str, parts))).strip('_')


def rows_of(path: Path) -> Iterator[list[str]]:
    """The lines of an authors' list, split at spaces; empty ones are left out.

    Raises:
        DataError: it cannot be read, or a line has fewer than two names.
    """
    text = read_bytes(str(path)).decode('utf-8', errors='replace')
    for number, line in enumerate(text.splitlines(), 1):
        row = line.split()
        if len(row) == 1:
            raise DataError(f'{path}:{number}: expected two names, found {line!r}')
        if row:
            yield row


def inside(folder: Path, name: str) -> str:
    """The path of a file that a list names.

    Raises:
        DataError: it is outside of the folder.
    """
    if Path(name).is_absolute() or '..' in Path(name).parts or '\0' in name:
        raise DataError(f'{folder}: its list names {name!r}, which is outside of the folder')
    return str(folder / name)
