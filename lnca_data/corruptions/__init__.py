"""Synthetic corruptions, with the curriculum of training (paper section 4.1).

They corrupt batches ``(N, C, H, W)`` in [0, 1] on any device, so that a model can corrupt a batch where it trains.
Random numbers come from ``generator``, or from PyTorch's global generator.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Generator, Tensor

from lnca_data.corruptions.motion_blur import MotionBlur
from lnca_data.corruptions.noise import Noise
from lnca_utils.option_checks import construct


class Corruption(Protocol):
    """Corrupts a batch of images.

    ``progress`` is the share of the training phase that is over, in [0, 1]: the difficulty of the curriculum. None
    stands for the fixed difficulty of validation and test.
    """

    def __call__(self, images: Tensor, progress: float | None = None, generator: Generator | None = None) -> Tensor: ...


CORRUPTIONS = {'noise': Noise, 'blur': MotionBlur}


def build_corruption(options: Mapping[str, Any]) -> Corruption:
    """Build a corruption from ``{type: noise|blur, ...}``, the rest being arguments of its class.

    Raises:
        DataError: if the type or an argument is unknown.
    """
    return construct(options, CORRUPTIONS.items(), 'corruption')
