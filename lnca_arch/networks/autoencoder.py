"""The autoencoder: the skip holds an image's content, the latent its corruption (paper section 3.1.1)."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_utils.errors import LNCAError

# Keras's defaults. Its momentum, 0.99, is the weight of the old running average; PyTorch's is that of the new value.
BATCH_NORM_EPS, BATCH_NORM_MOMENTUM = 1e-3, 0.01


class AdjustedConv(nn.Module):
    """A 3×3 convolution, batch norm and activation: the paper's "adjusted convolution".

    Args:
        in_channels, out_channels: numbers of channels.
        resize: ``'down'`` halves height and width, ``'up'`` doubles them, ``'keep'`` keeps them.
        activation: activation function. Default: swish.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resize: Literal['down', 'up', 'keep'],
        activation: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.resize = resize
        self.activation = activation
        self.conv: nn.Module
        if resize == 'up':
            self.conv = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2)
        else:
            stride, padding = (2, 0) if resize == 'down' else (1, 1)
            self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding)
        self.norm = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H', W')``; H and W must be even to be halved."""
        height, width = x.shape[-2:]
        if self.resize == 'down':
            x = F.pad(x, (0, 1, 0, 1))
        x = self.conv(x)
        if self.resize == 'up':
            x = x[:, :, : 2 * height, : 2 * width]
        return self.activation(self.norm(x))


class Encoder(nn.Module):
    """Encodes an image as a latent and a skip.

    A side branch contributes only to the latent.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
    """

    def __init__(self, image_channels: int, latent_channels: int, downsamplings: int) -> None:
        super().__init__()
        skip = skip_channels(latent_channels, downsamplings)
        self.down1 = AdjustedConv(image_channels, skip, 'down')
        self.side1 = AdjustedConv(image_channels, skip, 'down')
        self.down2 = AdjustedConv(skip, 2 * skip, 'down')
        if downsamplings == 3:
            self.side2 = AdjustedConv(skip, 2 * skip, 'down')
            self.down3 = AdjustedConv(2 * skip, latent_channels, 'down')
        self.downsamplings = downsamplings

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent and the skip of images ``(N, image_channels, H, W)``."""
        skip = self.down1(image)
        if self.downsamplings == 2:
            return self.down2(skip + self.side1(image)), skip
        return self.down3(self.down2(skip) + self.side2(self.side1(image))), skip


class Decoder(nn.Module):
    """Decodes a latent and a skip to an image in [0, 1].

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
    """

    def __init__(self, image_channels: int, latent_channels: int, downsamplings: int) -> None:
        super().__init__()
        skip = skip_channels(latent_channels, downsamplings)
        if downsamplings == 3:
            self.up3 = AdjustedConv(latent_channels, 2 * skip, 'up')
        self.up2 = AdjustedConv(2 * skip, skip, 'up')
        self.mix = AdjustedConv(skip, skip, 'keep')
        self.up1 = AdjustedConv(skip, image_channels, 'up', activation=torch.sigmoid)
        self.downsamplings = downsamplings

    def forward(self, latent: Tensor, skip: Tensor) -> Tensor:
        """Return the images ``(N, image_channels, H, W)`` of latents and skips."""
        if self.downsamplings == 3:
            latent = self.up3(latent)
        return self.up1(self.mix(self.up2(latent) + skip))


class Autoencoder(nn.Module):
    """Encoder and decoder of the latent automata.

    By default a 32×32×3 image has an 8×8×16 latent and a 16×16×8 skip.

    Args:
        image_channels: number of image channels.
        latent_channels: number of latent channels, divisible by ``2 ** (downsamplings - 1)``.
        downsamplings: 2 or 3. Height and width of the latent are those of the image divided by ``2 ** downsamplings``.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, image_channels: int = 3, latent_channels: int = 16, downsamplings: int = 2) -> None:
        super().__init__()
        if downsamplings not in (2, 3):
            raise ValueError(f'downsamplings must be 2 or 3, got {downsamplings}')
        if latent_channels % 2 ** (downsamplings - 1):
            raise ValueError(
                f'latent_channels must be divisible by {2 ** (downsamplings - 1)} '
                f'with {downsamplings} downsamplings, got {latent_channels}'
            )
        self.image_channels = image_channels
        self.latent_channels = latent_channels
        self.stride = 2**downsamplings
        self.encoder = Encoder(image_channels, latent_channels, downsamplings)
        self.decoder = Decoder(image_channels, latent_channels, downsamplings)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            image: ``(N, image_channels, H, W)`` in [0, 1].

        Returns:
            The latent ``(N, latent_channels, H/stride, W/stride)`` and the skip
            ``(N, skip_channels, H/2, W/2)``, see :func:`skip_channels`.

        Raises:
            LNCAError: if H or W is not divisible by the stride, or the image has another number of channels.
        """
        channels, height, width = image.shape[-3:]
        if channels != self.image_channels:
            raise LNCAError(f'the autoencoder needs images of {self.image_channels} channels, got {channels}')
        if height % self.stride or width % self.stride:
            raise LNCAError(
                f'the autoencoder needs a height and width divisible by {self.stride}, got {height}×{width}; pad the '
                'image or use another tile size'
            )
        return self.encoder(image)

    def decode(self, latent: Tensor, skip: Tensor) -> Tensor:
        """Decode latents and skips from :meth:`encode` to images ``(N, image_channels, H, W)`` in [0, 1]."""
        return self.decoder(latent, skip)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct images ``(N, image_channels, H, W)``."""
        return self.decode(*self.encode(image))


def skip_channels(latent_channels: int, downsamplings: int) -> int:
    """Return the number of channels of the skip."""
    return latent_channels // 2 ** (downsamplings - 1)
