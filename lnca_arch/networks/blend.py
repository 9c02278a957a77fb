"""Blending of the input into the restored image."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blend(nn.Module):
    """Blends the input into the output where the input looks clean.

    With d = image − restored, it returns restored + s₀·d + s₁·m₁(d) + s₂·m₂(d) + s₃·m₃(d), where mᵢ is the local mean
    over the i-th window and the weights s in (0, 1) are predicted for each pixel. The local means help where no pixel
    is clean: blur and noise may still preserve means, and thereby colours. Initially, s₀ is 0.02 and the others are 0.5
    everywhere: s₀ is small, since the automaton is trained without the blend first.

    Args:
        image_channels: number of image channels.
        channels: number of channels of the hidden layer.
    """

    WINDOWS = (3, 9, 27)  # sides, in pixels
    PACE = 10  # factor on the logits, which would move too slowly at the learning rate of the other layers

    def __init__(self, image_channels: int, channels: int = 16) -> None:
        super().__init__()
        differences = 1 + len(self.WINDOWS)
        self.compare = nn.Conv2d((1 + differences) * image_channels, channels, 3, padding=1)
        self.share = nn.Conv2d(channels, differences, 3, padding=1)
        nn.init.zeros_(self.share.weight)
        assert self.share.bias is not None
        nn.init.zeros_(self.share.bias)
        nn.init.constant_(self.share.bias[:1], -4 / self.PACE)  # a sigmoid of 0.02

    def forward(self, image: Tensor, restored: Tensor) -> Tensor:
        """Blend an input and a restored image, both ``(N, image_channels, H, W)``; the result has the same shape."""
        difference = image - restored
        differences = [difference, *local_means(difference, self.WINDOWS)]
        features = F.silu(self.compare(torch.cat([image, *differences], dim=1)))
        shares = torch.sigmoid(self.PACE * self.share(features))
        for share, kept in zip(shares.split(1, dim=1), differences, strict=True):
            restored = restored + share * kept
        return restored


def local_means(image: Tensor, windows: Iterable[int]) -> list[Tensor]:
    """Compute the mean over a square window around each pixel, for several windows.

    Only pixels inside the image count. The means come from running sums, whose cost, unlike that of pooling, does not
    grow with the window.

    Args:
        image: ``(N, C, H, W)``.
        windows: sides of the windows in pixels, odd.

    Returns:
        The means, ``(N, C, H, W)`` for each window.
    """
    sums_of_rows = image.to(torch.promote_types(image.dtype, torch.float32)).cumsum(-1)
    means = []
    for window in windows:
        of_rows = _means_along(sums_of_rows, window // 2).transpose(-1, -2)
        means.append(_means_along(of_rows.cumsum(-1), window // 2).transpose(-1, -2).to(image.dtype))
    return means


def _means_along(sums: Tensor, reach: int) -> Tensor:
    """Compute the mean over each position and ``reach`` positions on either side, from sums along the last axis."""
    length = sums.shape[-1]
    end = sums[..., -1:].expand(*sums.shape[:-1], reach)
    sums = torch.cat([F.pad(sums, (reach + 1, 0)), end], dim=-1)
    position = torch.arange(length, device=sums.device)
    count = (position + reach + 1).clamp(max=length) - (position - reach).clamp(min=0)
    return (sums[..., 2 * reach + 1 :] - sums[..., :length]) / count
