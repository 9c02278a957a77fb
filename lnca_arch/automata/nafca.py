"""NAFCA: the attention-free rule (paper section 3.1.2)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lnca_arch.automata.cellular_automaton import CellularAutomaton

LAYER_NORM_EPS = 1e-6

Perception = Literal['gate', 'depthwise']


class NAFCA(CellularAutomaton):
    """Nonlinear-activation-free cellular automaton: a perception block, an update block and a head.

    Its only nonlinearities are layer norms and products of channels (the "simple gate" of NAFNet).

    Args:
        in_channels, out_channels, hidden_channels: see :class:`CellularAutomaton`.
        embed_channels: width of the perception block, an even number.
        ffn_expand: width of the update block, as a multiple of the number of state channels.
        dropout: probability of dropout at the end of both blocks, in training only.
        perception: how a cell perceives its neighbours. ``'gate'`` (the paper's): a 3×3 convolution to one channel that
            scales all channels of the cell (equation 2). ``'depthwise'`` (not in the paper): a 3×3 depthwise
            convolution.

    Raises:
        ValueError: if the perception is unknown, or a width is odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        embed_channels: int = 128,
        ffn_expand: int = 4,
        dropout: float = 0.1,
        perception: Perception = 'gate',
    ) -> None:
        super().__init__(in_channels, out_channels, hidden_channels)
        channels = self.state_channels
        ffn_channels = ffn_expand * channels
        if perception not in get_args(Perception):
            raise ValueError(f'perception must be one of {", ".join(get_args(Perception))}, got {perception!r}')
        if embed_channels % 2 or ffn_channels % 2:
            raise ValueError(
                'the simple gate halves its channels: embed_channels and ffn_expand × state channels must be even, '
                f'got {embed_channels} and {ffn_channels}'
            )
        self.perception = perception
        self.perception_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.embed = nn.Conv2d(channels, embed_channels, 1)
        self.expand = nn.Conv2d(embed_channels, 2 * embed_channels, 1, groups=embed_channels)
        if perception == 'gate':
            self.attention = nn.Conv2d(embed_channels, 1, 3, padding=1)
        else:
            self.neighbours = nn.Conv2d(embed_channels, embed_channels, 3, padding=1, groups=embed_channels)
        self.project = nn.Conv2d(embed_channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(channels))

        self.update_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.ffn_expand = nn.Conv2d(channels, ffn_channels, 1)
        self.ffn_project = nn.Conv2d(ffn_channels // 2, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(channels))

        self.head_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.head = nn.Conv2d(channels, self.mutable_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def _update(self, cells: Tensor, *dropout_masks: Tensor) -> Tensor:
        perceive_mask, transition_mask = dropout_masks or (1.0, 1.0)
        x = cells
        x = x + self.beta * perceive_mask * self._perceive(self.perception_norm(x))
        x = x + self.gamma * transition_mask * self._transition(self.update_norm(x))
        return _convolve(self.head, self.head_norm(x))

    def _perceive(self, x: Tensor) -> Tensor:
        x = simple_gate(_convolve(self.expand, _convolve(self.embed, x)))
        x = x * _convolve(self.attention, x) if self.perception == 'gate' else _convolve(self.neighbours, x)
        return _convolve(self.project, x)

    def _transition(self, x: Tensor) -> Tensor:
        return _convolve(self.ffn_project, simple_gate(_convolve(self.ffn_expand, x)))

    def dropout_masks(self, cells: Tensor) -> tuple[Tensor, ...]:
        """Return the dropout masks of both blocks, with values 0 and 1 / (1 − p); empty without dropout."""
        if not self.is_stochastic:
            return ()
        ones = cells.new_ones((*cells.shape[:-1], self.state_channels))
        return self.dropout(ones), self.dropout(ones)

    @property
    def is_stochastic(self) -> bool:
        """Whether dropout is active: in training mode, with a probability above 0."""
        return self.training and self.dropout.p > 0


def simple_gate(x: Tensor) -> Tensor:
    """Multiply the first half of the channels of ``(..., C)`` by the second half."""
    first, second = x.chunk(2, dim=-1)
    return first * second


def _convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to cells ``(N, H, W, C)``."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
