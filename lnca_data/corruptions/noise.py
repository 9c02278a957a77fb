"""Channel-coherent noise (paper section 4.1)."""

import numpy as np
import torch
from torch import Generator, Tensor


class Noise:
    """Gaussian noise, added to each pixel with probability p, with the same value in all channels; clipped to [0, 1].

    Args:
        sigma: standard deviation, relative to the range of the image.
        probability: p in validation and test.
        curriculum: bounds of p in training, which is ``clip(progress)``.

    Raises:
        ValueError: if sigma is negative, a probability is outside [0, 1], or the bounds are not ascending.
    """

    def __init__(
        self, sigma: float = 0.2, probability: float = 0.5, curriculum: tuple[float, float] = (0.25, 0.75)
    ) -> None:
        low, high = curriculum
        if sigma < 0:
            raise ValueError(f'sigma must be at least 0, got {sigma}')
        if not 0 <= probability <= 1 or not 0 <= low <= high <= 1:
            raise ValueError(
                f'probabilities are in [0, 1], and curriculum is [lowest, highest]; got {probability}, {[low, high]}'
            )
        self.sigma = sigma
        self.probability = probability
        self.curriculum = curriculum

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor:
        """Corrupt images ``(N, C, H, W)`` in [0, 1], see :class:`~lnca_data.corruptions.Corruption`."""
        probability = self.probability if progress is None else float(np.clip(progress, *self.curriculum))
        n, _, h, w = images.shape
        hit = torch.rand(n, 1, h, w, device=images.device, generator=generator) < probability
        value = torch.randn(n, 1, h, w, device=images.device, generator=generator) * self.sigma
        return (images + hit * value).clamp(0, 1)
