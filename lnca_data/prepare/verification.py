"""Verification of packed datasets."""

import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lnca_data.io.lmdb_store import TileStore, check_same_keys
from lnca_data.io.lmdb_verification import META_INFO
from lnca_data.prepare.extraction import pixel_digest
from lnca_data.prepare.packing import SUMMARY, content_hash, entry_bytes
from lnca_data.prepare.split import SPLITS
from lnca_utils.errors import DataError


def verify(folder: Path) -> dict[str, int]:
    """Check every tile of a packed dataset, its pairs and its hash against its summary.

    Args:
        folder: the packed dataset.

    Returns:
        Split → number of tiles.

    Raises:
        DataError: if something is missing, damaged, or not what was packed.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding='utf-8'))
        hashes, tiles = dict(summary['hashes']), dict(summary['tiles'])
        counts = {name: int(tiles[name.split('_')[0]]) for name in hashes}
        size = int(summary['options']['tiling']['size'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{folder / SUMMARY}: cannot be read ({error!r}); was this packed by prepare.py?') from None
    required, known = ({f'{split}_{side}' for split in SPLITS for side in sides} for sides in (('gt',), ('gt', 'lq')))
    if not required <= hashes.keys() <= known:
        raise DataError(f'{folder / SUMMARY}: lists other LMDBs than prepare.py writes; pack it again')
    found = {path.name.removesuffix('.lmdb') for path in folder.glob('*.lmdb')}
    if found != hashes.keys():
        name = min(found ^ hashes.keys())
        raise DataError(f'{folder / name}.lmdb: {"not in the summary" if name in found else "missing"}; pack it again')
    stores = {}
    with tqdm(total=sum(counts.values()), desc='checking', unit='tile') as bar:
        for name, expected in hashes.items():
            stores[name] = TileStore(folder / f'{name}.lmdb', use_cache=False)
            if _hash(stores[name], counts[name], size, bar) != expected:
                raise DataError(f'{folder / name}.lmdb: not the packed tiles, the hash differs; pack it again')
    for split in SPLITS:
        if f'{split}_lq' in hashes:
            check_same_keys(stores[f'{split}_gt'], stores[f'{split}_lq'])
    keys = np.concatenate([stores[f'{split}_gt'].key_array for split in SPLITS])
    if len(np.unique(keys)) < len(keys):
        raise DataError(f'{folder}: a tile is in two splits; pack it again')
    if content_hash(hashes) != summary.get('content_hash'):
        raise DataError(f'{folder / SUMMARY}: content_hash is not that of the hashes; pack it again')
    return {split: counts[f'{split}_gt'] for split in SPLITS}


def _hash(store: TileStore, count: int, size: int, bar: tqdm) -> str:
    """Check the number and sizes of the tiles of an LMDB, and return its hash."""
    path = Path(store.path)
    if len(store) != count:
        raise DataError(f'{path}: {len(store)} tiles, the summary says {count}; pack it again')
    digest = hashlib.sha256()
    with open(path / META_INFO, encoding='ascii') as meta_info:
        for line in meta_info:
            key, shape = line.split('.png ')[0], line.split('(')[-1].split(')')[0]
            image = store[key]
            if image.shape != (size, size, 3) or shape != f'{size},{size},3':
                raise DataError(
                    f'{path}: {key} has shape {image.shape}, {META_INFO} lists ({shape}), expected {size}×{size}; '
                    'pack it again'
                )
            digest.update(entry_bytes(key, pixel_digest(image)))
            bar.update()
    return digest.hexdigest()
