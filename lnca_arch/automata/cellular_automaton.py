"""What every cellular automaton shares: the state's layout, its seed, one step and the rollout."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lnca_arch.acceleration.fused_rollout import fused_rollout, update_masks
from lnca_arch.acceleration.persistent_kernel import PersistentKernel


class CellularAutomaton(nn.Module):
    """A neural cellular automaton on a regular grid (paper section 2.1, equation 1).

    The state of a grid is a tensor ``(N, C, H, W)`` with channels ``[in | out | hidden]``. ``in`` is what the automaton
    is given and never changes, ``out`` is its answer, ``hidden`` its memory. One step adds an update to ``out`` and
    ``hidden`` that each cell computes from its 3×3 neighbourhood.

    A subclass says with :meth:`_update` what its rule is, and with :meth:`fold` and :attr:`fused_update` how to compute
    it fast.

    Args:
        in_channels: channels of the input that every cell keeps seeing.
        out_channels: channels of the answer.
        hidden_channels: channels of memory.

    Attributes:
        memory: what a rollout with gradients keeps for them, a key of
            :data:`~lnca_arch.acceleration.fused_rollout.CHECKPOINT_POLICIES`; None chooses by what there is to keep.
        max_gradient_growth: limit of the gradients in a rollout, see
            :class:`~lnca_arch.acceleration.fused_rollout.GradientGrowthLimit`; None for the exact gradients.
    """

    # The rule once more, as a function ``(cells, folded, *per_cell)``: like :meth:`_update`, but with what :meth:`fold`
    # returned.
    fused_update: ClassVar[Callable[..., Tensor]]
    # How to take all steps of a small grid at once, on CUDA; None if there is no such way.
    resident: ClassVar[PersistentKernel | None] = None
    # Whether what a trained rule does depends on the size of the grid.
    fixed_grid: ClassVar[bool] = False
    # Numbers that a step keeps of each cell for its gradients, about.
    saved_activations_per_cell: ClassVar[int]

    memory: str | None = None
    max_gradient_growth: float | None = None

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels

    @property
    def state_channels(self) -> int:
        return self.in_channels + self.out_channels + self.hidden_channels

    @property
    def mutable_channels(self) -> int:
        """Channels that a step may change: ``out`` and ``hidden``."""
        return self.out_channels + self.hidden_channels

    def seed(self, x: Tensor) -> Tensor:
        """The state before the first step: ``in`` = x, ``out`` = 0.5, ``hidden`` = 0.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, state_channels, H, W)``; at least float32 under autocast.
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
        """The answer in a state: ``(N, out_channels, H, W)``."""
        return state[:, self.in_channels : self.in_channels + self.out_channels]

    def hidden(self, state: Tensor) -> Tensor:
        """The memory in a state: ``(N, hidden_channels, H, W)``."""
        return state[:, self.in_channels + self.out_channels :]

    def forward(self, state: Tensor, steps: int, update_rate: float = 1.0) -> Tensor:
        """Rollout: apply the rule ``steps`` times.

        Args:
            state: ``(N, state_channels, H, W)``, from :meth:`seed` or from an earlier rollout.
            steps: how many steps, at least 0.
            update_rate: probability in (0, 1] that a cell takes part in a step. Below 1 the updates are asynchronous:
                one Bernoulli draw a cell and step, the same for all of the cell's channels.

        Returns:
            The state after the last step, same shape.
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

    def step(self, state: Tensor, update_rate: float = 1.0) -> Tensor:
        """One step; arguments and result as in :meth:`forward`."""
        return self(state, 1, update_rate)

    def reference_rollout(self, state: Tensor, steps: int, update_rate: float = 1.0) -> Tensor:
        """The definition of what :meth:`forward` computes; arguments and result are the same."""
        cells = state.permute(0, 2, 3, 1)
        given, changing = cells[..., : self.in_channels], cells[..., self.in_channels :]
        constants = self.static_features(cells)
        for update_mask in update_masks(cells.shape[:3], steps, update_rate, cells.device):
            cells = torch.cat([given, changing], dim=-1)
            update = self._update(cells, *constants, *self.dropout_masks(cells))
            changing = changing + (update if update_mask is None else update * update_mask)
        return torch.cat([given, changing], dim=-1).permute(0, 3, 1, 2)

    def _update(self, cells: Tensor, *per_cell: Tensor) -> Tensor:
        """The rule: what a step adds to ``out`` and ``hidden`` of each cell.

        Args:
            cells: the state with the channels last: ``(N, H, W, state_channels)``.
            per_cell: from :meth:`static_features` and :meth:`dropout_masks`.

        Returns:
            ``(N, H, W, mutable_channels)``.
        """
        raise NotImplementedError

    def fold(self) -> Any:
        """The rule's parameters for :attr:`fused_update`, linear maps that follow one another merged."""
        raise NotImplementedError

    def static_features(self, cells: Tensor) -> tuple[Tensor, ...]:
        """What :attr:`fused_update` needs of each of the cells ``(N, H, W, C)``, the same in all steps: tensors
        ``(1, H, W, …)``."""
        return ()

    def dropout_masks(self, cells: Tensor) -> tuple[Tensor, ...]:
        """What :attr:`fused_update` needs of each of the cells ``(N, H, W, C)``, drawn anew in every step: tensors
        ``(N, H, W, …)``."""
        return ()

    @property
    def is_stochastic(self) -> bool:
        """Whether :meth:`dropout_masks` does."""
        return False


def check_update_rate(update_rate: float) -> None:
    """Raise ValueError unless 0 < update_rate ≤ 1."""
    if not 0.0 < update_rate <= 1.0:
        raise ValueError(f'update_rate must be above 0 and at most 1, got {update_rate}')
