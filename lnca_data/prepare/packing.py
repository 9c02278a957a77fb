"""From a source to a packed dataset: split, let the workers cut, drop near-duplicates, write."""

import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lnca_data.corruptions import build_corruption
from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_data.io.images import Image
from lnca_data.io.lmdb_store import LmdbWriter, TileStore
from lnca_data.prepare.dataset_source import Pair
from lnca_data.prepare.extraction import ExtractedPair, PackConfig, PackedTile, Task, extract_task
from lnca_data.prepare.split import SPLITS, split_pairs
from lnca_data.prepare.tiling import NearDuplicates
from lnca_data.prepare.workers import ordered_map
from lnca_utils.atomic import atomic_dir, write_json
from lnca_utils.errors import DataError

SUMMARY = 'summary.json'
TABLE = 'sources.csv'
SHEET = 'contact_sheet.png'
SHEET_PAIRS = 20
EPOCHS = 20
BATCH_SIZE = 32
# A task is about as large as a photograph, so that small images do not spend their time on the way to a worker.
TASK_BYTES = 4 << 20
TASK_PAIRS = 64
# A task of fewer pairs is not full while the next one has the same clean image, so that a worker reads it once.
TASK_PAIRS_OF_ONE = 4


@dataclass
class PackSummary:
    """What was packed; written beside the LMDBs as ``summary.json``.

    Attributes:
        dataset: name of the source.
        choices: the options of the source.
        options: how it was packed.
        images: pairs, or clean images, those that were skipped included.
        scenes: split → number of scenes; of ``--split tile``, of all together.
        tiles: split → number.
        dropped: reason → number of tiles; ``too small`` counts images.
        misaligned: pairs whose images are off each other by more than a pixel of a packed tile, and by how many pixels
            of the image, down and to the right. They are packed.
        skipped: what could not be read.
        epochs: what to write in an option file to train each phase for 20 epochs.
        hashes: LMDB → SHA-256 of keys and pixels in the order of its meta_info.txt.
        content_hash: SHA-256 of the hashes.
    """

    dataset: str
    choices: Mapping[str, Any]
    options: PackConfig
    images: int = 0
    scenes: dict[str, int] = field(default_factory=dict)
    tiles: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=lambda: {'flat': 0, 'near-duplicate': 0, 'too small': 0})
    misaligned: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    content_hash: str = ''


def pack(
    name: str,
    pairs: Sequence[Pair],
    output: Path | str,
    options: PackConfig,
    *,
    choices: Mapping[str, Any] | None = None,
    root: Path | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    workers: int = 1,
) -> PackSummary:
    """Pack pairs into ``{train,val,test}_{gt,lq}.lmdb``, a summary, a table of sources and a contact sheet.

    Where a source has no damaged images, there is no ``train_lq.lmdb``, since training corrupts clean tiles anew each
    time; those of validation and test are corrupted here, each by a seed of its own. The result is the same for any
    number of workers.

    Args:
        name: of the dataset, for the summary.
        pairs: what to pack, those of a scene together.
        output: a folder; nothing is left there unless everything was packed.
        options: how.
        choices: options of the source, for the summary.
        root: what the paths in the table of sources are relative to.
        overwrite: replace ``output`` if it exists.
        skip_bad: go on without pairs that cannot be read.
        workers: processes.

    Raises:
        DataError: ``output`` exists, an option makes no sense, an image cannot be read, the disk is full, or a split
            is empty.
    """
    output = Path(output).resolve()
    _check_output(output, overwrite)
    options.tiling.check()
    if options.corruption:
        build_corruption(options.corruption)
    if workers < 1:
        raise DataError(f'--workers {workers}: must be at least 1')
    if any((pair.lq is None) != bool(options.corruption) for pair in pairs):
        raise DataError(f'{name}: either every image has a damaged one, or all are corrupted here')
    splits = split_pairs(pairs, options.split, options.seed)
    tasks = list(_tasks(pairs, splits, skip_bad))
    summary = PackSummary(name, choices or {}, options, images=len(pairs))
    scenes = {(split or 'all', pair.scene) for pair, split in zip(pairs, splits, strict=True)}
    summary.scenes = dict(sorted(Counter(split for split, _ in scenes).items()))

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{output}: cannot be made ({error.strerror})') from None
    work = partial(extract_task, options=options, skip_bad=skip_bad)
    with atomic_dir(output) as folder, tqdm(total=len(pairs), desc=f'packing {name}', unit='image') as bar:
        try:
            writing = _Writing(folder, summary, root)
            with writing, closing(ordered_map(work, tasks, workers)) as results:
                for task, result in zip(tasks, results, strict=True):
                    for (pair, split), extracted in zip(task, result, strict=True):
                        writing.add(pair, split, extracted)
                    bar.update(len(task))
            _finish(folder, summary)
        except OSError as error:
            needed = writing.bytes * len(pairs) / max(1, writing.count)
            raise DataError(
                f'{output}: cannot write ({error.strerror or error}) with {writing.count} of {len(pairs)} images '
                f'packed; about {needed / 1e9:.2g} GB are needed there, and {_free(folder) / 1e9:.2g} GB were free: '
                'make room, or choose another --output'
            ) from None
    return summary


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise DataError(f'{output} exists; use --overwrite to replace it, or another --output')
    if not output.is_dir() or (any(output.iterdir()) and not (output / SUMMARY).is_file()):
        raise DataError(f'{output} is no packed dataset, so it is not replaced; choose another --output')


