"""The PSNR as a loss."""

import math

import torch
from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class PSNRLoss(WeightedLoss):
    """Minus the peak signal-to-noise ratio in dB of images in [0, 1], the loss of NAFNet (Chen et al., 2022).

    ``'none'`` gives one value an image: ``(N,)``. Identical images count as 80 dB.
    """

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        mse = ((pred - target) ** 2).mean(dim=(1, 2, 3))
        return self.loss_weight * reduce_loss(10 / math.log(10) * torch.log(mse + 1e-8), self.reduction)
