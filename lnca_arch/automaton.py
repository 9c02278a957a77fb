"""What every cellular automaton shares: the state's layout, its seed, one step and the rollout."""

from typing import Any

import torch
from torch import Tensor, nn

# Without gradients a processor takes this many cells through all steps before the next: what a step computes then stays
# in its cache.
CELLS_AT_ONCE = 4096

# The C library gives freed memory back to the system above twice the largest block that it has seen freed, and every
# step would fault it in again, for a third of its time. A block that is never touched costs nothing.
torch.empty(31 << 20, dtype=torch.uint8)


class CellularAutomaton(nn.Module):
    """A neural cellular automaton on a regular grid (paper section 2.1, equation 1).

    The state of a grid is a tensor ``(N, C, H, W)`` with channels ``[in | out | hidden]``. ``in`` is what the automaton
    is given and never changes, ``out`` is its answer, ``hidden`` its memory. One step adds an update to ``out`` and
    ``hidden`` that each cell computes from its 3×3 neighbourhood. A subclass provides :meth:`_update`.

    Args:
        in_channels: channels of the input that every cell keeps seeing.
        out_channels: channels of the answer.
        hidden_channels: channels of memory.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.hidden_channels = hidden_channels

    @property
    def state_channels(self) -> int:
        return self.in_channels + self.out_channels + self.hidden_channels

    @property
    def changing_channels(self) -> int:
        """Channels that a step may change: ``out`` and ``hidden``."""
        return self.out_channels + self.hidden_channels

    def seed(self, x: Tensor) -> Tensor:
        """The state before the first step: ``in`` = x, ``out`` = 0.5, ``hidden`` = 0.

        Args:
            x: ``(N, in_channels, H, W)``.

        Returns:
            ``(N, state_channels, H, W)``.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'{type(self).__name__}.seed needs (N, {self.in_channels}, H, W), got {tuple(x.shape)}')
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
        # A rule works on the channels of single cells: with those side by side in memory, a step takes half the time.
        state = state.contiguous(memory_format=torch.channels_last)
        constants = self._constants(state)
        if torch.is_grad_enabled() or state.device.type != 'cpu':
            return self._rollout(state, steps, update_rate, constants)
        height, width = state.shape[-2:]
        images = max(1, CELLS_AT_ONCE // (height * width))
        return torch.cat([self._rollout(part, steps, update_rate, constants) for part in state.split(images)])

    def step(self, state: Tensor, update_rate: float = 1.0) -> Tensor:
        """One step; arguments and result as in :meth:`forward`."""
        return self(state, 1, update_rate)

    def _rollout(self, state: Tensor, steps: int, update_rate: float, constants: Any) -> Tensor:
        for _ in range(steps):
            state = self._step(state, update_rate, constants)
        return state

    def _step(self, state: Tensor, update_rate: float, constants: Any) -> Tensor:
        update = self._update(state.permute(0, 2, 3, 1), constants).permute(0, 3, 1, 2)
        if update_rate < 1.0:
            n, _, h, w = state.shape
            takes_part = torch.rand(n, 1, h, w, device=state.device) < update_rate
            update = update * takes_part
        return torch.cat([state[:, : self.in_channels], state[:, self.in_channels :] + update], dim=1)

    def _constants(self, state: Tensor) -> Any:
        """What :meth:`_update` needs besides the state and is the same in every step of a rollout."""
        return None

    def _update(self, cells: Tensor, constants: Any) -> Tensor:
        """The rule: what a step adds to ``out`` and ``hidden`` of each cell.

        Args:
            cells: the state with the channels last: ``(N, H, W, state_channels)``.
            constants: from :meth:`_constants`.

        Returns:
            ``(N, H, W, changing_channels)``.
        """
        raise NotImplementedError


def check_update_rate(update_rate: float) -> None:
    """Raise ValueError unless 0 < update_rate ≤ 1."""
    if not 0.0 < update_rate <= 1.0:
        raise ValueError(f'update_rate must be above 0 and at most 1, got {update_rate}')