def _free(folder: Path) -> int:
    """Bytes that were free before the folder was filled."""
    return shutil.disk_usage(folder).free + sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())


def _tasks(pairs: Sequence[Pair], splits: Sequence[str | None], skip_bad: bool) -> Iterator[Task]:
    """Pairs and their splits, some at a time.

    Raises:
        DataError: a file is missing.
    """
    task: Task = []
    size = 0
    for pair, split in zip(pairs, splits, strict=True):
        same = bool(task) and task[-1][0].gt == pair.gt and len(task) < TASK_PAIRS_OF_ONE
        if task and not same and (size >= TASK_BYTES or len(task) == TASK_PAIRS):
            yield task
            task, size = [], 0
        task.append((pair, split))
        for image in (pair.gt, pair.lq) if pair.lq else (pair.gt,):
            try:
                size += image.stored_bytes()
            except OSError as error:
                if not skip_bad:
                    raise DataError(
                        f'{image.path}: cannot be read ({error.strerror}); fetch it, or go on without with --skip-bad'
                    ) from None
    if task:
        yield task


class _Writing:
    """The LMDBs and the table of sources while they are written, and what is known of the scene at hand."""

    def __init__(self, folder: Path, summary: PackSummary, root: Path | None) -> None:
        self._folder = folder
        self._summary = summary
        self._root = root
        self._writers: dict[str, LmdbWriter] = {}
        self._digests: dict[str, Any] = {}
        self.count = 0  # pairs so far
        self._scene: str | None = None

    def __enter__(self) -> '_Writing':
        self._table_file = open(self._folder / TABLE, 'w', newline='', encoding='utf-8')
        self._table = csv.writer(self._table_file)
        self._table.writerow(['name', 'gt', 'lq', 'scene', 'split', 'tiles'])
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # all are closed, whichever cannot be
            stack.callback(self._table_file.close)
            for writer in self._writers.values():
                stack.callback(writer.close, is_whole=error[0] is None)
        self._summary.hashes = {name: digest.hexdigest() for name, digest in sorted(self._digests.items())}

    def add(self, pair: Pair, split: str | None, extracted: ExtractedPair) -> None:
        """Write what is kept of a pair's tiles, and count the rest."""
        self.count += 1
        summary = self._summary
        if extracted.error:
            summary.skipped.append(extracted.error)
        summary.dropped['flat'] += extracted.flat
        summary.dropped['too small'] += extracted.is_too_small
        if any(extracted.shift):
            down, right = extracted.shift
            summary.misaligned.append({'gt': self._name(pair.gt), 'lq': self._name(pair.lq), 'shift': [down, right]})
        kept = [tile for tile in extracted.tiles if self._is_new(pair, tile)]
        summary.dropped['near-duplicate'] += len(extracted.tiles) - len(kept)
        for tile in kept:
            for side, data in tile.images.items():
                self._put(f'{tile.split}_{side}', tile, side, data)
            summary.tiles[tile.split] = summary.tiles.get(tile.split, 0) + 1
        self._table.writerow(
            [pair.name, self._name(pair.gt), self._name(pair.lq), pair.scene, split or 'by tile', len(kept)]
        )

    @property
    def bytes(self) -> int:
        """About what was put so far takes on the disk."""
        return sum(writer.bytes for writer in self._writers.values())

    def _is_new(self, pair: Pair, tile: PackedTile) -> bool:
        """Whether a tile is no near-duplicate. Another damaged image of the same clean one shares its tiles' fates."""
        if tile.hash is None:
            return True
        if pair.scene != self._scene:
            self._scene = pair.scene
            self._duplicates = NearDuplicates(self._summary.options.duplicate_threshold)
            self._is_kept: dict[tuple[Image, str], bool] = {}
        tile_of_scene = pair.gt, tile.place
        if tile_of_scene not in self._is_kept:
            self._is_kept[tile_of_scene] = not self._duplicates.repeats(tile.hash)
        return self._is_kept[tile_of_scene]

    def _put(self, lmdb: str, tile: PackedTile, side: str, data: bytes) -> None:
        if lmdb not in self._writers:
            self._writers[lmdb] = LmdbWriter(self._folder / f'{lmdb}.lmdb')
            self._digests[lmdb] = hashlib.sha256()
        size = self._summary.options.tiling.size
        self._writers[lmdb].put(tile.key, data, (size, size, 3))
        self._digests[lmdb].update(entry_bytes(tile.key, tile.digests[side]))

    def _name(self, image: Image | None) -> str:
        if image is None:
            return ''
        return os.path.relpath(image.path, self._root) if self._root else image.path


