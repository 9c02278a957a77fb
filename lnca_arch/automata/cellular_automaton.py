"""Base class of the cellular automata: state layout, seed and reference rollout."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from lnca_arch.acceleration.fused_rollout import fused_rollout, update_masks


class CellularAutomaton(nn.Module):
    """A neural cellular automaton on a regular grid (paper section 2.1, equation 1).

    The state is a tensor ``(N, C, H, W)`` with channels ``[in | out | hidden]``: ``in`` is the input and never changes,
    ``out`` is the output, ``hidden`` is memory. In a step, each cell computes an update from its 3×3 neighbourhood and
    adds it to ``out`` and ``hidden``. A subclass defines the rule in :meth:`_update`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        hidden_channels: number of hidden channels.

    Attributes:
        activation_checkpointing: which steps of a rollout with gradients are recomputed in the backward pass:
            ``'full'`` (all), ``'alternate'`` (every second) or ``'none'``. None selects ``'none'`` or ``'full'`` by the
            memory that the activations would take.
        max_gradient_growth: see :class:`~lnca_arch.acceleration.fused_rollout.GradientGrowthLimit`; None for the exact
            gradients.
    """

    #: Whether a trained rule only works on grids of the size that it was trained on.
    fixed_grid: ClassVar[bool] = False

    activation_checkpointing: str | None = None
    max_gradient_growth: float | None = None

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels

    @property
    def state_channels(self) -> int:
        """Number of channels of the state."""
        return self.in_channels + self.out_channels + self.hidden_channels

    @property
    def mutable_channels(self) -> int:
        """Number of channels that a step changes: ``out`` and ``hidden``."""
        return self.out_channels + self.hidden_channels

    def seed(self, x: Tensor) -> Tensor:
        """Return the state before the first step: ``in`` = x, ``out`` = 0.5, ``hidden`` = 0.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, state_channels, H, W)``; under autocast, float32 or wider.

        Raises:
            ValueError: if ``x`` has another shape.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__}.seed needs (N, {self.in_channels}, H, W), got {tuple(x.shape)}')
        if torch.is_autocast_enabled(x.device.type):  # updates are too small for a state in bfloat16
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        n, _, h, w = x.shape
        out = x.new_full((n, self.out_channels, h, w), 0.5)
        hidden = x.new_zeros((n, self.hidden_channels, h, w))
        return torch.cat([x, out, hidden], dim=1)

    def output(self, state: Tensor) -> Tensor:
        """Return the output channels of a state: ``(N, out_channels, H, W)``."""
        return state[:, self.in_channels : self.in_channels + self.out_channels]

    def hidden(self, state: Tensor) -> Tensor:
        """Return the hidden channels of a state: ``(N, hidden_channels, H, W)``."""
        return state[:, self.in_channels + self.out_channels :]

    def forward(self, state: Tensor, steps: int, update_rate: float = 1.0) -> Tensor:
        """Apply the rule ``steps`` times.

        Args:
            state: ``(N, state_channels, H, W)``, from :meth:`seed` or an earlier rollout.
            steps: number of steps, at least 0.
            update_rate: probability in (0, 1] that a cell is updated in a step. Below 1, updates are asynchronous: one
                Bernoulli draw per cell and step, shared by the cell's channels.

        Returns:
            The state after the last step, of the same shape.

        Raises:
            ValueError: if an argument is out of range, or the state has another shape.
        """
        if state.dim() != 4 or state.shape[1] != self.state_channels:
            raise ValueError(
                f'{type(self).__name__} needs a state of shape (N, {self.state_channels}, H, W), '
                f'got {tuple(state.shape)}'
            )
        if steps < 0:
            raise ValueError(f'steps must be at least 0, got {steps}')
        check_update_rate(update_rate)
        return fused_rollout(self, state, steps, update_rate)

    def reference_rollout(self, state: Tensor, steps: int, update_rate: float = 1.0) -> Tensor:
        """Apply the rule step by step, without optimizations; this defines the result of :meth:`forward`.

        Arguments and return value are those of :meth:`forward`.
        """
        cells = state.permute(0, 2, 3, 1)
        fixed, mutable = cells[..., : self.in_channels], cells[..., self.in_channels :]
        static_features = self.static_features(cells)
        for update_mask in update_masks(cells.shape[:3], steps, update_rate, cells.device):
            cells = torch.cat([fixed, mutable], dim=-1)
            update = self._update(cells, *static_features, *self.dropout_masks(cells))
            mutable = mutable + (update if update_mask is None else update * update_mask)
        return torch.cat([fixed, mutable], dim=-1).permute(0, 3, 1, 2)

    def _update(self, cells: Tensor, *per_cell: Tensor) -> Tensor:
        """Compute what a step adds to the output and hidden channels of each cell.

        Args:
            cells: the state, channels last: ``(N, H, W, state_channels)``.
            per_cell: from :meth:`static_features` and :meth:`dropout_masks`.

        Returns:
            ``(N, H, W, mutable_channels)``.
        """
        raise NotImplementedError

    def static_features(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Return inputs of :meth:`_update` that are the same in all steps, ``(1, H, W, …)``.

        Args:
            cells: ``(N, H, W, C)``.
        """
        return ()

    def dropout_masks(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Return inputs of :meth:`_update` that are drawn anew in every step, ``(N, H, W, …)``.

        Args:
            cells: ``(N, H, W, C)``.
        """
        return ()

    @property
    def is_stochastic(self) -> bool:
        """Whether :meth:`dropout_masks` draws random numbers."""
        return False


def check_update_rate(update_rate: float) -> None:
    """Raise ValueError unless 0 < update_rate ≤ 1."""
    if not 0.0 < update_rate <= 1.0:
        raise ValueError(f'update_rate must be above 0 and at most 1, got {update_rate}')
