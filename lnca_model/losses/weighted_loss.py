"""The base class of losses, with the weight and the reduction of BasicSR's losses."""

from torch import nn

REDUCTIONS = ('none', 'mean', 'sum')


class WeightedLoss(nn.Module):
    """Base class of losses with a weight and a reduction.

    Args:
        loss_weight: factor of the loss.
        reduction: ``'none'``, ``'mean'`` or ``'sum'`` over elements.

    Raises:
        ValueError: if the reduction is unknown.
    """

    def __init__(self, loss_weight: float = 1.0, reduction: str = 'mean') -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f'unsupported reduction {reduction!r}; supported: {", ".join(REDUCTIONS)}')
        self.loss_weight = loss_weight
        self.reduction = reduction
