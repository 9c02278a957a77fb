"""The order of the training images, and the position in it from which a resumed run continues."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import Dataset

from lnca_data.tile_dataset import TileDataset

from basicsr.data.data_sampler import EnlargedSampler


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """Maps iterations to epochs and images, from where a run starts or resumes.

    Attributes:
        iteration: last iteration before this run.
        epoch: epoch in which the run starts.
        seen: images of that epoch that all ranks together have seen before.
        batches_left: batches left in that epoch.
        batches_per_epoch: batches in each of the epochs after it.
        batch_size: images in a batch, of all ranks.
    """

    iteration: int
    epoch: int
    seen: int
    batches_left: int
    batches_per_epoch: int
    batch_size: int

    def at(self, iteration: int) -> dict[str, int]:
        """The epoch of an iteration, and the number of that epoch's images seen after it."""
        done = iteration - self.iteration
        if done <= self.batches_left:
            return {'epoch': self.epoch, 'seen': self.seen + done * self.batch_size}
        epochs, batches = divmod(done - self.batches_left - 1, self.batches_per_epoch)
        return {'epoch': self.epoch + 1 + epochs, 'seen': (batches + 1) * self.batch_size}


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler, whose first epoch may start in its middle.

    For a :class:`TileDataset` an index also encodes the image's place in the epoch: flips and turns depend on the epoch
    and the place alone, whichever worker or rank loads the image.

    Args:
        dataset: the training set.
        num_replicas, rank: number of ranks, and this one.
        ratio: see BasicSR's ``dataset_enlarge_ratio``.
        start: an epoch, and the number of this rank's images to skip in it.
    """

    def __init__(
        self, dataset: Dataset, num_replicas: int, rank: int, ratio: int = 1, start: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.start = start

    def __iter__(self) -> Iterator[int]:
        epoch, seen = self.start
        skip = seen if self.epoch == epoch else 0
        images = len(self.dataset)
        places = itertools.count(self.epoch * self.total_size + self.rank, self.num_replicas)
        indices: Iterator[Any] = super().__iter__()
        if isinstance(self.dataset, TileDataset):
            indices = ((place + 1) * images + index for place, index in zip(places, indices, strict=False))
        return itertools.islice(indices, skip, None)
