"""Packing of a dataset: split pairs, extract their tiles in parallel, drop near-duplicates, write LMDBs."""

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
from lnca_data.io.lmdb_store import TileStore
from lnca_data.io.lmdb_writer import LmdbWriter
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
EPOCHS, BATCH_SIZE = 20, 32  # for the suggested numbers of iterations
# Limits of a task: about the size of a photograph, so that sending many small images to workers one by one does not
# dominate.
TASK_BYTES, TASK_PAIRS = 4 << 20, 64
# Up to this many pairs that share a clean image are in one task, so that a worker reads the image once.
MAX_PAIRS_OF_IMAGE = 4


@dataclass
class PackSummary:
    """Description of a packed dataset, written as ``summary.json``.

    Attributes:
        dataset: name of the source.
        choices: options of the source.
        options: how the dataset was packed.
        images: number of pairs, or of clean images, including skipped ones.
        scenes: split → number of scenes; ``all`` for ``--split tile``.
        tiles: split → number of tiles.
        dropped: reason → number of dropped tiles; ``too small`` counts images.
        misaligned: pairs whose images are offset by more than one pixel of a packed tile, with the offset down and to
            the right in pixels of the image. They are packed, too.
        skipped: errors of the pairs that cannot be read.
        epochs: iterations for an option file that trains each phase for 20 epochs.
        hashes: LMDB → SHA-256 of its keys and pixels, in the order of its ``meta_info.txt``.
        content_hash: SHA-256 of ``hashes``.
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
    epochs: dict[str, Any] = field(default_factory=dict)
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

    For a source without corrupted images there is no ``train_lq.lmdb``: training corrupts clean tiles anew each time.
    Tiles for validation and test are corrupted here, each with its own seed. The result does not depend on the number
    of workers.

    Args:
        name: name of the dataset, for the summary.
        pairs: the pairs, sorted by scene.
        output: folder to write, atomically.
        options: how to pack the pairs.
        choices: options of the source, for the summary.
        root: folder to which the paths in the table of sources are relative; None to keep them as they are.
        overwrite: whether to replace ``output`` if it is a packed dataset.
        skip_bad: whether to continue without pairs that cannot be read.
        workers: number of processes.

    Returns:
        The summary.

    Raises:
        DataError: if ``output`` exists, an option is invalid, an image cannot be read, the disk is full, or a split is
            empty.
    """
    output = Path(output).resolve()
    _check_output(output, overwrite)
    options.tiling.check()
    if options.corruption:
        build_corruption(options.corruption)
    if workers < 1:
        raise DataError(f'--workers {workers}: must be at least 1')
    if any((pair.lq is None) != bool(options.corruption) for pair in pairs):
        raise DataError(f'{name}: corruption is for sources without corrupted images, and required for them')
    splits = split_pairs(pairs, options.split, options.seed)
    tasks = list(_tasks(pairs, splits, skip_bad))
    summary = PackSummary(name, choices or {}, options, images=len(pairs))
    scenes = {(split or 'all', pair.scene) for pair, split in zip(pairs, splits, strict=True)}
    summary.scenes = dict(sorted(Counter(split for split, _ in scenes).items()))

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{output}: cannot be created ({error.strerror}); choose another --output') from None
    work = partial(extract_task, options=options, skip_bad=skip_bad)
    with atomic_dir(output) as folder, tqdm(total=len(pairs), desc=f'packing {name}', unit='image') as bar:
        try:
            writer = _DatasetWriter(folder, summary, root)
            with writer, closing(ordered_map(work, tasks, workers)) as results:
                for task, result in zip(tasks, results, strict=True):
                    for (pair, split), extracted in zip(task, result, strict=True):
                        writer.add(pair, split, extracted)
                    bar.update(len(task))
            _finish(folder, summary)
        except OSError as error:
            needed = writer.stored_bytes * len(pairs) / max(1, writer.count)
            used = sum(file.stat().st_size for file in folder.rglob('*') if file.is_file())
            free = shutil.disk_usage(folder).free + used
            raise DataError(
                f'{output}: cannot write ({error.strerror or error}) after {writer.count} of {len(pairs)} images; '
                f'about {needed / 1e9:.2g} GB are needed, {free / 1e9:.2g} GB were free: make room, or choose '
                'another --output'
            ) from None
    return summary


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise DataError(f'{output}: exists already; pass --overwrite to replace it, or choose another --output')
    if not output.is_dir() or (any(output.iterdir()) and not (output / SUMMARY).is_file()):
        raise DataError(f'{output}: no packed dataset, so it is not replaced; choose another --output')


