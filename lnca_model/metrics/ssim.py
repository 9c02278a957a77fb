"""Structural similarity of batches of images."""

import cv2
import numpy as np

from lnca_model.metrics.batch_metric import WINDOW, batch_metric

from basicsr.utils.registry import METRIC_REGISTRY

SIGMA = 1.5
K1, K2 = 0.01, 0.03


@METRIC_REGISTRY.register()
@batch_metric
def calculate_ssim_batch(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the structural similarity (equations 10 and 11; Wang et al., 2004), averaged over channels.

    Args:
        img, img2: ``(H, W, C)`` or ``(N, H, W, C)`` in [0, 255], BGR or grey.
        crop_border: number of pixels to crop at each side.
        test_y_channel: whether to score the luma (Y of YCbCr) instead of all channels.

    Returns:
        The score, or ``(N,)`` scores.

    Raises:
        ValueError: if the images have different shapes, or are smaller than the window, 11×11, after cropping.
    """
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f'SSIM needs images of at least {WINDOW}×{WINDOW} pixels, got {first.shape[:2]}')
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    mean1, mean2 = _blur(first), _blur(second)
    variances = _blur(first**2) - mean1**2 + _blur(second**2) - mean2**2
    covariance = _blur(first * second) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return float(np.mean(luminance * (2 * covariance + c2) / (variances + c2)))


def _blur(image: np.ndarray) -> np.ndarray:
    """Blur an image with the Gaussian window, without padding: ``(H, W, C)`` → ``(H − 10, W − 10, C)``."""
    kernel, half = cv2.getGaussianKernel(WINDOW, SIGMA), WINDOW // 2
    return cv2.sepFilter2D(image, -1, kernel, kernel)[half:-half, half:-half]
