"""The fused form of NAFCA."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.acceleration.fused_form import FusedForm, register_fused_form
from lnca_arch.acceleration.parameter_folding import Linear, fold_norm, linear, normalize
from lnca_arch.acceleration.persistent_kernel import KernelParams, PersistentKernel, pad_linear, padded_side
from lnca_arch.acceleration.triton_kernels import nafca_kernel
from lnca_arch.automata.nafca import LAYER_NORM_EPS, NAFCA, simple_gate

TAPS = 16  # the nine weights (taps) of a 3×3 convolution, padded to the smallest side of a matrix
FFN_PART = 64  # hidden channels of the update block that the kernel computes at once


class UpdateParams(NamedTuple):
    """Linear maps of the update block and the head."""

    expand: Linear
    project: Linear
    head: Linear


class GateParams(NamedTuple):
    """Linear maps of a NAFCA with ``perception='gate'``, see :func:`fuse_gate`."""

    embed: Linear
    perceive: Linear
    attention_bias: Tensor
    project_bias: Tensor
    update: UpdateParams


class DepthwiseParams(NamedTuple):
    """Linear maps of a NAFCA with ``perception='depthwise'``.

    Attributes:
        expand: weight and bias of two channels per embedded channel, ``(embed_channels, 2)`` each.
        neighbours: weight of the depthwise convolution, whose bias is part of the bias of ``project``.
    """

    embed: Linear
    expand: Linear
    neighbours: Tensor
    project: Linear
    update: UpdateParams


def gate_update(cells: Tensor, params: GateParams, *dropout_masks: Tensor) -> Tensor:
    """Compute :meth:`NAFCA._update` for ``perception='gate'``."""
    perceive_mask, transition_mask = dropout_masks or (1.0, 1.0)
    channels = cells.shape[-1]
    normalized = normalize(cells, LAYER_NORM_EPS)
    gated = simple_gate(linear(normalized, params.embed))
    read = linear(torch.cat([gated, normalized], dim=-1), params.perceive)
    projected, taps = read[..., :channels], read[..., channels : channels + 9]
    perceived = projected * (params.attention_bias + sum_taps(taps)) + params.project_bias
    return _update_and_head(cells + perceived * perceive_mask, params.update, transition_mask)


def depthwise_update(cells: Tensor, params: DepthwiseParams, *dropout_masks: Tensor) -> Tensor:
    """Compute :meth:`NAFCA._update` for ``perception='depthwise'``."""
    perceive_mask, transition_mask = dropout_masks or (1.0, 1.0)
    weight, bias = params.expand
    embedded = linear(normalize(cells, LAYER_NORM_EPS), params.embed)
    gated = simple_gate((embedded.unsqueeze(-1) * weight + bias).flatten(-2)).permute(0, 3, 1, 2)
    seen = F.conv2d(gated, params.neighbours, padding=1, groups=gated.shape[1]).permute(0, 2, 3, 1)
    return _update_and_head(cells + linear(seen, params.project) * perceive_mask, params.update, transition_mask)


def _update_and_head(x: Tensor, params: UpdateParams, transition_mask: Tensor | float) -> Tensor:
    transition = linear(simple_gate(linear(normalize(x, LAYER_NORM_EPS), params.expand)), params.project)
    return linear(normalize(x + transition * transition_mask, LAYER_NORM_EPS), params.head)


def sum_taps(taps: Tensor) -> Tensor:
    """Sum the products of a 3×3 convolution to one channel, with zero padding.

    Args:
        taps: ``(N, H, W, 9)``: products of each cell with the nine weights of the kernel, from top left to bottom
            right.

    Returns:
        ``(N, H, W, 1)``.
    """
    height, width = taps.shape[1:3]
    taps = F.pad(taps, (0, 0, 1, 1, 1, 1))
    shifted = [taps[:, k // 3 : k // 3 + height, k % 3 : k % 3 + width, k, None] for k in range(9)]
    return functools.reduce(torch.add, shifted)


def fuse_gate(rule: NAFCA) -> GateParams:
    """Merge the consecutive linear maps of a NAFCA with ``perception='gate'``.

    The weight and bias of a layer norm are a linear map, and so are beta and gamma. Let a, b be the two halves of the
    output of ``embed``. ``expand`` and the simple gate compute two channels of each pair (a, b):
    (w1·a + v1)·(w2·b + v2) = w1·w2·ab + w1·v2·a + v1·w2·b + v1·v2. The layers that read these channels are linear
    (``project`` and the nine taps of ``attention``), and a and b are linear in x, the input of ``embed``. So the block
    only needs ab and x.
    """
    half = rule.embed.out_channels // 2
    embed, embed_bias = fold_norm(rule.perception_norm, *_linear_map(rule.embed))
    (w1, w2), (v1, v2) = (tensor.view(2, half, 2) for tensor in _linear_map(rule.expand))
    project, project_bias = _linear_map(rule.project)
    project = rule.beta.unsqueeze(1) * project
    taps, attention_bias = rule.attention.weight[0].flatten(1).t(), _linear_map(rule.attention)[1]
    # Matrix products are faster with a multiple of 16 columns.
    padding = project.new_zeros(-(len(project) + len(taps)) % 16, project.shape[1])
    read = torch.cat([project, taps, padding]).view(-1, half, 2)
    of_ab, of_1 = (read * (w1 * w2)).sum(-1), (read * (v1 * v2)).sum((-2, -1))
    of_halves = torch.cat([(read * (w1 * v2)).sum(-1), (read * (v1 * w2)).sum(-1)], dim=1)
    return GateParams(
        embed=(embed, embed_bias),
        perceive=(torch.cat([of_ab, of_halves @ embed], dim=1), of_1 + of_halves @ embed_bias),
        attention_bias=attention_bias,
        project_bias=rule.beta * project_bias,
        update=_fuse_update(rule),
    )


def fuse_depthwise(rule: NAFCA) -> DepthwiseParams:
    """Merge the consecutive linear maps of a NAFCA with ``perception='depthwise'``."""
    project, project_bias = _linear_map(rule.project)
    expand, expand_bias = _linear_map(rule.expand)
    _, neighbours_bias = _linear_map(rule.neighbours)
    return DepthwiseParams(
        embed=fold_norm(rule.perception_norm, *_linear_map(rule.embed)),
        expand=(expand.view(-1, 2), expand_bias.view(-1, 2)),
        neighbours=rule.neighbours.weight,
        project=(rule.beta.unsqueeze(1) * project, rule.beta * (project_bias + project @ neighbours_bias)),
        update=_fuse_update(rule),
    )


def _fuse_update(rule: NAFCA) -> UpdateParams:
    project, project_bias = _linear_map(rule.ffn_project)
    return UpdateParams(
        expand=fold_norm(rule.update_norm, *_linear_map(rule.ffn_expand)),
        project=(rule.gamma.unsqueeze(1) * project, rule.gamma * project_bias),
        head=fold_norm(rule.head_norm, *_linear_map(rule.head)),
    )


def _linear_map(convolution: nn.Conv2d) -> Linear:
    """Return the weight, flattened to ``(out, in)``, and the bias of a convolution."""
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


def pack(rule: NAFCA, params: GateParams) -> KernelParams:
    """Pack parameters for ``nafca_kernel`` in the order in which it reads them, split where it computes in parts."""
    channels, half, ffn = rule.state_channels, rule.embed.out_channels // 2, rule.ffn_project.in_channels
    c, h, f = padded_side(channels), padded_side(half), padded_side(ffn)
    part = min(f, FFN_PART)

    weight, bias = params.perceive
    taps, taps_bias = weight[channels : channels + 9], bias[channels : channels + 9]
    # The attention's bias is added to the centre tap, the only one that is never outside the grid.
    taps_bias = taps_bias + params.attention_bias * (torch.arange(9, device=bias.device) == 4)
    project, project_bias = weight[:channels], bias[:channels]
    first, second = (pad_linear(halves, f, c) for halves in _halves(params.update.expand))
    transition, transition_bias = pad_linear(params.update.project, c, f)
    linears = [
        *(pad_linear(halves, h, c) for halves in _halves(params.embed)),
        pad_linear((taps[:, :half], taps_bias), TAPS, h),
        pad_linear((taps[:, half:], torch.zeros_like(taps_bias)), TAPS, c),
        pad_linear((project[:, :half], project_bias), c, h),
        pad_linear((project[:, half:], torch.zeros_like(project_bias)), c, c),
        (weight.new_empty(c, 0), F.pad(params.project_bias, (0, c - channels))),
    ]
    for start in range(0, f, part):
        rows = slice(start, start + part)
        linears += [
            (first[0][rows], first[1][rows]),
            (second[0][rows], second[1][rows]),
            (transition[:, rows], transition_bias if start == 0 else torch.zeros_like(transition_bias)),
        ]
    linears.append(pad_linear(params.update.head, c, c, first_out=rule.in_channels))
    sizes = {'C': c, 'HALF': h, 'PARTS': f // part, 'PART': part, 'TAPS': TAPS, 'EPS': LAYER_NORM_EPS}
    return KernelParams(linears, sizes)


def _halves(linear_map: Linear) -> list[Linear]:
    """Split the outputs of a linear map into the two operands of the simple gate."""
    weight, bias = linear_map
    return list(zip(weight.chunk(2), bias.chunk(2), strict=True))


FORMS = {
    'gate': FusedForm(gate_update, fuse_gate, 1200, PersistentKernel(nafca_kernel, pack)),
    'depthwise': FusedForm(depthwise_update, fuse_depthwise, 1200),
}
register_fused_form(NAFCA, lambda rule: FORMS[rule.perception])
