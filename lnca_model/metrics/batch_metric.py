"""The decorator of the batch metrics, and the image sizes that metrics need."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from lnca_utils.errors import ConfigError

from basicsr.metrics.metric_util import to_y_channel

WINDOW = 11  # of SSIM
#: Metric → smallest height and width of the images, after cropping by crop_border.
MIN_SIDES = {'calculate_psnr': 1, 'calculate_psnr_batch': 1, 'calculate_ssim': WINDOW, 'calculate_ssim_batch': WINDOW}


def batch_metric(score: Callable[[np.ndarray, np.ndarray], float]) -> Callable[..., np.ndarray | float]:
    """Decorate a score of two images: add batches and the arguments of BasicSR's metrics.

    Args:
        score: a function of two ``(H, W, C)`` float64 images in [0, 255].

    Returns:
        A function that returns a number for images ``(H, W, C)``, and ``(N,)`` scores for images ``(N, H, W, C)``.
    """

    @functools.wraps(score)
    def calculate(
        img: np.ndarray, img2: np.ndarray, crop_border: int, test_y_channel: bool = False, **_: object
    ) -> np.ndarray | float:
        if img.shape != img2.shape:
            raise ValueError(f'images of shapes {img.shape} and {img2.shape} cannot be compared')

        def prepare(image: np.ndarray) -> np.ndarray:
            height, width = image.shape[:2]
            image = image[crop_border : height - crop_border, crop_border : width - crop_border]
            return (to_y_channel(image) if test_y_channel else image).astype(np.float64)

        if img.ndim == 3:
            return score(prepare(img), prepare(img2))
        return np.array([score(prepare(first), prepare(second)) for first, second in zip(img, img2, strict=True)])

    del calculate.__wrapped__  # its signature is another one
    return calculate


def check_sizes(options: Mapping[str, Any], sizes: Iterable[tuple[int, int]], where: str) -> None:
    """Check that a metric can score images of given sizes.

    Args:
        options: the block of the metric, such as ``{type: calculate_ssim, crop_border: 4}``. Metrics that are not in
            :data:`MIN_SIDES` are not checked.
        sizes: known heights and widths of the images.
        where: the block's place in the option file, for messages.

    Raises:
        ConfigError: if ``crop_border`` is missing, or an image is too small.
    """
    if options.get('type') not in MIN_SIDES:
        return
    if 'crop_border' not in options:
        raise ConfigError(f'{where}.crop_border is missing; set the number of pixels to crop at each side, such as 0')
    smallest = MIN_SIDES[options['type']] + 2 * options['crop_border']
    for height, width in sorted(sizes):
        if min(height, width) < smallest:
            raise ConfigError(
                f'{where}: {options["type"]} with crop_border: {options["crop_border"]} needs images of at least '
                f'{smallest}×{smallest} pixels, got {height}×{width}'
            )
