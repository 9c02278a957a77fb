"""From photographs to a packed dataset: tile, shrink, clean, split, corrupt, write."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lnca_arch.errors import InputError
from lnca_data.atomic import whole_folder
from lnca_data.corruption import Corruption, build_corruption
from lnca_data.lmdb_store import write_lmdb
from lnca_data.sheet import write_sheet
from lnca_data.tile_dataset import to_image, to_tensor
from lnca_data.tiles import NearDuplicates, Tile, cut, is_flat

SPLITS = ('train', 'val', 'test')
VALIDATION_SHARE = 0.2
SHEET_PAIRS = 20

Tiles = list[tuple[str, np.ndarray]]  # pairs of a key and a (size, size, 3) uint8 RGB image


@dataclass(frozen=True)
class Photograph:
    """A photograph, loaded when its turn comes as ``(H, W, 3)`` uint8 RGB. Test photographs are never trained on."""

    name: str
    load: Callable[[], np.ndarray]
    is_test: bool


@dataclass(frozen=True)
class PackingOptions:
    """How photographs become tiles.

    Attributes:
        corruption: options of :func:`build_corruption` for the validation and test pairs.
        tile_pixels: sides of the tiles in the photograph, in pixels; one patchwork for each.
        tile_size: side of a packed tile, in pixels.
        flat_threshold: tiles whose standard deviation (0 … 255) is below it are dropped.
        duplicate_threshold: tiles of a photograph whose root-mean-square difference (0 … 255) to an earlier one is
            at most this are dropped.
        seed: of the corruption.
    """

    corruption: Mapping[str, Any]
    tile_pixels: Sequence[int] = (32, 64)
    tile_size: int = 32
    flat_threshold: float = 4.0
    duplicate_threshold: float = 2.0
    seed: int = 0


@dataclass
class Summary:
    """What was packed; written beside the LMDBs as ``summary.json``."""

    options: PackingOptions
    photographs: dict[str, str] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: {'flat': 0, 'near-duplicate': 0})
    content_hash: str = ''


def pack(photographs: Sequence[Photograph], output: Path | str, options: PackingOptions, overwrite: bool) -> Summary:
    """Pack photographs into ``{train,val,test}_gt.lmdb``, ``{val,test}_lq.lmdb``, a summary and a contact sheet.

    Training tiles are clean, since training corrupts them anew each time. Validation tiles are those of the bottom
    fifth of the training photographs, the same rows in every photograph of a scene.

    Args:
        photographs: what to pack.
        output: a folder; nothing is left there unless everything was packed.
        options: how.
        overwrite: replace ``output`` if it exists.

    Raises:
        InputError: ``output`` exists, or an option makes no sense.
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise InputError(f'{output} exists; use --overwrite to replace it, or another --output')
    if options.tile_size < 1 or len(set(options.tile_pixels)) < len(options.tile_pixels):
        raise InputError(
            f'tile size {options.tile_size}, tile pixels {list(options.tile_pixels)}: '
            'the size must be at least 1, and each number of pixels may stand there once'
        )
    if min(options.tile_pixels) < options.tile_size:
        raise InputError(f'tiles of {min(options.tile_pixels)} pixels cannot be shrunk to {options.tile_size}')
    corruption = build_corruption(options.corruption)
    summary = Summary(options)
    tiles: dict[str, Tiles] = {split: [] for split in SPLITS}
    for photograph in tqdm(photographs, desc='cutting', unit='photograph'):
        image = photograph.load()
        summary.photographs[photograph.name] = 'test' if photograph.is_test else 'train'
        for tile in _clean(image, options, summary.dropped):
            split = _split(photograph, tile, image.shape[0], math.lcm(*options.tile_pixels))
            tiles[split].append((f'{photograph.name}_{tile.side}px_y{tile.top:04d}_x{tile.left:04d}', tile.image))
    for split in SPLITS:
        if not tiles[split]:
            raise InputError(f'no {split} tile is left: use smaller --tile-pixels or a lower --flat-threshold')
        summary.tiles[split] = len(tiles[split])

    with whole_folder(output) as folder:
        generator = torch.Generator().manual_seed(options.seed)
        digest = hashlib.sha256()
        for split in tqdm(SPLITS, desc='writing', unit='split'):
            sides = {'gt': tiles[split]}
            if split != 'train':
                sides['lq'] = [(key, _corrupt(image, corruption, generator)) for key, image in tiles[split]]
            for side, images in sides.items():
                write_lmdb(folder / f'{split}_{side}.lmdb', images)
                for key, image in images:
                    digest.update(f'{split}_{side}/{key}'.encode() + image.tobytes())
        summary.content_hash = digest.hexdigest()
        (folder / 'summary.json').write_text(json.dumps(asdict(summary), indent=2) + '\n')
        _contact_sheet(folder, sides['gt'], sides['lq'])
    return summary


def _clean(image: np.ndarray, options: PackingOptions, dropped: dict[str, int]) -> Iterator[Tile]:
    for side in options.tile_pixels:
        duplicates = NearDuplicates(options.duplicate_threshold)
        for tile in cut(image, side, options.tile_size):
            if is_flat(tile.image, options.flat_threshold):
                dropped['flat'] += 1
            elif duplicates.repeats(tile.image):
                dropped['near-duplicate'] += 1
            else:
                yield tile


def _split(photograph: Photograph, tile: Tile, height: int, grid: int) -> str:
    if photograph.is_test:
        return 'test'
    # Where a tile ends whatever its side, so that none reaches across the border.
    border = int((1 - VALIDATION_SHARE) * height) // grid * grid
    return 'val' if tile.top >= border else 'train'


def _corrupt(image: np.ndarray, corruption: Corruption, generator: torch.Generator) -> np.ndarray:
    return to_image(corruption(to_tensor(image)[None], generator=generator)[0])


def _contact_sheet(folder: Path, gt: Tiles, lq: Tiles) -> None:
    chosen = range(0, len(gt), max(1, len(gt) // SHEET_PAIRS))[:SHEET_PAIRS]
    columns = {'corrupted': [lq[index][1] for index in chosen], 'clean': [gt[index][1] for index in chosen]}
    write_sheet(folder / 'contact_sheet.png', columns)
