"""Scores by the metrics in BasicSR's registry, and a contact sheet of some of the scored images."""

import csv
import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lnca_data.io.contact_sheet import write_contact_sheet
from lnca_model import distributed
from lnca_model.metrics import BATCH_METRICS
from lnca_utils.atomic import atomic_file

from basicsr.metrics import calculate_metric

SHEET_TILES = 20
MAX_BATCH_PIXELS = 1 << 18  # so that whole photographs are restored one at a time
CSV_COLUMNS = ('iteration', 'scored', 'dataset', 'metric', 'restored', 'corrupted', 'gain')

Batch = dict[str, Any]


def batch_by_shape(items: Iterable[Batch], max_images: int, max_pixels: int = MAX_BATCH_PIXELS) -> Iterator[Batch]:
    """Join consecutive items of equal shape into batches.

    Args:
        items: from a loader with batch size 1: ``lq`` and ``gt``, ``(1, C, H, W)``, and the lists ``lq_path`` and
            ``gt_path`` of one key each. Only ``lq`` is required.
        max_images: largest number of images in a batch.
        max_pixels: largest total number of pixels of ``lq`` in a batch; larger images form batches of one.

    Yields:
        Batches with the same keys.
    """
    waiting: list[Batch] = []
    for item in items:
        height, width = item['lq'].shape[-2:]
        is_full = len(waiting) == max_images or (len(waiting) + 1) * height * width > max_pixels
        if waiting and (is_full or _shapes(item) != _shapes(waiting[0])):
            yield _join(waiting)
            waiting = []
        waiting.append(item)
    if waiting:
        yield _join(waiting)


def _shapes(item: Batch) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in item.items() if isinstance(value, Tensor)}


def _join(items: list[Batch]) -> Batch:
    return {
        name: torch.cat([item[name] for item in items])
        if isinstance(value, Tensor)
        else [entry for item in items for entry in item[name]]
        for name, value in items[0].items()
    }


def to_bgr(images: Tensor) -> np.ndarray:
    """Convert images to the layout of OpenCV and of BasicSR's metrics, like BasicSR's tensor2img.

    Args:
        images: ``(N, C, H, W)`` in [0, 1], RGB or grey.

    Returns:
        ``(N, H, W, C)`` uint8, BGR or grey.
    """
    images = (images.detach().float().clamp(0, 1) * 255).round().byte()
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).flip(-1).cpu().numpy())


def _sum_of_scores(images: np.ndarray, truth: np.ndarray, options: Mapping[str, Any]) -> float:
    if options['type'] in BATCH_METRICS:
        return float(calculate_metric({'img': images, 'img2': truth}, options).sum())
    pairs = zip(images, truth, strict=True)
    return sum(float(calculate_metric({'img': image, 'img2': true}, options)) for image, true in pairs)


class ScoreAccumulator:
    """Accumulates the scores of the restored and the corrupted images of a dataset.

    At most :data:`SHEET_TILES` images, evenly spaced over the dataset, are kept for a contact sheet.

    Args:
        metrics: the block ``val.metrics`` of an option file: name → ``{type: calculate_psnr, ...}``.
        images: number of images in the dataset.
        first: index of the first image that this rank scores.
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any]], images: int, first: int = 0) -> None:
        self._metrics = metrics
        self._sums = {side: dict.fromkeys(metrics, 0.0) for side in ('restored', 'corrupted')}
        self._first, self._seen = first, 0
        self._sheet_every = max(1, math.ceil(images / SHEET_TILES))
        self._sheet: dict[str, list[np.ndarray]] = {'corrupted': [], 'restored': [], 'truth': []}

    def add(self, corrupted: np.ndarray, restored: np.ndarray, truth: np.ndarray) -> None:
        """Add a batch of images, ``(N, H, W, C)`` each, from :func:`to_bgr`."""
        for side, images in (('restored', restored), ('corrupted', corrupted)):
            for name, options in self._metrics.items():
                self._sums[side][name] += _sum_of_scores(images, truth, options)
        for index in range(-(self._first + self._seen) % self._sheet_every, len(truth), self._sheet_every):
            for column, images in zip(self._sheet.values(), (corrupted, restored, truth), strict=True):
                column.append(images[index][..., ::-1])
        self._seen += len(truth)

    def reduce(self) -> None:
        """Sum the scores over all ranks, on every rank, and collect the images of the contact sheet on rank 0."""
        parts = distributed.all_gather((self._sums, self._seen))
        self._seen = sum(seen for _, seen in parts)
        self._sums = {
            side: {name: sum(sums[side][name] for sums, _ in parts) for name in self._metrics} for side in self._sums
        }
        sheets = distributed.gather(self._sheet)
        self._sheet = {side: [image for sheet in sheets for image in sheet[side]] for side in self._sheet}

    def scores(self, side: str) -> dict[str, float]:
        """Return the mean scores of the restored or of the corrupted images.

        Args:
            side: ``'restored'`` or ``'corrupted'``.

        Returns:
            Metric → mean score; empty without ground truth.
        """
        return {name: total / self._seen for name, total in self._sums[side].items()} if self._seen else {}

    def write_contact_sheet(self, path: Path) -> None:
        """Write the contact sheet as a PNG file: corrupted images, restored images and ground truth."""
        if self._seen:
            path.parent.mkdir(parents=True, exist_ok=True)
            # All images in a sheet must have the same size; leave out those that differ from the first.
            shape = self._sheet['truth'][0].shape
            write_contact_sheet(
                path,
                {side: [image for image in images if image.shape == shape] for side, images in self._sheet.items()},
            )


def append_scores(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Append rows to a CSV file atomically.

    Args:
        path: the file, created with a header if it does not exist.
        rows: values in the order of :data:`CSV_COLUMNS`.
    """
    before = path.read_bytes() if path.exists() else None
    with atomic_file(path) as temporary:
        temporary.write_bytes(before or b'')
        with open(temporary, 'a', newline='') as file:
            writer = csv.writer(file)
            if before is None:
                writer.writerow(CSV_COLUMNS)
            writer.writerows(rows)


def drop_scores_after(path: Path, iteration: int, unscored: Container[str], final_test: Container[str]) -> None:
    """Remove the rows of a CSV file that a resumed run will write again.

    Args:
        path: a file written by :func:`append_scores`; it need not exist.
        iteration: iteration that the run resumes after; rows of later iterations are removed.
        unscored: datasets whose rows of ``iteration`` itself are also removed.
        final_test: datasets whose rows are all removed.
    """
    if not path.exists():
        return
    with open(path, newline='') as file:
        rows = list(csv.DictReader(file))
    with atomic_file(path) as temporary, open(temporary, 'w', newline='') as file:
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        for row in rows:
            scored_at, dataset = int(row['iteration']), row['dataset']
            again = scored_at > iteration or (scored_at == iteration and dataset in unscored) or dataset in final_test
            if not again:
                writer.writerow(row)
