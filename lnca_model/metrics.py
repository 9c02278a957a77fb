"""PSNR and SSIM of many images at once: the numbers of BasicSR's calculate_psnr and calculate_ssim, sooner."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lnca_utils.errors import InputError

from basicsr.metrics.metric_util import to_y_channel
from basicsr.utils.registry import METRIC_REGISTRY

WINDOW, SIGMA = 11, 1.5
PIXELS_AT_ONCE = 16 * 32 * 32  # what fits a processor's cache: several times faster than a large batch
K1, K2 = 0.01, 0.03  # as in the article


def _for_images(metric: Callable[[Tensor, Tensor], Tensor]) -> Callable:
    """Make a metric of what scores ``(N, C, H, W)`` float64 tensors in [0, 255], with the arguments of BasicSR's."""

    @functools.wraps(metric)
    def calculate(
        img: np.ndarray, img2: np.ndarray, crop_border: int, test_y_channel: bool = False, **_: object
    ) -> np.ndarray | float:
        if img.shape != img2.shape:
            raise ValueError(f'images of shapes {img.shape} and {img2.shape} cannot be compared')
        pair = []
        for images in (img, img2):
            images = images if images.ndim == 4 else images[None]
            height, width = images.shape[1:3]
            images = images[:, crop_border : height - crop_border, crop_border : width - crop_border]
            if test_y_channel:
                images = np.stack([to_y_channel(image) for image in images])
            pair.append(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).double())
        at_once = max(1, PIXELS_AT_ONCE // math.prod(pair[0].shape[-2:]))
        parts = zip(*(images.split(at_once) for images in pair), strict=True)
        scores = torch.cat([metric(*part) for part in parts]).numpy()
        return scores if img.ndim == 4 else float(scores[0])

    return calculate


@METRIC_REGISTRY.register()
@_for_images
def calculate_psnr_batch(first: Tensor, second: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, infinite for equal images.

    Args:
        img, img2: ``(H, W, C)`` or ``(N, H, W, C)`` in [0, 255], BGR or grey.
        crop_border: pixels to leave out at each side.
        test_y_channel: score the luma of the two instead of their channels.

    Returns:
        The score, or ``(N,)`` scores.
    """
    return 10 * torch.log10(255**2 / ((first - second) ** 2).mean(dim=(1, 2, 3)))


@METRIC_REGISTRY.register()
@_for_images
def calculate_ssim_batch(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity (equations 10 and 11; Wang et al., 2004), the mean over channels.

    Args:
        img, img2: ``(H, W, C)`` or ``(N, H, W, C)`` in [0, 255], BGR or grey, of at least 11×11 pixels.
        crop_border: pixels to leave out at each side.
        test_y_channel: score the luma of the two instead of their channels.

    Returns:
        The score, or ``(N,)`` scores.
    """
    return ssim(first, second, peak=255)


BATCH_METRICS = (calculate_psnr_batch.__name__, calculate_ssim_batch.__name__)
# Metric → the least height and width of what it scores, after crop_border: ours and BasicSR's.
LEAST_SIDES = {'calculate_psnr': 1, 'calculate_psnr_batch': 1, 'calculate_ssim': WINDOW, 'calculate_ssim_batch': WINDOW}


def check_sizes(options: Mapping[str, Any], sizes: Iterable[tuple[int, int]], where: str) -> None:
    """Raise InputError unless a metric can score images of these heights and widths.

    Args:
        options: ``{type: calculate_ssim, crop_border: 4}``; of metrics that are not known here nothing is said.
        sizes: heights and widths, as far as they are known.
        where: the block's place in the option file, for messages.
    """
    if options.get('type') not in LEAST_SIDES:
        return
    if 'crop_border' not in options:
        raise InputError(f'{where}.crop_border is missing: how many pixels to leave out at each side, such as 0')
    least = LEAST_SIDES[options['type']] + 2 * options['crop_border']
    for height, width in sorted(sizes):
        if min(height, width) < least:
            raise InputError(
                f'{where}: {options["type"]} with crop_border: {options["crop_border"]} needs images of at least '
                f'{least}×{least} pixels, and there are some of {height}×{width}'
            )


def ssim(first: Tensor, second: Tensor, peak: float) -> Tensor:
    """Structural similarity (Wang et al., 2004) of images ``(N, C, H, W)`` in [0, peak], the mean over channels and the
    places where the window fits: ``(N,)``.

    Raises:
        ValueError: the images are smaller than the window, 11×11.
    """
    if min(first.shape[-2:]) < WINDOW:
        raise ValueError(f'SSIM needs images of at least {WINDOW}×{WINDOW} pixels, got {tuple(first.shape[-2:])}')
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    mean1, mean2, square1, square2, product = _blur(
        torch.stack([first, second, first * first, second * second, first * second])
    )
    variances = square1 + square2 - mean1 * mean1 - mean2 * mean2
    covariance = product - mean1 * mean2
    luminance = (2 * mean1 * mean2 + c1) / (mean1 * mean1 + mean2 * mean2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean(dim=(1, 2, 3))


def _blur(images: Tensor) -> Tensor:
    """Gaussian means where the window fits: ``(..., H, W)`` → ``(..., H − 10, W − 10)``.

    As products with two banded matrices: for tiles that is many times faster than a convolution.
    """
    height, width = images.shape[-2:]
    rows_blurred = F.linear(images, _band(width).to(images)).transpose(-1, -2)
    return F.linear(rows_blurred, _band(height).to(images)).transpose(-1, -2)


@functools.lru_cache(maxsize=8)
def _band(size: int) -> Tensor:
    window = torch.from_numpy(cv2.getGaussianKernel(WINDOW, SIGMA)).flatten()
    band = torch.zeros(size - WINDOW + 1, size, dtype=torch.float64)
    for row in range(len(band)):
        band[row, row : row + WINDOW] = window
    return band
