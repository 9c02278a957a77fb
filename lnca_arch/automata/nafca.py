"""NAFCA: the attention-free rule (paper section 3.1.2)."""

import functools
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.acceleration.parameter_folding import Linear, fold_norm, linear, normalize
from lnca_arch.acceleration.persistent_kernel import KernelParams, PersistentKernel, nafca_kernel, padded, side
from lnca_arch.automata.cellular_automaton import CellularAutomaton

LAYER_NORM_EPS = 1e-6

TAPS = 16  # of a 3×3 convolution, and zeros, since the kernel multiplies with no fewer
FFN_PART = 64  # channels of the update block that the kernel has at once


class FusedUpdateParams(NamedTuple):
    """Linear maps of the update block and the head, weights and biases."""

    expand: Linear
    project: Linear
    head: Linear


def _update_and_head(x: Tensor, folded: FusedUpdateParams, drop_transition: Tensor | float) -> Tensor:
    """What follows the perception block."""
    transition = linear(_simple_gate(linear(normalize(x, LAYER_NORM_EPS), folded.expand)), folded.project)
    x = x + transition * drop_transition
    return linear(normalize(x, LAYER_NORM_EPS), folded.head)


class FusedParams(NamedTuple):
    """Linear maps of :class:`NAFCA`, weights and biases; see :meth:`NAFCA.fold`."""

    embed: Linear
    perceive: Linear
    attention_bias: Tensor
    project_bias: Tensor
    update: FusedUpdateParams


def fused_update(cells: Tensor, folded: FusedParams, *dropout: Tensor) -> Tensor:
    """:meth:`NAFCA._update` with the linear maps of :meth:`NAFCA.fold`."""
    drop_perceived, drop_transition = dropout or (1.0, 1.0)
    channels = cells.shape[-1]
    normalized = normalize(cells, LAYER_NORM_EPS)
    gated = _simple_gate(linear(normalized, folded.embed))
    read = linear(torch.cat([gated, normalized], dim=-1), folded.perceive)
    projected, taps = read[..., :channels], read[..., channels : channels + 9]
    perceived = projected * (folded.attention_bias + _sum_of_neighbours(taps)) + folded.project_bias
    return _update_and_head(cells + perceived * drop_perceived, folded.update, drop_transition)


class DepthwiseFusedParams(NamedTuple):
    """Maps of :class:`DepthwiseNAFCA`, weights and biases, that of ``neighbours`` in the bias of ``project``."""

    embed: Linear
    expand: Linear  # both (embed_channels, 2): two channels of each
    neighbours: Tensor
    project: Linear
    update: FusedUpdateParams


def fused_depthwise_update(cells: Tensor, folded: DepthwiseFusedParams, *dropout: Tensor) -> Tensor:
    """:meth:`NAFCA._update` of a :class:`DepthwiseNAFCA`, with the maps of its :meth:`~DepthwiseNAFCA.fold`."""
    drop_perceived, drop_transition = dropout or (1.0, 1.0)
    weight, bias = folded.expand
    embedded = linear(normalize(cells, LAYER_NORM_EPS), folded.embed)
    gated = _simple_gate((embedded.unsqueeze(-1) * weight + bias).flatten(-2)).permute(0, 3, 1, 2)
    seen = F.conv2d(gated, folded.neighbours, padding=1, groups=gated.shape[1]).permute(0, 2, 3, 1)
    return _update_and_head(cells + linear(seen, folded.project) * drop_perceived, folded.update, drop_transition)


