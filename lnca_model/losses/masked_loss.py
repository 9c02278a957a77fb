"""The task loss and the equivalence loss of the autoencoder, on corrupted pixels only (paper section 3.2.1)."""

import torch.nn.functional as F
from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class MaskedTaskLoss(WeightedLoss):
    """MSE between the reconstruction and the corrupted image, on corrupted pixels (equation 5).

    The mean is over all elements, not over the corrupted ones, and 0 if no pixel is corrupted.

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.
    """

    def forward(self, reconstruction: Tensor, positive: Tensor, anchor: Tensor) -> Tensor:
        """Compute the loss of images ``(N, C, H, W)``.

        Args:
            reconstruction: the autoencoder's reconstructions of ``positive``.
            positive: the corrupted images.
            anchor: the clean images.
        """
        return self.loss_weight * _masked_mse(reconstruction, positive, anchor != positive, self.reduction)


@LOSS_REGISTRY.register()
class SwapEquivalenceLoss(WeightedLoss):
    """MSE of images decoded with swapped skip connections, on corrupted pixels (equation 6).

    It makes the latent, not the skip connection, determine whether the decoded image is clean or corrupted.

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.
    """

    def forward(self, swapped_anchor: Tensor, swapped_positive: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
        """Compute the loss of images ``(N, C, H, W)``.

        Args:
            swapped_anchor: decoded from the latents of ``anchor`` and the skip connections of ``positive``.
            swapped_positive: decoded from the latents of ``positive`` and the skip connections of ``anchor``.
            anchor: the clean images.
            positive: the corrupted images.
        """
        mask = anchor != positive
        return self.loss_weight * (
            _masked_mse(swapped_anchor, anchor, mask, self.reduction)
            + _masked_mse(swapped_positive, positive, mask, self.reduction)
        )


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(pred * mask, target * mask, reduction=reduction)
