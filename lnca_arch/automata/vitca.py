"""ViTCA: the rule with attention over each cell's 3×3 neighbourhood (paper section 2.2; Tesfaldet et al., 2022)."""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.acceleration.parameter_folding import Linear, fold_norm, linear, normalize
from lnca_arch.acceleration.persistent_kernel import KernelParams, PersistentKernel, padded, side, vitca_kernel
from lnca_arch.automata.cellular_automaton import CellularAutomaton

# Attention looks from a block of cells at the block and the ring around it. The larger the block, the fewer cells are
# read twice and the more pairs of cells are computed only to be masked out; 4 was the fastest of 2, 4 and 8 on a CPU.
BLOCK = 4

LAYER_NORM_EPS = 1e-5


class FusedParams(NamedTuple):
    """Linear maps of :class:`ViTCA`, weights and biases; see :meth:`ViTCA.fold`."""

    heads: int
    embed: Linear
    qkv: Linear
    attention_out: Linear
    mlp_in: Linear
    mlp_out: Linear
    head: Linear


def fused_update(cells: Tensor, folded: FusedParams, positions: Tensor) -> Tensor:
    """:meth:`ViTCA._update` with the linear maps of :meth:`ViTCA.fold`."""
    attention = neighbourhood_attention if torch.compiler.is_compiling() else blockwise_attention
    x = linear(cells, folded.embed) + positions
    x = x + linear(attention(linear(normalize(x, LAYER_NORM_EPS), folded.qkv), folded.heads), folded.attention_out)
    x = x + linear(F.gelu(linear(normalize(x, LAYER_NORM_EPS), folded.mlp_in)), folded.mlp_out)
    return linear(normalize(x, LAYER_NORM_EPS), folded.head)


def pack(rule: 'ViTCA', folded: FusedParams) -> KernelParams:
    """For ``vitca_kernel`` of :mod:`lnca_arch.acceleration.persistent_kernel`: the parameters that each line of it
    needs, head by head."""
    channels, embed, mlp = rule.state_channels, rule.embed.out_features, rule.mlp_in.out_features
    a_head = embed // rule.heads
    c, e, d, m = side(channels), side(embed), side(a_head), side(mlp)
    qkv = [tensor.view(3, rule.heads, a_head, *tensor.shape[1:]) for tensor in folded.qkv]
    out, out_bias = folded.attention_out
    linears = [padded(folded.embed, e, c)]
    for head in range(rule.heads):
        linears += [padded((qkv[0][i, head], qkv[1][i, head]), d, e) for i in range(3)]
        columns = slice(head * a_head, (head + 1) * a_head)
        linears.append(padded((out[:, columns], out_bias if head == 0 else torch.zeros_like(out_bias)), e, d))
    linears += [
        padded(folded.mlp_in, m, e),
        padded(folded.mlp_out, e, m),
        padded(folded.head, c, e, first_out=rule.in_channels),
    ]
    sizes = {'C': c, 'EMBED': embed, 'E': e, 'HEADS': rule.heads, 'SCALE': a_head**-0.5, 'D': d, 'MLP': m}
    return KernelParams(linears, {**sizes, 'EPS': LAYER_NORM_EPS})


class ViTCA(CellularAutomaton):
    """Vision-transformer cellular automaton: embedding, local self-attention, MLP and head, one layer.

    A cell's position is its index in the flattened grid, so a trained ViTCA is tied to the size of its grid.

    Args:
        in_channels, out_channels, hidden_channels: see :class:`CellularAutomaton`.
        embed_channels: width of a token.
        heads: attention heads; they divide embed_channels.
        mlp_channels: width of the MLP's hidden layer.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        embed_channels: int = 128,
        heads: int = 4,
        mlp_channels: int = 64,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden_channels)
        if embed_channels % heads:
            raise ValueError(f'heads must divide embed_channels, got {heads} and {embed_channels}')
        self.heads = heads
        self.embed = nn.Linear(self.state_channels, embed_channels)
        self.attention_norm = nn.LayerNorm(embed_channels, eps=LAYER_NORM_EPS)
        self.qkv = nn.Linear(embed_channels, 3 * embed_channels, bias=False)
        self.attention_out = nn.Linear(embed_channels, embed_channels)
        self.mlp_norm = nn.LayerNorm(embed_channels, eps=LAYER_NORM_EPS)
        self.mlp_in = nn.Linear(embed_channels, mlp_channels)
        self.mlp_out = nn.Linear(mlp_channels, embed_channels)
        self.head_norm = nn.LayerNorm(embed_channels, eps=LAYER_NORM_EPS)
        self.head = nn.Linear(embed_channels, self.mutable_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _update(self, cells: Tensor, *per_cell: Tensor) -> Tensor:
        (positions,) = per_cell
        x = self.embed(cells) + positions
        x = x + self.attention_out(neighbourhood_attention(self.qkv(self.attention_norm(x)), self.heads))
        x = x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return self.head(self.head_norm(x))

    def static_features(self, cells: Tensor) -> tuple[Tensor, ...]:
        height, width = cells.shape[1:3]
        positions = sinusoidal_positions(height * width, self.embed.out_features, cells.device)
        return (positions.to(cells.dtype).view(1, height, width, -1),)

    fused_update = staticmethod(fused_update)
    resident = PersistentKernel(vitca_kernel, pack)
    fixed_grid = True  # a cell's position is its number
    saved_activations_per_cell = 1800

    def fold(self) -> FusedParams:
        """Merge each layer norm's weight and bias with the linear map that follows."""
        return FusedParams(
            heads=self.heads,
            embed=(self.embed.weight, self.embed.bias),
            qkv=fold_norm(self.attention_norm, self.qkv.weight, None),
            attention_out=(self.attention_out.weight, self.attention_out.bias),
            mlp_in=fold_norm(self.mlp_norm, self.mlp_in.weight, self.mlp_in.bias),
            mlp_out=(self.mlp_out.weight, self.mlp_out.bias),
            head=fold_norm(self.head_norm, self.head.weight, self.head.bias),
        )