def _tasks(pairs: Sequence[Pair], splits: Sequence[str | None], skip_bad: bool) -> Iterator[Task]:
    """Group pairs and their splits into tasks.

    Raises:
        DataError: if a file is missing, unless ``skip_bad``.
    """
    task: Task = []
    size = 0
    for pair, split in zip(pairs, splits, strict=True):
        shares_image = bool(task) and task[-1][0].gt == pair.gt and len(task) < MAX_PAIRS_OF_IMAGE
        if task and not shares_image and (size >= TASK_BYTES or len(task) == TASK_PAIRS):
            yield task
            task, size = [], 0
        task.append((pair, split))
        for image in (pair.gt, pair.lq) if pair.lq else (pair.gt,):
            try:
                size += image.stored_bytes()
            except OSError as error:
                if not skip_bad:
                    raise DataError(
                        f'{image.path}: cannot be read ({error.strerror}); download it again, or pass --skip-bad'
                    ) from None
    if task:
        yield task


class _DatasetWriter:
    """Context manager that writes tiles to LMDBs and pairs to the table of sources, and counts both in a summary.

    Attributes:
        count: number of pairs so far.
    """

    def __init__(self, folder: Path, summary: PackSummary, root: Path | None) -> None:
        self._folder = folder
        self._summary = summary
        self._root = root
        self._writers: dict[str, LmdbWriter] = {}
        self._digests: dict[str, Any] = {}
        self._files = ExitStack()
        self.count = 0
        self._scene: str | None = None

    def __enter__(self) -> '_DatasetWriter':
        table = self._files.enter_context(open(self._folder / TABLE, 'w', newline='', encoding='utf-8'))
        self._table = csv.writer(table)
        self._table.writerow(['name', 'gt', 'lq', 'scene', 'split', 'tiles'])
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)
        self._summary.hashes = {name: digest.hexdigest() for name, digest in sorted(self._digests.items())}

    def add(self, pair: Pair, split: str | None, extracted: ExtractedPair) -> None:
        """Write the tiles of a pair except for near-duplicates."""
        self.count += 1
        summary = self._summary
        if extracted.error:
            summary.skipped.append(extracted.error)
        summary.dropped['flat'] += extracted.flat
        summary.dropped['too small'] += extracted.is_too_small
        gt, lq = (self._relative_path(image) if image else '' for image in (pair.gt, pair.lq))
        if any(extracted.offset):
            summary.misaligned.append({'gt': gt, 'lq': lq, 'shift': list(extracted.offset)})
        kept = [tile for tile in extracted.tiles if self._is_new(pair, tile)]
        summary.dropped['near-duplicate'] += len(extracted.tiles) - len(kept)
        for tile in kept:
            for side, data in tile.images.items():
                self._put(f'{tile.split}_{side}', tile, side, data)
            summary.tiles[tile.split] = summary.tiles.get(tile.split, 0) + 1
        self._table.writerow([pair.name, gt, lq, pair.scene, split or 'by tile', len(kept)])

    @property
    def stored_bytes(self) -> int:
        """Approximate size of the LMDBs on disk so far."""
        return sum(writer.bytes for writer in self._writers.values())

    def _is_new(self, pair: Pair, tile: PackedTile) -> bool:
        """Return whether to keep a tile; all corrupted images of one clean image keep the same tiles."""
        if tile.hash is None:
            return True
        if pair.scene != self._scene:
            self._scene = pair.scene
            self._duplicates = NearDuplicates(self._summary.options.duplicate_threshold)
            self._is_kept: dict[tuple[Image, str], bool] = {}
        clean_tile = pair.gt, tile.position
        if clean_tile not in self._is_kept:
            self._is_kept[clean_tile] = not self._duplicates.repeats(tile.hash)
        return self._is_kept[clean_tile]

    def _put(self, lmdb: str, tile: PackedTile, side: str, data: bytes) -> None:
        if lmdb not in self._writers:
            self._writers[lmdb] = self._files.enter_context(LmdbWriter(self._folder / f'{lmdb}.lmdb'))
            self._digests[lmdb] = hashlib.sha256()
        size = self._summary.options.tiling.size
        self._writers[lmdb].put(tile.key, data, (size, size, 3))
        self._digests[lmdb].update(entry_bytes(tile.key, tile.digests[side]))

    def _relative_path(self, image: Image) -> str:
        return os.path.relpath(image.path, self._root) if self._root else image.path


def entry_bytes(key: str, digest: bytes) -> bytes:
    """Return what a tile contributes to the hash of its LMDB."""
    return key.encode() + b'\0' + digest


def content_hash(hashes: Mapping[str, str]) -> str:
    """Return the hash of a dataset from the hashes of its LMDBs."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def _finish(folder: Path, summary: PackSummary) -> None:
    """Complete the summary, and write it and the contact sheet."""
    for split in SPLITS:
        if not summary.tiles.get(split):
            raise DataError(
                f'{summary.dataset}: no {split} tile is left ({describe_drops(summary)}); use smaller --tile-pixels, a '
                'lower --flat-threshold or another --split'
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
    TileStore.close_all()  # the caller renames the folder


def describe_drops(summary: PackSummary) -> str:
    """Return the numbers of dropped tiles by reason, as text."""
    reasons = {**summary.dropped, 'skipped': len(summary.skipped)}
    return 'dropped: ' + (', '.join(f'{count:,} {reason}' for reason, count in reasons.items() if count) or 'none')
