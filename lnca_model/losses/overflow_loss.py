"""The overflow loss of the automaton (paper section 3.2.2)."""

from torch import Tensor

from lnca_model.losses.weighted_loss import WeightedLoss

from basicsr.losses.loss_util import reduce_loss
from basicsr.utils.registry import LOSS_REGISTRY


@LOSS_REGISTRY.register()
class OverflowLoss(WeightedLoss):
    """Absolute distance of values from the range [low, high] (equation 9).

    Args:
        loss_weight, reduction: see :class:`WeightedLoss`.
        low, high: bounds of the range, [0, 1] for the output channels of an automaton and [−1, 1] for its hidden ones.

    Raises:
        ValueError: if ``low`` is above ``high``.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean', low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(loss_weight, reduction)
        if low > high:
            raise ValueError(f'low must not be above high, got {low} and {high}')
        self.low = low
        self.high = high

    def forward(self, values: Tensor) -> Tensor:
        """Compute the loss of values of any shape."""
        excess = (values - values.clamp(self.low, self.high)).abs()
        return self.loss_weight * reduce_loss(excess, self.reduction)
