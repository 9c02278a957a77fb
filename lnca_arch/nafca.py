"""NAFCA: the attention-free rule (paper section 3.1.2)."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automaton import CellularAutomaton

from basicsr.utils.registry import ARCH_REGISTRY


class Folded(NamedTuple):
    """Linear maps of :class:`NAFCA` merged with their neighbours; see :meth:`NAFCA._fold`."""

    perceive_weight: Tensor
    perceive_bias: Tensor
    project_bias: Tensor
    ffn_project_weight: Tensor
    ffn_project_bias: Tensor


@ARCH_REGISTRY.register()
class NAFCA(CellularAutomaton):
    """Nonlinear-activation-free cellular automaton: a perception block, an update block and a head.

    The only nonlinearities are products of channels ("simple gate", as in NAFNet) and layer norms. Neighbours are seen
    once a step, by a 3×3 convolution to a single channel that scales each cell (equation 2).

    Args:
        in_channels, out_channels, hidden_channels: see :class:`CellularAutomaton`.
        embed_channels: width of the perception block, an even number.
        ffn_expand: width of the update block, as a multiple of the state's channels.
        dropout: probability of dropout at the end of both blocks, in training only.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        embed_channels: int = 128,
        ffn_expand: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden_channels)
        channels = self.state_channels
        ffn_channels = ffn_expand * channels
        if embed_channels % 2 or ffn_channels % 2:
            raise ValueError(
                'the simple gate halves its channels: embed_channels and ffn_expand × state channels must be even, '
                f'got {embed_channels} and {ffn_channels}'
            )
        self.perception_norm = nn.LayerNorm(channels, eps=1e-6)
        self.embed = nn.Conv2d(channels, embed_channels, 1)
        self.expand = nn.Conv2d(embed_channels, 2 * embed_channels, 1, groups=embed_channels)
        self.attention = nn.Conv2d(embed_channels, 1, 3, padding=1)
        self.project = nn.Conv2d(embed_channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(channels))

        self.update_norm = nn.LayerNorm(channels, eps=1e-6)
        self.ffn_expand = nn.Conv2d(channels, ffn_channels, 1)
        self.ffn_project = nn.Conv2d(ffn_channels // 2, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(channels))

        self.head_norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Conv2d(channels, self.changing_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def _constants(self, state: Tensor) -> Folded:
        with torch.autocast(state.device.type, enabled=False):
            return self._fold()

    def _fold(self) -> Folded:
        """Merge the linear maps that follow one another, once a rollout.

        With a, b the two halves of ``embed``'s output, ``expand`` and the simple gate make two channels of each pair:
        (w1·a + v1)·(w2·b + v2) = w1·w2·ab + w1·v2·a + v1·w2·b + v1·v2. What reads them is linear, too (``project`` and
        the nine taps of ``attention``), and so are a and b in ``embed``'s input x. So the block needs ab and x only.
        """
        embed, half = self.embed.weight.flatten(1), self.embed.out_channels // 2
        w1, w2 = self.expand.weight.view(2, half, 2)
        v1, v2 = self.expand.bias.view(2, half, 2)
        project = self.beta.unsqueeze(1) * self.project.weight.flatten(1)
        taps = self.attention.weight[0].flatten(1).t()
        read = torch.cat([project, taps]).view(-1, half, 2)
        of_ab, of_1 = (read * (w1 * w2)).sum(-1), (read * (v1 * v2)).sum((-2, -1))
        of_halves = torch.cat([(read * (w1 * v2)).sum(-1), (read * (v1 * w2)).sum(-1)], dim=1)
        return Folded(
            perceive_weight=torch.cat([of_ab, of_halves @ embed], dim=1),
            perceive_bias=of_1 + of_halves @ self.embed.bias,
            project_bias=self.beta * self.project.bias,
            ffn_project_weight=self.gamma.unsqueeze(1) * self.ffn_project.weight.flatten(1),
            ffn_project_bias=self.gamma * self.ffn_project.bias,
        )

    def _update(self, cells: Tensor, constants: Folded) -> Tensor:
        x = cells
        x = x + self.dropout(self._perceive(self.perception_norm(x), constants))
        x = x + self.dropout(self._transition(self.update_norm(x), constants))
        return _pointwise(self.head, self.head_norm(x))

    def _perceive(self, x: Tensor, folded: Folded) -> Tensor:
        gated = _simple_gate(_pointwise(self.embed, x))
        read = F.linear(torch.cat([gated, x], dim=-1), folded.perceive_weight, folded.perceive_bias)
        projected, taps = read.split([self.state_channels, 9], dim=-1)
        return torch.addcmul(folded.project_bias, projected, self.attention.bias + _sum_of_neighbours(taps))

    def _transition(self, x: Tensor, folded: Folded) -> Tensor:
        gated = _simple_gate(_pointwise(self.ffn_expand, x))
        return F.linear(gated, folded.ffn_project_weight, folded.ffn_project_bias)


def _pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution of ``(N, H, W, C)``: a matrix product, and faster as one."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _simple_gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels of ``(..., C)``."""
    first, second = x.chunk(2, dim=-1)
    return first * second


def _sum_of_neighbours(taps: Tensor) -> Tensor:
    """The second half of a 3×3 convolution to one channel, whose first half gave each cell its nine products.

    Args:
        taps: ``(N, H, W, 9)``: what a cell contributes as the top left, …, bottom right neighbour of another.

    Returns:
        ``(N, H, W, 1)``: each cell's sum over its neighbours; there is nothing beyond the border.
    """
    height, width = taps.shape[1:3]
    taps = F.pad(taps, (0, 0, 1, 1, 1, 1))
    shifted = [taps[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width, k, None] for k in range(9)]
    return functools.reduce(torch.add, shifted)
