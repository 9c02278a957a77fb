"""ViTCA: the rule with self-attention over each cell's 3×3 neighbourhood (section 2.2; Tesfaldet et al., 2022)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automata.cellular_automaton import CellularAutomaton

LAYER_NORM_EPS = 1e-5


class ViTCA(CellularAutomaton):
    """Vision-transformer cellular automaton: embedding, one layer of local self-attention and MLP, and a head.

    The position of a cell is its index in the flattened grid, so a trained ViTCA only works on grids of the size
    that it was trained on.

    Args:
        in_channels, out_channels, hidden_channels: see :class:`CellularAutomaton`.
        embed_channels: width of a token.
        heads: number of attention heads, a divisor of embed_channels.
        mlp_channels: width of the MLP's hidden layer.

    Raises:
        ValueError: if ``heads`` does not divide ``embed_channels``.
    """

    fixed_grid = True

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
        """Return the positional encoding of the cells, ``(1, H, W, embed_channels)``."""
        height, width = cells.shape[1:3]
        positions = sinusoidal_positions(height * width, self.embed.out_features, cells.device)
        return (positions.to(cells.dtype).view(1, height, width, -1),)


def sinusoidal_positions(count: int, channels: int, device: torch.device) -> Tensor:
    """Encode positions 0 … count − 1 as ``(count, channels)``.

    Channel c of position n holds the sine (c even) or cosine (c odd) of n·10000^(−c/channels).
    """
    # float64, since the float32 sine of an index near 10⁶ (a large photograph) is off by 0.1.
    channel = torch.arange(channels, device=device, dtype=torch.float64)
    position = torch.arange(count, device=device, dtype=torch.float64)
    angle = position[:, None] * 10000.0 ** (-channel / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def neighbourhood_attention(qkv: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention of each cell to its 3×3 neighbourhood, itself included.

    Neighbours outside the grid take part with score 0 and value 0: keys and values are padded with zeros.

    Args:
        qkv: ``(N, H, W, 3C)``: queries, keys and values.
        heads: number of heads, a divisor of C.

    Returns:
        ``(N, H, W, C)``.
    """
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in qkv.chunk(3, dim=-1))
    query = query * query.shape[-1] ** -0.5
    # The neighbours are the first dimension, so that each operation runs over many cells.
    scores = torch.stack([(query * neighbour).sum(-1) for neighbour in _neighbours(key)])
    weights = scores.softmax(dim=0)
    weighted = (weight.unsqueeze(-1) * neighbour for weight, neighbour in zip(weights, _neighbours(value), strict=True))
    return functools.reduce(torch.add, weighted).flatten(-2)


def _neighbours(cells: Tensor) -> list[Tensor]:
    """Return the top left, …, bottom right neighbour of each cell of ``(N, H, W, ...)``: nine views of that shape."""
    height, width = cells.shape[1:3]
    padded = F.pad(cells, (*(0, 0) * (cells.dim() - 3), 1, 1, 1, 1))
    return [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]
