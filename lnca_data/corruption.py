"""Synthetic damage: channel-coherent noise and motion blur (paper section 4.1), with the training curriculum.

Works on batches, on any device, so that a model can corrupt a batch where it trains. Images are ``(N, C, H, W)`` in
[0, 1]. Random numbers come from ``generator``, or from PyTorch's global one.
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lnca_utils.errors import construct

ANGLES = 360
LARGEST_KERNEL = 255  # pixels; the kernels of all angles take 94 MB then


class Corruption(Protocol):
    """Damages a batch of images.

    ``progress`` is the share of the training phase that is over, 0 to 1: the curriculum's difficulty. Without it the
    difficulty is that of validation and test.
    """

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor: ...


class Noise:
    """Each pixel is hit with probability p; the hit ones get one Gaussian value on all channels; clipped to [0, 1].

    Args:
        sigma: standard deviation of the Gaussian, in units of the image's range.
        probability: p in validation and test.
        curriculum: bounds of p in training, where p is the progress clipped to them.

    Raises:
        ValueError: sigma is negative, a probability outside [0, 1], or the bounds are the wrong way round.
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
        probability = self.probability if progress is None else clip(progress, *self.curriculum)
        n, _, h, w = images.shape
        hit = torch.rand(n, 1, h, w, device=images.device, generator=generator) < probability
        value = torch.randn(n, 1, h, w, device=images.device, generator=generator) * self.sigma
        return (images + hit * value).clamp(0, 1)


class MotionBlur:
    """Each image is convolved with a line of random direction, zeros beyond its borders.

    Args:
        size: side of the kernel, in pixels, in validation and test.
        full_size: the side that the curriculum is heading for, before clipping.
        curriculum: bounds of the side in training, where it is ``int(clip(full_size · progress))``.

    Raises:
        ValueError: a side is below 1 or above 255, or the bounds are the wrong way round.
    """

    def __init__(self, size: int = 7, full_size: int = 15, curriculum: tuple[int, int] = (4, 10)) -> None:
        low, high = curriculum
        if not 1 <= size <= LARGEST_KERNEL or full_size < 1 or not 1 <= low <= high <= LARGEST_KERNEL:
            raise ValueError(
                f'sides are from 1 to {LARGEST_KERNEL} pixels, and curriculum is [smallest, largest]; got size {size}, '
                f'full_size {full_size}, curriculum {[low, high]}'
            )
        self.size = size
        self.full_size = full_size
        self.curriculum = curriculum

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor:
        size = self.size if progress is None else int(clip(self.full_size * progress, *self.curriculum))
        angles = torch.randint(ANGLES, (len(images),), device=images.device, generator=generator)
        return motion_blur(images, motion_kernels(size).to(images.device)[angles])


CORRUPTIONS = {'noise': Noise, 'blur': MotionBlur}


def build_corruption(options: Mapping[str, Any]) -> Corruption:
    """A corruption from ``{type: noise|blur, ...}``, the rest being the arguments of :class:`Noise` or
    :class:`MotionBlur`.

    Raises:
        InputError: unknown type or argument.
    """
    return construct(options, CORRUPTIONS.items(), 'corruption')


def motion_kernel(size: int, angle: int) -> np.ndarray:
    """A horizontal line rotated by ``angle`` degrees, summing to 1: ``(size, size)`` float32."""
    kernel = np.zeros((size, size), np.float32)
    kernel[(size - 1) // 2] = 1
    centre = (size / 2 - 0.5, size / 2 - 0.5)
    kernel = cv2.warpAffine(kernel, cv2.getRotationMatrix2D(centre, angle, 1.0), (size, size))
    return kernel / kernel.sum()


@functools.cache
def motion_kernels(size: int) -> Tensor:
    """The kernels of every whole angle: ``(360, size, size)``."""
    return torch.from_numpy(np.stack([motion_kernel(size, angle) for angle in range(ANGLES)]))


def motion_blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image of ``(N, C, H, W)`` with its own kernel of ``(N, k, k)``, zero-padded to the same size."""
    n, c, h, w = images.shape
    size = kernels.shape[-1]
    before, after = (size - 1) // 2, size // 2
    padded = F.pad(images, (before, after, before, after)).reshape(1, n * c, h + size - 1, w + size - 1)
    weight = kernels.repeat_interleave(c, dim=0).unsqueeze(1)
    return F.conv2d(padded, weight, groups=n * c).view(n, c, h, w).clamp(0, 1)


def clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
