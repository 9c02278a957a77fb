"""The losses that BasicSR lacks (paper sections 3.2.1 and 3.2.2; table in the reference).

As with BasicSR's own, each takes ``loss_weight`` and ``reduction`` (``'none' | 'mean' | 'sum'`` over elements, the
paper's being ``'mean'``) and returns the weighted loss. A NaN in gives a NaN out: the model leaves out the step of the
optimiser and names the loss. Images and latents are ``(N, C, H, W)``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_model.distributed import mean_over_ranks, world_size
from lnca_model.metrics import WINDOW, ssim

from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY

REDUCTIONS = ('none', 'mean', 'sum')


class _Loss(nn.Module):
    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'unsupported reduction {reduction!r}; supported: {", ".join(REDUCTIONS)}')
        self.loss_weight = loss_weight
        self.reduction = reduction


@LOSS_REGISTRY.register()
class TripletDistanceLoss(_Loss):
    """max(0, MSE(anchor, positive) − MSE(anchor, negative) + margin): equation 4.

    The hinge acts last, on the reduced distances: on means or sums over the whole batch, of all processes.

    Args:
        margin: the paper's α.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', margin: float = 1.0) -> None:
        super().__init__(loss_weight, reduction)
        self.margin = margin

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """All three are latents of one shape."""
        near = F.mse_loss(anchor, positive, reduction=self.reduction)
        far = F.mse_loss(anchor, negative, reduction=self.reduction)
        difference, margin = near - far, self.margin
        if self.reduction != 'none':
            difference = mean_over_ranks(difference)
        if self.reduction == 'sum':
            margin /= world_size()  # each rank returns its share of the whole
        return self.loss_weight * (difference + margin).clamp(min=0)


@LOSS_REGISTRY.register()
class MaskedTaskLoss(_Loss):
    """MSE of the reconstruction of the corrupted image where it is corrupted: equation 5.

    The mean is over all elements, masked or not; where nothing is corrupted the loss is 0.
    """

    def forward(self, reconstruction: Tensor, positive: Tensor, anchor: Tensor) -> Tensor:
        """
        Args:
            reconstruction: the autoencoder's reconstruction of ``positive``.
            positive: the corrupted image.
            anchor: the clean image.
        """
        return self.loss_weight * _masked_mse(reconstruction, positive, anchor != positive, self.reduction)


@LOSS_REGISTRY.register()
class SwapEquivalenceLoss(_Loss):
    """With latents swapped, the decoded image is clean or corrupted as its latent is: equation 6."""

    def forward(self, swapped_anchor: Tensor, swapped_positive: Tensor, anchor: Tensor, positive: Tensor) -> Tensor:
        """
        Args:
            swapped_anchor: decoded from the anchor's latent and the positive's skip.
            swapped_positive: decoded from the positive's latent and the anchor's skip.
            anchor: the clean image.
            positive: the corrupted image.
        """
        mask = anchor != positive
        return self.loss_weight * (
            _masked_mse(swapped_anchor, anchor, mask, self.reduction)
            + _masked_mse(swapped_positive, positive, mask, self.reduction)
        )


@LOSS_REGISTRY.register()
class OverflowLoss(_Loss):
    """How far values are outside [low, high]: equation 9.

    Args:
        low, high: 0 and 1 for an automaton's output, −1 and 1 for its hidden channels.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(loss_weight, reduction)
        if low > high:
            raise ValueError(f'low must not be above high, got {low} and {high}')
        self.low = low
        self.high = high

    def forward(self, values: Tensor) -> Tensor:
        excess = (values - values.clamp(self.low, self.high)).abs()
        return self.loss_weight * reduce_loss(excess, self.reduction)


@LOSS_REGISTRY.register()
class PSNRLoss(_Loss):
    """Minus the peak signal-to-noise ratio in dB of images in [0, 1], the loss of NAFNet (Chen et al., 2022).

    ``'none'`` gives one value an image: ``(N,)``. Identical images count as 80 dB.
    """

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        mse = ((pred - target) ** 2).mean(dim=(1, 2, 3))
        return self.loss_weight * reduce_loss(10 / math.log(10) * torch.log(mse + 1e-8), self.reduction)


@LOSS_REGISTRY.register()
class SSIMLoss(_Loss):
    """One minus the structural similarity (Wang et al., 2004) of images in [0, 1], as the metric has it.

    ``'none'`` gives one value an image: ``(N,)``. It hardly sees how bright a picture is: combine it with another loss.

    Attributes:
        least_side: pixels that images must have in height and width.
    """

    least_side = WINDOW

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Both are of at least 11×11 pixels."""
        return self.loss_weight * reduce_loss(1 - ssim(pred.float(), target.float(), peak=1), self.reduction)


def _masked_mse(pred: Tensor, target: Tensor, mask: Tensor, reduction: str) -> Tensor:
    return F.mse_loss(pred * mask, target * mask, reduction=reduction)