def sinusoidal_positions(count: int, channels: int, device: torch.device) -> Tensor:
    """Positions 0 … count − 1 as ``(count, channels)``: channel c of position n is n·10000^(−c/channels), of which
    even channels hold the sine and odd ones the cosine."""
    # In float64: a float32 sine of an index near 10⁶ (a large photograph) would be off by 0.1.
    channel = torch.arange(channels, device=device, dtype=torch.float64)
    position = torch.arange(count, device=device, dtype=torch.float64)
    angle = position[:, None] * 10000.0 ** (-channel / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def neighbourhood_attention(qkv: Tensor, heads: int) -> Tensor:
    """Multi-head attention in which each cell attends to the 3×3 cells around it, itself included.

    Neighbours outside the grid take part with score 0 and value 0 (as zero padding makes them).

    Args:
        qkv: ``(N, H, W, 3C)``: queries, keys and values.
        heads: number of heads, a divisor of C.

    Returns:
        ``(N, H, W, C)``.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
    query = query * query.shape[-1] ** -0.5
    # The neighbours come first, so that many cells are computed at once.
    scores = torch.stack([(query * neighbour).sum(-1) for neighbour in _neighbours(key)])
    weights = scores.softmax(dim=0)
    weighted = (weight.unsqueeze(-1) * neighbour for weight, neighbour in zip(weights, _neighbours(value), strict=True))
    return functools.reduce(torch.add, weighted).flatten(-2)


def _neighbours(cells: Tensor) -> list[Tensor]:
    """Of all cells ``(N, H, W, ...)`` the neighbour at the top left, …, bottom right: nine views of the same shape."""
    height, width = cells.shape[1:3]
    padded = F.pad(cells, (*(0, 0) * (cells.dim() - 3), 1, 1, 1, 1))
    return [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]


def blockwise_attention(qkv: Tensor, heads: int, block: int = BLOCK) -> Tensor:
    """:func:`neighbourhood_attention` for when it is not compiled: faster then, and in less memory.

    The keys and values of a block of cells are read together with the ring around it, so that the nine neighbours of
    every cell never exist as copies.

    Args:
        qkv, heads: as there.
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

    # Both become (blocks, heads, cells of the block, channels of a head); for keys and values, the ring is included.
    query = query.unflatten(2, (columns, block)).unflatten(1, (rows, block)).transpose(2, 3)
    query = query.reshape(blocks, block**2, heads, -1).transpose(1, 2)
    key_value = key_value.unfold(1, block + 2, block).unfold(2, block + 2, block).permute(0, 1, 2, 4, 5, 3)
    key, value = key_value.reshape(blocks, (block + 2) ** 2, 2, heads, -1).permute(2, 0, 3, 1, 4)

    out = F.scaled_dot_product_attention(query, key, value, attn_mask=_near(block, qkv.device))
    out = out.transpose(1, 2).reshape(n, rows, columns, block, block, channels).transpose(2, 3)
    return out.reshape(n, rows * block, columns * block, channels)[:, :height, :width]


def _near(block: int, device: torch.device) -> Tensor:
    """Which cells of a block and its ring are neighbours of which cell of the block: a boolean mask
    ``(block², (block + 2)²)``."""
    cell = torch.arange(block, device=device)
    ringed = torch.arange(block + 2, device=device)
    near = (ringed[None, :] - cell[:, None] - 1).abs() <= 1
    near = near[:, None, :, None] & near[None, :, None, :]
    return near.reshape(block * block, (block + 2) ** 2)
