"""ViTCA: the rule with attention over each cell's 3×3 neighbourhood (paper section 2.2; Tesfaldet et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automaton import CellularAutomaton

from basicsr.utils.registry import ARCH_REGISTRY

# Attention looks from a block of cells at the block and the ring around it. The larger the block, the fewer cells are
# read twice and the more pairs of cells are computed only to be masked out; 4 was the fastest of 2, 4 and 8 on a CPU.
BLOCK = 4


@ARCH_REGISTRY.register()
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
        self.attention_norm = nn.LayerNorm(embed_channels)
        self.qkv = nn.Linear(embed_channels, 3 * embed_channels, bias=False)
        self.attention_out = nn.Linear(embed_channels, embed_channels)
        self.mlp_norm = nn.LayerNorm(embed_channels)
        self.mlp_in = nn.Linear(embed_channels, mlp_channels)
        self.mlp_out = nn.Linear(mlp_channels, embed_channels)
        self.head_norm = nn.LayerNorm(embed_channels)
        self.head = nn.Linear(embed_channels, self.changing_channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _constants(self, state: Tensor) -> Tensor:
        height, width = state.shape[-2:]
        positions = sinusoidal_positions(height * width, self.embed.out_features, state.device)
        return positions.to(state.dtype).view(height, width, -1)

    def _update(self, cells: Tensor, constants: Tensor) -> Tensor:
        x = self.embed(cells) + constants
        x = x + self.attention_out(neighbourhood_attention(self.qkv(self.attention_norm(x)), self.heads))
        x = x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))
        return self.head(self.head_norm(x))


def sinusoidal_positions(count: int, channels: int, device: torch.device) -> Tensor:
    """Positions 0 … count − 1 as ``(count, channels)``: channel c of position n is n·10000^(−c/channels), of which
    even channels hold the sine and odd ones the cosine."""
    # In float64: a float32 sine of an index near 10⁶ (a large photograph) would be off by 0.1.
    channel = torch.arange(channels, device=device, dtype=torch.float64)
    position = torch.arange(count, device=device, dtype=torch.float64)
    angle = position[:, None] * 10000.0 ** (-channel / channels)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def neighbourhood_attention(qkv: Tensor, heads: int, block: int = BLOCK) -> Tensor:
    """Multi-head attention in which each cell attends to the 3×3 cells around it, itself included.

    Neighbours outside the grid take part with score 0 and value 0 (as zero padding makes them). The keys and values
    of a block of cells are read together with the ring around it, so that the nine neighbours of every cell never
    exist as copies.

    Args:
        qkv: ``(N, H, W, 3C)``: queries, keys and values.
        heads: number of heads, a divisor of C.
        block: side of a block, in cells.

    Returns:
        ``(N, H, W, C)``.
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

    out = F.scaled_dot_product_attention(query, key, value, attn_mask=_neighbours(block, qkv.device))
    out = out.transpose(1, 2).reshape(n, rows, columns, block, block, channels).transpose(2, 3)
    return out.reshape(n, rows * block, columns * block, channels)[:, :height, :width]


def _neighbours(block: int, device: torch.device) -> Tensor:
    """Which cells of a block and its ring are neighbours of which cell of the block: a boolean mask
    ``(block², (block + 2)²)``."""
    cell = torch.arange(block, device=device)
    ringed = torch.arange(block + 2, device=device)
    near = (ringed[None, :] - cell[:, None] - 1).abs() <= 1
    near = near[:, None, :, None] & near[None, :, None, :]
    return near.reshape(block * block, (block + 2) ** 2)
