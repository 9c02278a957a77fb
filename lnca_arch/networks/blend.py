"""Blending of the input into the restored image."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blend(nn.Module):
    """Blends the input into the output where the input looks clean.

    Adds to the output a share of its difference from the input, and of the local means of that difference: corruptions
    that spare no pixel, such as blur or noise, may still preserve means, and thereby colours. The shares start equal
    everywhere: half of each mean, one and a half in all, and 0.02 of the pixel itself, since an automaton trained
    before the blend cannot make use of it.

    Args:
        image_channels: number of image channels.
        channels: number of channels of the intermediate layer.
    """

    WINDOWS = (3, 9, 27)  # pixels a side
    PACE = 10  # the logits must move further than the learning rate of the other layers takes them

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
        """Blend two images ``(N, image_channels, H, W)``; the result has that shape, too."""
        difference = image - restored
        differences = [difference, *local_means(difference, self.WINDOWS)]
        features = F.silu(self.compare(torch.cat([image, *differences], dim=1)))
        shares = torch.sigmoid(self.PACE * self.share(features))
        for share, kept in zip(shares.split(1, dim=1), differences, strict=True):
            restored = restored + share * kept
        return restored


def local_means(image: Tensor, windows: Iterable[int]) -> list[Tensor]:
    """Compute the means of square windows around each pixel, as far as these lie in the image.

    From running sums, whose cost does not grow with the windows as that of a pooling does.

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
    """Compute means over ``reach`` positions on either side from running sums along the last axis."""
    length = sums.shape[-1]
    end = sums[..., -1:].expand(*sums.shape[:-1], reach)
    sums = torch.cat([F.pad(sums, (reach + 1, 0)), end], dim=-1)
    position = torch.arange(length, device=sums.device)
    count = (position + reach + 1).clamp(max=length) - (position - reach).clamp(min=0)
    return (sums[..., 2 * reach + 1 :] - sums[..., :length]) / count
