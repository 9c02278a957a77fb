"""The task and the equivalence loss of the autoencoder, on corrupted pixels only (paper section 3.2.1)."""

import torch.nn.functional as F
from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class MaskedTaskLoss(WeightedLoss):
    """MSE of the reconstruction of the corrupted image where it is corrupted: equation 5.

    The mean is over all elements, masked or not; where nothing is corrupted the loss is 0.
    """

    def forward(self, reconstruction: Tensor, positive: Tensor, anchor: Tensor) -> Tensor:
        """
        Args:
            reconstruction: the autoencoder's reconstruction of ``positive``.
            positive: the corrupted image.
            anchor: the clean image.
        """
        return self.loss_weight * _masked_mse(reconstruction, positive, anchor != positive, self.reduction)


@LOSS_REGISTRY.register()
class SwapEquivalenceLoss(WeightedLoss):
    """With latents swapped, the decoded image is clean or corrupted as its latent is: equation 6."""

    def forward(self, swapped_anchor: Tensor, swapped_positive: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
        """
        Args:
            swapped_anchor: decoded from the anchor's latent and the positive's skip.
            swapped_positive: decoded from the positive's latent and the anchor's skip.
            anchor: the clean image.
            positive: the corrupted image.
        """
        mask = anchor != positive
        return self.loss_weight * (
            _masked_mse(swapped_anchor, anchor, mask, self.reduction)
            + _masked_mse(swapped_positive, positive, mask, self.reduction)
        )


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(pred * mask, target * mask, reduction=reduction)
