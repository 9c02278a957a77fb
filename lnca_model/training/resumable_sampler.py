"""The order of the training images, and the position in it that a run resumes from."""

import dataclasses
import itertools
from collections.abc import Iterator

import torch
from torch.utils.data import Dataset

from lnca_data.tile_dataset import TileDataset

from basicsr.data.data_sampler import EnlargedSampler

SEED_STRIDE = 1 << 40  # more images than any training loads


@dataclasses.dataclass(frozen=True)
class DataPosition:
    """Position in the training data at which a run starts or resumes, from which later positions are computed.

    Attributes:
        iteration: iteration that the run resumes after; 0 for a new run.
        epoch: epoch in which the run starts.
        seen: number of images of that epoch that all ranks together have already trained on.
        batches_left: number of batches left in that epoch.
        batches_per_epoch: number of batches in each later epoch.
        batch_size: number of images in a batch, over all ranks.
        seed: seed of the order and the augmentation of the images.
    """

    iteration: int
    epoch: int
    seen: int
    batches_left: int
    batches_per_epoch: int
    batch_size: int
    seed: int

    def at(self, iteration: int) -> dict[str, int]:
        """Return the position after an iteration, for the training state.

        Returns:
            ``epoch``, number of images ``seen`` in that epoch by all ranks together, and ``data_seed``.
        """
        done = iteration - self.iteration
        if done <= self.batches_left:
            return {'epoch': self.epoch, 'seen': self.seen + done * self.batch_size, 'data_seed': self.seed}
        epochs, batches = divmod(done - self.batches_left - 1, self.batches_per_epoch)
        return {'epoch': self.epoch + 1 + epochs, 'seen': (batches + 1) * self.batch_size, 'data_seed': self.seed}


class ResumableSampler(EnlargedSampler):
    """BasicSR's EnlargedSampler, with a seed and a start in the middle of an epoch.

    For a :class:`TileDataset`, an index also encodes the seed and the position of the image in the training. They
    determine the augmentation, so that it does not depend on the worker or rank that loads the image.

    Args:
        dataset: the training set.
        num_replicas: number of ranks.
        rank: this rank.
        ratio: BasicSR's ``dataset_enlarge_ratio``.
        seed: seed of the order and the augmentation.

    Attributes:
        start: the first epoch, and the number of this rank's images to skip in it.
    """

    def __init__(self, dataset: Dataset, num_replicas: int, rank: int, ratio: float = 1, seed: int = 0) -> None:
        super().__init__(dataset, num_replicas, rank, ratio)
        self.seed = seed
        self.start = (0, 0)

    def __iter__(self) -> Iterator[int]:
        images = len(self.dataset)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.total_size, generator=generator) % images
        indices = iter(order[self.rank :: self.num_replicas].tolist())
        if isinstance(self.dataset, TileDataset):
            first = self.seed * SEED_STRIDE + self.epoch * self.total_size + self.rank + 1
            indices = (
                position * images + index
                for position, index in zip(itertools.count(first, self.num_replicas), indices, strict=False)
            )
        epoch, seen = self.start
        return itertools.islice(indices, seen if self.epoch == epoch else 0, None)
