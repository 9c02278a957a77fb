"""The fused form of ViTCA."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lnca_arch.acceleration.fused_form import FusedForm, register_fused_form
from lnca_arch.acceleration.parameter_folding import Linear, fold_norm, linear, normalize
from lnca_arch.acceleration.persistent_kernel import KernelParams, PersistentKernel, pad_linear, padded_side
from lnca_arch.acceleration.triton_kernels import vitca_kernel
from lnca_arch.automata.vitca import LAYER_NORM_EPS, ViTCA, neighbourhood_attention

# Side of the blocks of blockwise_attention. Larger blocks read fewer cells twice and compute more pairs that are masked
# out; 4 was the fastest of 2, 4 and 8 on a CPU.
BLOCK = 4


class FusedParams(NamedTuple):
    """Linear maps of a ViTCA, and its number of heads."""

    heads: int
    embed: Linear
    qkv: Linear
    attention_out: Linear
    mlp_in: Linear
    mlp_out: Linear
    head: Linear


def fused_update(cells: Tensor, params: FusedParams, positions: Tensor) -> Tensor:
    """Compute :meth:`ViTCA._update`."""
    attention = neighbourhood_attention if torch.compiler.is_compiling() else blockwise_attention
    x = linear(cells, params.embed) + positions
    x = x + linear(attention(linear(normalize(x, LAYER_NORM_EPS), params.qkv), params.heads), params.attention_out)
    x = x + linear(F.gelu(linear(normalize(x, LAYER_NORM_EPS), params.mlp_in)), params.mlp_out)
    return linear(normalize(x, LAYER_NORM_EPS), params.head)


def fuse_params(rule: ViTCA) -> FusedParams:
    """Merge the weight and bias of each layer norm with the linear map that follows."""
    return FusedParams(
        heads=rule.heads,
        embed=(rule.embed.weight, rule.embed.bias),
        qkv=fold_norm(rule.attention_norm, rule.qkv.weight, None),
        attention_out=(rule.attention_out.weight, rule.attention_out.bias),
        mlp_in=fold_norm(rule.mlp_norm, rule.mlp_in.weight, rule.mlp_in.bias),
        mlp_out=(rule.mlp_out.weight, rule.mlp_out.bias),
        head=fold_norm(rule.head_norm, rule.head.weight, rule.head.bias),
    )


def blockwise_attention(qkv: Tensor, heads: int, block: int = BLOCK) -> Tensor:
    """Compute :func:`neighbourhood_attention` faster and in less memory in eager mode.

    The keys and values of each block of cells are read once, with a halo of one cell, so that the nine neighbours of
    each cell are never copied.

    Args:
        qkv, heads: see :func:`neighbourhood_attention`.
        block: side of a block, in cells.
    """
    n, height, width, channels = qkv.shape
    channels //= 3
    bottom, right = -height % block, -width % block
    rows, columns = (height + bottom) // block, (width + right) // block
    blocks = n * rows * columns
    query, key_value = qkv.split([channels, 2 * channels], dim=-1)
    query = F.pad(query, (0, 0, 0, right, 0, bottom))
    key_value = F.pad(key_value, (0, 0, 1, right + 1, 1, bottom + 1))

    # Both become (blocks, heads, cells of the block, channels of a head); keys and values include the halo.
    query = query.unflatten(2, (columns, block)).unflatten(1, (rows, block)).transpose(2, 3)
    query = query.reshape(blocks, block**2, heads, -1).transpose(1, 2)
    key_value = key_value.unfold(1, block + 2, block).unfold(2, block + 2, block).permute(0, 1, 2, 4, 5, 3)
    key, value = key_value.reshape(blocks, (block + 2) ** 2, 2, heads, -1).permute(2, 0, 3, 1, 4)

    out = F.scaled_dot_product_attention(query, key, value, attn_mask=_neighbour_mask(block, qkv.device))
    out = out.transpose(1, 2).reshape(n, rows, columns, block, block, channels).transpose(2, 3)
    return out.reshape(n, rows * block, columns * block, channels)[:, :height, :width]


def _neighbour_mask(block: int, device: torch.device) -> Tensor:
    """Return which cells of a block with its halo are neighbours of which cells of the block.

    Returns:
        Booleans ``(block², (block + 2)²)``.
    """
    cell = torch.arange(block, device=device)
    ringed = torch.arange(block + 2, device=device)
    near = (ringed[None, :] - cell[:, None] - 1).abs() <= 1
    near = near[:, None, :, None] & near[None, :, None, :]
    return near.reshape(block * block, (block + 2) ** 2)


def pack(rule: ViTCA, params: FusedParams) -> KernelParams:
    """Pack parameters for ``vitca_kernel`` in the order in which it reads them, head by head."""
    channels, embed, mlp = rule.state_channels, rule.embed.out_features, rule.mlp_in.out_features
    head_channels = embed // rule.heads
    c, e, d, m = padded_side(channels), padded_side(embed), padded_side(head_channels), padded_side(mlp)
    weight, bias = (tensor.view(3, rule.heads, head_channels, *tensor.shape[1:]) for tensor in params.qkv)
    out, out_bias = params.attention_out
    linears = [pad_linear(params.embed, e, c)]
    for head in range(rule.heads):
        linears += [pad_linear((weight[i, head], bias[i, head]), d, e) for i in range(3)]
        columns = slice(head * head_channels, (head + 1) * head_channels)
        linears.append(pad_linear((out[:, columns], out_bias if head == 0 else torch.zeros_like(out_bias)), e, d))
    linears += [
        pad_linear(params.mlp_in, m, e),
        pad_linear(params.mlp_out, e, m),
        pad_linear(params.head, c, e, first_out=rule.in_channels),
    ]
    sizes = {'C': c, 'EMBED': embed, 'E': e, 'HEADS': rule.heads, 'SCALE': head_channels**-0.5, 'D': d, 'MLP': m}
    return KernelParams(linears, {**sizes, 'EPS': LAYER_NORM_EPS})


FORM = FusedForm(fused_update, fuse_params, 1800, PersistentKernel(vitca_kernel, pack))
register_fused_form(ViTCA, lambda _: FORM)
