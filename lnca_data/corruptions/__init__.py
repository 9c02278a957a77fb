"""Synthetic corruptions with a training curriculum (paper section 4.1), applied to batches on any device."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Generator, Tensor

from lnca_data.corruptions.motion_blur import MotionBlur
from lnca_data.corruptions.noise import Noise
from lnca_utils.option_checks import construct


class Corruption(Protocol):
    """A random corruption of images."""

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor:
        """Corrupt a batch of images.

        Args:
            images: ``(N, C, H, W)`` in [0, 1].
            progress: completed fraction of the training phase, in [0, 1], which sets the difficulty of the curriculum;
                None for the fixed difficulty of validation and test.
            generator: source of random numbers; None for PyTorch's global generator.

        Returns:
            ``(N, C, H, W)`` in [0, 1].
        """


CORRUPTIONS = {'noise': Noise, 'blur': MotionBlur}


def build_corruption(options: Mapping[str, Any]) -> Corruption:
    """Build the corruption that a block of options describes.

    Args:
        options: ``type``, ``noise`` or ``blur``, and arguments of its class.

    Raises:
        ConfigError: if the type or an argument is unknown or invalid.
    """
    return construct(options, CORRUPTIONS.items(), 'corruption')