def entry_bytes(key: str, digest: bytes) -> bytes:
    """What a tile adds to the hash of its LMDB."""
    return key.encode() + b'\0' + digest


def content_hash(hashes: Mapping[str, str]) -> str:
    """The hash of a dataset, from those of its LMDBs."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _finish(folder: Path, summary: PackSummary) -> None:
    for split in SPLITS:
        if not summary.tiles.get(split):
            raise DataError(
                f'no {split} tile is left ({drops(summary)}): use smaller --tile-pixels, a lower --flat-threshold or '
                'another --split'
            )
    summary.tiles = {split: summary.tiles[split] for split in SPLITS}
    iterations = EPOCHS * (summary.tiles['train'] // BATCH_SIZE)
    summary.epochs = {
        'epochs': EPOCHS,
        'batch_size': BATCH_SIZE,
        'autoencoder_iters': iterations,
        'automaton_iters': iterations,
        'lnca_plus_iters': [iterations // 2, iterations // 2, 2 * (iterations - iterations // 2)],
        'total_iter': 2 * iterations,
    }
    summary.content_hash = content_hash(summary.hashes)
    write_json(folder / SUMMARY, asdict(summary))
    gt, lq = (TileStore(folder / f'test_{side}.lmdb') for side in ('gt', 'lq'))
    keys = gt.keys
    chosen = [keys[index] for index in np.linspace(0, len(gt) - 1, min(SHEET_PAIRS, len(gt))).astype(int)]
    write_contact_sheet(
        folder / SHEET, {'corrupted': [lq[key] for key in chosen], 'clean': [gt[key] for key in chosen]}
    )
    TileStore.close_all()  # the folder is renamed


def drops(summary: PackSummary) -> str:
    """What was dropped and why, in words."""
    reasons = {**summary.dropped, 'skipped': len(summary.skipped)}
    return 'dropped: ' + (', '.join(f'{count:,} {reason}' for reason, count in reasons.items() if count) or 'none')
