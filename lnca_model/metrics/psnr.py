"""Peak signal-to-noise ratio of batches of images."""

import numpy as np

from lnca_model.metrics.batch_metric import batch_metric

from basicsr.utils.registry import METRIC_REGISTRY


@METRIC_REGISTRY.register()
@batch_metric
def calculate_psnr_batch(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio in dB, infinite for equal images.

    Args:
        img, img2: ``(H, W, C)`` or ``(N, H, W, C)`` in [0, 255], BGR or grey.
        crop_border: number of pixels to crop at each side.
        test_y_channel: whether to score the luma (Y of YCbCr) instead of all channels.

    Returns:
        The score, or ``(N,)`` scores.

    Raises:
        ValueError: if the images have different shapes.
    """
    error = np.mean((first - second) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf
