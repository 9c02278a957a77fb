"""The losses that BasicSR lacks.

Like BasicSR's own, each takes ``loss_weight`` and ``reduction`` (``'none'``, ``'mean'`` or ``'sum'`` over elements; the
paper uses ``'mean'``) and returns the weighted loss. A NaN in the input gives a NaN: the model skips the optimiser step
and names the loss. Images and latents are ``(N, C, H, W)``.
"""

from lnca_model.losses.distance_loss import TripletDistanceLoss
from lnca_model.losses.masked_loss import MaskedTaskLoss, SwapEquivalenceLoss
from lnca_model.losses.overflow_loss import OverflowLoss
from lnca_model.losses.psnr_loss import PSNRLoss
from lnca_model.losses.ssim_loss import SSIMLoss

__all__ = ['MaskedTaskLoss', 'OverflowLoss', 'PSNRLoss', 'SSIMLoss', 'SwapEquivalenceLoss', 'TripletDistanceLoss']
