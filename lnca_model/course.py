"""Which images come when: what a resumed run needs to see those that an uninterrupted one would have seen."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from lnca_data.tile_dataset import TileDataset

from basicsr.data.data_sampler import EnlargedSampler


@dataclasses.dataclass(frozen=True)
class Course:
    """The epochs of a run from where it begins or goes on.

    Attributes:
        done: iterations before this run.
        epoch: the one that it begins in.
        seen: images of this epoch that were seen before, by all processes.
        left: batches that are left of it.
        per_epoch: batches of the epochs that follow.
        batch: images of a batch, of all processes.
    """

    done: int
    epoch: int
    seen: int
    left: int
    per_epoch: int
    batch: int

    def at(self, iteration: int) -> dict[str, int]:
        """The epoch that an iteration belongs to, and how many of its images have been seen after it."""
        since = iteration - self.done
        if since <= self.left:
            return {'epoch': self.epoch, 'seen': self.seen + since * self.batch}
        whole, rest = divmod(since - self.left - 1, self.per_epoch)
        return {'epoch': self.epoch + 1 + whole, 'seen': (rest + 1) * self.batch}


class ResumableSampler(EnlargedSampler):
    """BasicSR's sampler, whose first epoch may begin in its middle.

    To a :class:`TileDataset` it says, beside an image's index, in which place of which epoch it comes: flips and turns
    depend on these alone, whatever process loads the image.

    Attributes:
        resumed: an epoch, and how many images of this process it leaves out.
    """

    resumed = (0, 0)

    def __iter__(self) -> Iterator[int]:
        epoch, seen = self.resumed
        skip = seen if self.epoch == epoch else 0
        images = len(self.dataset)
        places = itertools.count(self.epoch * self.total_size + self.rank, self.num_replicas)
        indices: Iterator[Any] = super().__iter__()
        if isinstance(self.dataset, TileDataset):
            indices = ((place + 1) * images + index for place, index in zip(places, indices, strict=False))
        return itertools.islice(indices, skip, None)
