"""Losses that BasicSR lacks.

Like BasicSR's losses, they take ``loss_weight`` and ``reduction`` (the paper uses ``'mean'``) and return the weighted
loss. Images and latents are ``(N, C, H, W)``. A NaN in the input gives a NaN; the model then skips the optimizer step
and names the loss in the log.
"""

from lnca_model.losses.distance_loss import TripletDistanceLoss
from lnca_model.losses.masked_loss import MaskedTaskLoss, SwapEquivalenceLoss
from lnca_model.losses.overflow_loss import OverflowLoss
from lnca_model.losses.psnr_loss import PSNRLoss
from lnca_model.losses.ssim_loss import SSIMLoss

__all__ = ['MaskedTaskLoss', 'OverflowLoss', 'PSNRLoss', 'SSIMLoss', 'SwapEquivalenceLoss', 'TripletDistanceLoss']
