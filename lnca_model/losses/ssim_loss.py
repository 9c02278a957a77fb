"""The structural similarity as a loss."""

import cv2
import torch
from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss
from lnca_model.metrics.ssim import K1, K2, SIGMA, WINDOW

from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class SSIMLoss(WeightedLoss):
    """One minus the structural similarity (Wang et al., 2004), computed like the metric.

    Reduction ``'none'`` returns one value per image. The structural similarity is insensitive to the brightness of an
    image, so combine this loss with another one.

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.

    Attributes:
        least_side: smallest height and width of the images, in pixels.
    """

    least_side = WINDOW

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of images ``(N, C, H, W)`` in [0, 1], of at least 11×11 pixels."""
        return self.loss_weight * reduce_loss(1 - ssim(pred.float(), target.float()), self.reduction)


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Compute the structural similarity of images, averaged over channels and positions.

    Args:
        first, second: ``(N, C, H, W)`` in [0, 1].

    Returns:
        ``(N,)``, in [−1, 1].

    Raises:
        ValueError: if the images are smaller than the window, 11×11.
    """
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(f'SSIM needs images of at least {WINDOW}×{WINDOW} pixels, got {tuple(first.shape[-2:])}')
    mean1, mean2, square1, square2, product = _blur(
        torch.stack([first, second, first * first, second * second, first * second])
    )
    variances = square1 + square2 - mean1 * mean1 - mean2 * mean2
    covariance = product - mean1 * mean2
    luminance = (2 * mean1 * mean2 + K1**2) / (mean1 * mean1 + mean2 * mean2 + K1**2)
    return (luminance * (2 * covariance + K2**2) / (variances + K2**2)).mean(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Blur images with the Gaussian window, without padding: ``(..., H, W)`` → ``(..., H − 10, W − 10)``.

    It sums shifted images, which is several times faster on a CPU than a convolution with few channels.
    """
    half = WINDOW // 2
    weights = cv2.getGaussianKernel(WINDOW, SIGMA).ravel().tolist()
    for axis in (-1, -2):
        size = images.shape[axis] - 2 * half
        blurred = images.narrow(axis, half, size) * weights[half]
        for shift in range(half):
            both = images.narrow(axis, shift, size) + images.narrow(axis, WINDOW - 1 - shift, size)
            blurred.add_(both, alpha=weights[shift])
        images = blurred
    return images
