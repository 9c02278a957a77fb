"""The distance loss of the autoencoder (paper section 3.2.1)."""

import torch.nn.functional as F
from torch import Tensor

from lnca_model.distributed import mean_over_ranks, world_size
from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class TripletDistanceLoss(WeightedLoss):
    """Triplet loss max(0, MSE(anchor, positive) − MSE(anchor, negative) + α) (equation 4).

    The maximum is taken after the reduction over the batches of all ranks.

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.
        margin: the margin α.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', margin: float = 1.0) -> None:
        super().__init__(loss_weight, reduction)
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            anchor: latents of the clean images, ``(N, C, H, W)``.
            positive: latents of the corrupted images.
            negative: latents of other clean images.
        """
        near = F.mse_loss(anchor, positive, reduction=self.reduction)
        far = F.mse_loss(anchor, negative, reduction=self.reduction)
        difference, margin = near - far, self.margin
        if self.reduction != 'none':
            difference = mean_over_ranks(difference)
        if self.reduction == 'sum':
            margin /= world_size()  # the losses of the ranks add up to the loss
        return self.loss_weight * (difference + margin).clamp(min=0)
