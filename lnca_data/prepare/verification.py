"""Check a packed dataset: every tile, the pairing, the hash."""

import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lnca_data.io.lmdb_store import META_INFO, TileStore, check_same_keys
from lnca_data.prepare.extraction import pixel_digest
from lnca_data.prepare.packing import SUMMARY, content_hash, entry_bytes
from lnca_data.prepare.split import SPLITS
from lnca_utils.errors import DataError


def verify(folder: Path) -> dict[str, int]:
    """Read every tile of a packed dataset and compare with its summary.

    Returns:
        Split → number of tiles.

    Raises:
        DataError: something is missing, damaged, or not what was packed.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding='utf-8'))
        hashes, tiles = dict(summary['hashes']), dict(summary['tiles'])
        counts = {name: int(tiles[name.split('_')[0]]) for name in hashes}
        size = int(summary['options']['tiling']['size'])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f'{folder / SUMMARY}: cannot be read ({error!r}); was this packed by prepare.py?') from None
    needed, possible = ({f'{split}_{side}' for split in SPLITS for side in sides} for sides in (('gt',), ('gt', 'lq')))
    if not needed <= hashes.keys() <= possible:
        raise DataError(f'{folder / SUMMARY}: names other LMDBs than those that prepare.py writes')
    found = {path.name.removesuffix('.lmdb') for path in folder.glob('*.lmdb')}
    if found != hashes.keys():
        stray = sorted(found ^ hashes.keys())[0]
        raise DataError(f'{folder / stray}.lmdb: {"not in the summary" if stray in found else "missing"}')
    stores = {}
    with tqdm(total=sum(counts.values()), desc='checking', unit='tile') as bar:
        for name, expected in hashes.items():
            stores[name] = TileStore(folder / f'{name}.lmdb')
            if _hash(stores[name], counts[name], size, bar) != expected:
                raise DataError(
                    f'{folder / name}.lmdb: not the tiles that were packed: the hash differs; pack it again'
                )
    for split in SPLITS:
        if f'{split}_lq' in hashes:
            check_same_keys(stores[f'{split}_gt'], stores[f'{split}_lq'])
    keys = np.concatenate([stores[f'{split}_gt'].key_array for split in SPLITS])
    if len(np.unique(keys)) < len(keys):
        raise DataError(f'{folder}: a tile is in two splits; pack it again')
    if content_hash(hashes) != summary.get('content_hash'):
        raise DataError(f'{folder / SUMMARY}: content_hash does not follow from the hashes; pack it again')
    return {split: counts[f'{split}_gt'] for split in SPLITS}


def _hash(store: TileStore, count: int, size: int, bar: tqdm) -> str:
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
                    f'{path}: {key} has shape {image.shape}, {META_INFO} says ({shape}), expected {size}×{size}'
                )
            digest.update(entry_bytes(key, pixel_digest(image)))
            bar.update()
    return digest.hexdigest()
