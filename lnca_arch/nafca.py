"""NAFCA: the attention-free rule (paper section 3.1.2)."""

import torch
import torch.nn.functional as F
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from lnca_arch.automaton import CellularAutomaton


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

    def _update(self, cells: Tensor, constants: None) -> Tensor:
        x = cells
        x = x + self.beta * self.dropout(self._perceive(self.perception_norm(x)))
        x = x + self.gamma * self.dropout(self._transition(self.update_norm(x)))
        return _pointwise(self.head, self.head_norm(x))

    def _perceive(self, x: Tensor) -> Tensor:
        x = _pointwise(self.embed, x)
        # Groups of one input and two output channels: a scale and a shift. As a grouped convolution it is slower.
        x = x.repeat_interleave(2, dim=-1) * self.expand.weight.flatten() + self.expand.bias
        x = _simple_gate(x)
        attention = self.attention(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return _pointwise(self.project, x * attention)

    def _transition(self, x: Tensor) -> Tensor:
        return _pointwise(self.ffn_project, _simple_gate(_pointwise(self.ffn_expand, x)))


def _pointwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution of ``(N, H, W, C)``: a matrix product, and faster as one."""
    return F.linear(x, convolution.weight.flatten(1), convolution.bias)


def _simple_gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels of ``(..., C)``."""
    first, second = x.chunk(2, dim=-1)
    return first * second