def pack(rule: 'NAFCA', folded: FusedParams) -> KernelParams:
    """For ``nafca_kernel`` of :mod:`lnca_arch.acceleration.persistent_kernel`: the parameters that each line of it
    needs, in parts where there are several products."""
    channels, half, ffn = rule.state_channels, rule.embed.out_channels // 2, rule.ffn_project.in_channels
    c, h, f = side(channels), side(half), side(ffn)
    part = min(f, FFN_PART)

    weight, bias = folded.perceive
    taps, taps_bias = weight[channels : channels + 9], bias[channels : channels + 9]
    # The bias of the attention goes into what each cell contributes to itself, which is never beyond the border.
    taps_bias = taps_bias + folded.attention_bias * (torch.arange(9, device=bias.device) == 4)
    project, project_bias = weight[:channels], bias[:channels]
    first, second = (
        padded(halves, f, c) for halves in zip(*(tensor.chunk(2) for tensor in folded.update.expand), strict=True)
    )
    transition, transition_bias = padded(folded.update.project, c, f)
    linears = [
        *(padded(halves, h, c) for halves in zip(*(tensor.chunk(2) for tensor in folded.embed), strict=True)),
        padded((taps[:, :half], taps_bias), TAPS, h),
        padded((taps[:, half:], torch.zeros_like(taps_bias)), TAPS, c),
        padded((project[:, :half], project_bias), c, h),
        padded((project[:, half:], torch.zeros_like(project_bias)), c, c),
        (weight.new_empty(c, 0), F.pad(folded.project_bias, (0, c - channels))),
    ]
    for start in range(0, f, part):
        rows = slice(start, start + part)
        linears += [
            (first[0][rows], first[1][rows]),
            (second[0][rows], second[1][rows]),
            (transition[:, rows], transition_bias if start == 0 else torch.zeros_like(transition_bias)),
        ]
    linears.append(padded(folded.update.head, c, c, first_out=rule.in_channels))
    sizes = {'C': c, 'HALF': h, 'PARTS': f // part, 'PART': part, 'TAPS': TAPS, 'EPS': LAYER_NORM_EPS}
    return KernelParams(linears, sizes)


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
        self.perception_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.embed = nn.Conv2d(channels, embed_channels, 1)
        self.expand = nn.Conv2d(embed_channels, 2 * embed_channels, 1, groups=embed_channels)
        self.attention = nn.Conv2d(embed_channels, 1, 3, padding=1)
        self.project = nn.Conv2d(embed_channels, channels, 1)
        self.beta = nn.Parameter(torch.zeros(channels))

        self.update_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.ffn_expand = nn.Conv2d(channels, ffn_channels, 1)
        self.ffn_project = nn.Conv2d(ffn_channels // 2, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(channels))

        self.head_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.head = nn.Conv2d(channels, self.mutable_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def _update(self, cells: Tensor, *dropout: Tensor) -> Tensor:
        drop_perceived, drop_transition = dropout or (1.0, 1.0)
        x = cells
        x = x + self.beta * drop_perceived * self._perceive(self.perception_norm(x))
        x = x + self.gamma * drop_transition * self._transition(self.update_norm(x))
        return _convolve(self.head, self.head_norm(x))

    def _perceive(self, x: Tensor) -> Tensor:
        x = _simple_gate(_convolve(self.expand, _convolve(self.embed, x)))
        return _convolve(self.project, self._with_neighbours(x))

    def _with_neighbours(self, x: Tensor) -> Tensor:
        return x * _convolve(self.attention, x)

    def _transition(self, x: Tensor) -> Tensor:
        return _convolve(self.ffn_project, _simple_gate(_convolve(self.ffn_expand, x)))

    def dropout_masks(self, cells: Tensor) -> tuple[Tensor, ...]:
        """What dropout at the end of both blocks multiplies with, 0 or 1 / (1 − p); nothing where it does nothing."""
        if not self.is_stochastic:
            return ()
        ones = cells.new_ones((*cells.shape[:-1], self.state_channels))
        return self.dropout(ones), self.dropout(ones)

    @property
    def is_stochastic(self) -> bool:
        return self.training and self.dropout.p > 0

    fused_update = staticmethod(fused_update)
    resident = PersistentKernel(nafca_kernel, pack)
    saved_activations_per_cell = 1200

    def fold(self) -> FusedParams:
        """Merge the linear maps that follow one another.

        A layer norm ends with one, and so do both blocks, with beta and gamma. With a, b the two halves of ``embed``'s
        output, ``expand`` and the simple gate make two channels of each pair:
        (w1·a + v1)·(w2·b + v2) = w1·w2·ab + w1·v2·a + v1·w2·b + v1·v2. What reads them is linear, too (``project`` and
        the nine taps of ``attention``), and so are a and b in ``embed``'s input x. So the block needs ab and x only.
        """
        half = self.embed.out_channels // 2
        embed, embed_bias = fold_norm(self.perception_norm, self.embed.weight.flatten(1), self.embed.bias)
        w1, w2 = self.expand.weight.view(2, half, 2)
        v1, v2 = self.expand.bias.view(2, half, 2)
        project = self.beta.unsqueeze(1) * self.project.weight.flatten(1)
        taps = self.attention.weight[0].flatten(1).t()
        # Matrix products are faster with a multiple of 16 columns.
        padding = project.new_zeros(-(len(project) + len(taps)) % 16, project.shape[1])
        read = torch.cat([project, taps, padding]).view(-1, half, 2)
        of_ab, of_1 = (read * (w1 * w2)).sum(-1), (read * (v1 * v2)).sum((-2, -1))
        of_halves = torch.cat([(read * (w1 * v2)).sum(-1), (read * (v1 * w2)).sum(-1)], dim=1)
        return FusedParams(
            embed=(embed, embed_bias),
            perceive=(torch.cat([of_ab, of_halves @ embed], dim=1), of_1 + of_halves @ embed_bias),
            attention_bias=self.attention.bias,
            project_bias=self.beta * self.project.bias,
            update=self._fused_update_params(),
        )

    def _fused_update_params(self) -> FusedUpdateParams:
        return FusedUpdateParams(
            expand=fold_norm(self.update_norm, self.ffn_expand.weight.flatten(1), self.ffn_expand.bias),
            project=(
                self.gamma.unsqueeze(1) * self.ffn_project.weight.flatten(1),
                self.gamma * self.ffn_project.bias,
            ),
            head=fold_norm(self.head_norm, self.head.weight.flatten(1), self.head.bias),
        )


class DepthwiseNAFCA(NAFCA):
    """:class:`NAFCA` that sees of its neighbours more than one number: a 3×3 convolution of each channel by itself, in
    place of the one to a single channel that scales all. Not in the paper. The arguments are the same."""

    fused_update = staticmethod(fused_depthwise_update)
    resident = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        channels = self.embed.out_channels
        del self.attention
        self.neighbours = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def _with_neighbours(self, x: Tensor) -> Tensor:
        return _convolve(self.neighbours, x)

    def fold(self) -> DepthwiseFusedParams:
        """Merge the linear maps that follow one another: a layer norm ends with one, and so do both blocks, with beta
        and gamma."""
        project = self.project.weight.flatten(1)
        return DepthwiseFusedParams(
            embed=fold_norm(self.perception_norm, self.embed.weight.flatten(1), self.embed.bias),
            expand=(self.expand.weight.view(-1, 2), self.expand.bias.view(-1, 2)),
            neighbours=self.neighbours.weight,
            project=(
                self.beta.unsqueeze(1) * project,
                self.beta * (self.project.bias + project @ self.neighbours.bias),
            ),
            update=self._fused_update_params(),
        )


Perception = Literal['gate', 'depthwise']
PERCEPTIONS: dict[Perception, type[NAFCA]] = {'gate': NAFCA, 'depthwise': DepthwiseNAFCA}


def _convolve(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution of cells ``(N, H, W, C)``."""
    return convolution(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


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
