"""Batch norm over the images of all ranks."""

import torch
from torch import Tensor, nn

from lnca_model.distributed.collectives import Sum, world_size


class SynchronizedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, in training, uses the mean and the variance over the images of all ranks.

    Unlike torch.nn.SyncBatchNorm, it also works on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)``; the shape must be the same on all ranks."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        mean = Sum.apply(x.mean(dim=(0, 2, 3))) / world_size()
        centred = x - mean[:, None, None]
        variance = Sum.apply(centred.square().mean(dim=(0, 2, 3))) / world_size()
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            elements = world_size() * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * elements / (elements - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]


def synchronize_batch_norms(network: nn.Module) -> None:
    """Convert all batch norms of a network to :class:`SynchronizedBatchNorm2d`, in place; parameters are kept."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronizedBatchNorm2d
