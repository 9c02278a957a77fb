"""Motion blur along a straight line (paper section 4.1)."""

import functools

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

ANGLES = 360
MAX_KERNEL_SIZE = 255  # pixels; the kernels of all angles then take 94 MB


class MotionBlur:
    """Convolution of each image with a line of random direction, with zero padding.

    Args:
        size: kernel size in validation and test, in pixels.
        full_size: kernel size at the end of the curriculum, before it is clipped.
        curriculum: bounds of the kernel size in training, which is ``int(clip(full_size · progress))``.

    Raises:
        ValueError: if a size is below 1 or above 255, or the bounds are not ascending.
    """

    def __init__(self, size: int = 7, full_size: int = 15, curriculum: tuple[int, int] = (4, 10)) -> None:
        low, high = curriculum
        if not 1 <= size <= MAX_KERNEL_SIZE or full_size < 1 or not 1 <= low <= high <= MAX_KERNEL_SIZE:
            raise ValueError(
                f'kernel sizes are from 1 to {MAX_KERNEL_SIZE} pixels, and curriculum is [lowest, highest]; got '
                f'size {size}, full_size {full_size}, curriculum {[low, high]}'
            )
        self.size = size
        self.full_size = full_size
        self.curriculum = curriculum

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor:
        """Corrupt images ``(N, C, H, W)`` in [0, 1], see :class:`~lnca_data.corruptions.Corruption`."""
        size = self.size if progress is None else int(np.clip(self.full_size * progress, *self.curriculum))
        angles = torch.randint(ANGLES, (len(images),), device=images.device, generator=generator)
        return motion_blur(images, motion_kernels(size).to(images.device)[angles])


def motion_kernel(size: int, angle: int) -> np.ndarray:
    """Return a horizontal line rotated by ``angle`` degrees, with sum 1: ``(size, size)`` float32."""
    kernel = np.zeros((size, size), np.float32)
    kernel[(size - 1) // 2] = 1
    centre = (size / 2 - 0.5, size / 2 - 0.5)
    rotated = cv2.warpAffine(kernel, cv2.getRotationMatrix2D(centre, angle, 1.0), (size, size))
    return rotated / rotated.sum()


@functools.cache
def motion_kernels(size: int) -> Tensor:
    """Return the kernels of angles 0 … 359°: ``(360, size, size)``."""
    return torch.from_numpy(np.stack([motion_kernel(size, angle) for angle in range(ANGLES)]))


def motion_blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image with its own kernel, with zero padding.

    Args:
        images: ``(N, C, H, W)``.
        kernels: ``(N, k, k)``.

    Returns:
        ``(N, C, H, W)``, clipped to [0, 1].
    """
    n, c, h, w = images.shape
    size = kernels.shape[-1]
    before, after = (size - 1) // 2, size // 2
    padded = F.pad(images, (before, after, before, after)).reshape(1, n * c, h + size - 1, w + size - 1)
    weight = kernels.repeat_interleave(c, dim=0).unsqueeze(1)
    return F.conv2d(padded, weight, groups=n * c).view(n, c, h, w).clamp(0, 1)
