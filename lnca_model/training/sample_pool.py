"""The pool of states that an automaton trains on a second time (paper section 2.1, pool sampling)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class PoolBatch(NamedTuple):
    """A batch drawn from the pool, and where it belongs."""

    indices: Tensor
    gt: Tensor
    lq: Tensor
    state: Tensor


class SamplePool:
    """The last ``size`` (clean image, corrupted image, state) triples; the oldest make room for new ones.

    Memory is taken for what is there and at most as much again, up to ``size`` triples, on the device of the first
    batch.

    Args:
        size: how many triples to keep, 1024 in the reference.
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
        """Store a batch: images ``(N, C, H, W)`` and their final states."""
        batch = {'gt': gt, 'lq': lq, 'state': state}
        batch = {name: tensor.detach()[-self.size :] for name, tensor in batch.items()}
        count = len(batch['state'])
        self._make_room(min(self._count + count, self.size), batch)
        indices = (torch.arange(count) + self._next) % self.size
        self._write(indices, batch)
        self._next = (self._next + count) % self.size
        self._count = min(self._count + count, self.size)

    def _make_room(self, count: int, like: dict[str, Tensor]) -> None:
        """Have room for ``count`` triples like those of a batch."""
        room = len(self._tensors['state']) if self._tensors else 0
        if count <= room:
            return
        more = {
            name: tensor.new_empty(min(max(count, 2 * room), self.size), *tensor.shape[1:])
            for name, tensor in like.items()
        }
        for name, tensor in self._tensors.items():
            more[name][:room] = tensor
        self._tensors = more

    def draw(self, count: int) -> PoolBatch:
        """A random batch without repetition, of at most ``count`` triples."""
        indices = torch.randperm(self._count)[:count]
        on_device = indices.to(self._tensors['state'].device)
        return PoolBatch(indices, *(self._tensors[name][on_device] for name in ('gt', 'lq', 'state')))

    def write_back(self, indices: Tensor, state: Tensor) -> None:
        """Replace the states of a drawn batch by those that it ended in."""
        self._write(indices, {'state': state.detach()})

    def _write(self, indices: Tensor, batch: dict[str, Tensor]) -> None:
        for name, tensor in batch.items():
            store = self._tensors[name]
            store[indices.to(store.device)] = tensor.to(store.dtype)

    def clear(self) -> None:
        """Remove all triples."""
        self._fill({}, torch.device('cpu'))

    def state_dict(self) -> dict:
        """What a resumed run needs: the triples, on the CPU, and the place of the next one."""
        return {
            'tensors': {name: tensor[: self._count].cpu() for name, tensor in self._tensors.items()},
            'next': self._next,
        }

    def load_state_dict(self, saved: dict, device: torch.device) -> None:
        self._fill(saved['tensors'], device)
        if self._count == self.size:  # else there is room after the last
            self._next = saved['next'] % self.size

    def load_shard(self, saved: Sequence[dict], share: int, shares: int, device: torch.device) -> None:
        """Begin with what is one share of several pools' :meth:`state_dict`, as another number of processes does that
        goes on with a training. No share is empty unless all are."""
        filled = [pool['tensors'] for pool in saved if pool['tensors']]
        if not filled:
            self._fill({}, device)
            return
        together = {name: torch.cat([tensors[name] for tensors in filled]) for name in filled[0]}
        count = len(together['state'])
        self._fill({name: tensor[share % count :: shares] for name, tensor in together.items()}, device)

    def _fill(self, tensors: dict[str, Tensor], device: torch.device) -> None:
        self._tensors = {}
        self._count = self._next = 0
        if tensors:
            self.add(**{name: tensor.to(device) for name, tensor in tensors.items()})
