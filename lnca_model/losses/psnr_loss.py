"""The peak signal-to-noise ratio as a loss."""

import math

import torch
from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class PSNRLoss(WeightedLoss):
    """Negative peak signal-to-noise ratio in dB, the loss of NAFNet (Chen et al., 2022).

    Reduction ``'none'`` returns one value per image. For identical images, the ratio is 80 dB.

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.
    """

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of images ``(N, C, H, W)`` in [0, 1]."""
        mse = ((pred - target) ** 2).mean(dim=(1, 2, 3))
        return self.loss_weight * reduce_loss(10 / math.log(10) * torch.log(mse + 1e-8), self.reduction)
