"""The sample pool: final states of rollouts, which later rollouts start from (paper section 2.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PoolBatch(NamedTuple):
    """A batch drawn from the pool.

    Attributes:
        indices: positions of the samples in the pool, ``(N,)``.
        gt, lq: clean and corrupted images, ``(N, C, H, W)``.
        state: mutable channels of their states, ``(N, C, H, W)``.
    """

    indices: Tensor
    gt: Tensor
    lq: Tensor
    state: Tensor


class SamplePool:
    """A ring buffer of samples, each a clean image, the corrupted image and the state of the automaton.

    The buffer is on the device of the first batch. It grows by doubling, up to ``size`` samples.

    Args:
        size: largest number of samples. When the pool is full, new samples replace the oldest.

    Raises:
        ValueError: if ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f'the pool needs room for at least one state, got {size}')
        self.size = size
        self._tensors: dict[str, Tensor] = {}
        self._count = 0
        self._next = 0

    def __len__(self) -> int:
        return self._count

    def add(self, gt: Tensor, lq: Tensor, state: Tensor) -> None:
        """Add a batch of samples.

        Args:
            gt: clean images, ``(N, C, H, W)``.
            lq: corrupted images, ``(N, C, H, W)``.
            state: their states, ``(N, C, H, W)``.
        """
        batch = {'gt': gt, 'lq': lq, 'state': state}
        batch = {name: tensor.detach()[-self.size :] for name, tensor in batch.items()}
        count = len(batch['state'])
        self._grow(min(self._count + count, self.size), batch)
        indices = (torch.arange(count) + self._next) % self.size
        self._write(indices, batch)
        self._next = (self._next + count) % self.size
        self._count = min(self._count + count, self.size)

    def _grow(self, count: int, like: dict[str, Tensor]) -> None:
        """Grow the buffer to at least ``count`` samples, of the shapes and types of a batch."""
        capacity = len(self._tensors['state']) if self._tensors else 0
        if count <= capacity:
            return
        grown = {
            name: tensor.new_empty(min(max(count, 2 * capacity), self.size), *tensor.shape[1:])
            for name, tensor in like.items()
        }
        for name, tensor in self._tensors.items():
            grown[name][:capacity] = tensor
        self._tensors = grown

    def draw(self, count: int) -> PoolBatch:
        """Draw at most ``count`` samples at random, without repetition."""
        indices = torch.randperm(self._count)[:count]
        on_device = indices.to(self._tensors['state'].device)
        return PoolBatch(indices, *(self._tensors[name][on_device] for name in ('gt', 'lq', 'state')))

    def write_back(self, indices: Tensor, state: Tensor) -> None:
        """Replace the states of samples.

        Args:
            indices: positions of the samples, from :meth:`draw`.
            state: the new states, ``(N, C, H, W)``.
        """
        self._write(indices, {'state': state.detach()})

    def _write(self, indices: Tensor, batch: dict[str, Tensor]) -> None:
        for name, tensor in batch.items():
            store = self._tensors[name]
            store[indices.to(store.device)] = tensor.to(store.dtype)

    def clear(self) -> None:
        """Remove all samples."""
        self._fill({}, torch.device('cpu'))

    def state_dict(self) -> dict:
        """Return the samples, on the CPU, and the position of the next one."""
        return {
            'tensors': {name: tensor[: self._count].cpu() for name, tensor in self._tensors.items()},
            'next': self._next,
        }

    def load_state_dict(self, saved: dict, device: torch.device) -> None:
        """Restore the samples of a pool of any size; of a larger pool, the newest are kept.

        Args:
            saved: from :meth:`state_dict`.
            device: device of the buffer.
        """
        tensors, oldest = saved['tensors'], saved['next']
        if tensors and len(tensors['state']) > self.size:
            tensors = {name: tensor.roll(-oldest, dims=0) for name, tensor in tensors.items()}
            oldest = 0
        self._fill(tensors, device)
        if self._count == self.size:  # otherwise the next sample is appended
            self._next = oldest % self.size

    def load_shard(self, saved: Sequence[dict], rank: int, world_size: int, device: torch.device) -> None:
        """Restore a rank's share of the pools of a run with another number of ranks.

        No share is empty unless all pools are.

        Args:
            saved: :meth:`state_dict` of each pool.
            rank: the rank.
            world_size: the new number of ranks.
            device: device of the buffer.
        """
        filled = [pool['tensors'] for pool in saved if pool['tensors']]
        if not filled:
            self._fill({}, device)
            return
        samples = {name: torch.cat([tensors[name] for tensors in filled]) for name in filled[0]}
        count = len(samples['state'])
        self._fill({name: tensor[rank % count :: world_size] for name, tensor in samples.items()}, device)

    def _fill(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._tensors = {}
        self._count = self._next = 0
        if tensors:
            self.add(**{name: tensor.to(device) for name, tensor in tensors.items()})
