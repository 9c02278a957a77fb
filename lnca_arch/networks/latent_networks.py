"""The latent automata: an autoencoder and a rule that works in its latent space (paper section 3)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lnca_arch.automata.cellular_automaton import CellularAutomaton
from lnca_arch.automata.nafca import PERCEPTIONS, Perception
from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.autoencoder import Autoencoder
from lnca_arch.networks.automaton_network import INFERENCE_STEPS, AutomatonNetwork


class Blend(nn.Module):
    """Keeps of a given image as much as it shows to be undamaged, beside a restored image.

    That is a share of the difference between the two, and of its means in windows around each pixel: damage that spares
    no pixel, such as blur or noise, may yet leave means, and so colours, as they were. At first the shares are the same
    everywhere: half of each mean, one and a half in all, and next to nothing of the pixel itself, as an automaton that
    trains before this does cannot make use of it.

    Args:
        image_channels: channels of the images.
        channels: of the layer between.
    """

    WINDOWS = (3, 9, 27)  # pixels a side
    PACE = 10  # shares have further to go than a rate that suits the other layers takes them

    def __init__(self, image_channels: int, channels: int = 16) -> None:
        super().__init__()
        differences = 1 + len(self.WINDOWS)
        self.compare = nn.Conv2d((1 + differences) * image_channels, channels, 3, padding=1)
        self.share = nn.Conv2d(channels, differences, 3, padding=1)
        nn.init.zeros_(self.share.weight)
        nn.init.zeros_(self.share.bias)
        nn.init.constant_(self.share.bias[:1], -4 / self.PACE)  # a sigmoid of 0.02

    def forward(self, image: Tensor, restored: Tensor) -> Tensor:
        """Both ``(N, image_channels, H, W)``, and the result, too."""
        difference = image - restored
        differences = [difference, *local_means(difference, self.WINDOWS)]
        features = F.silu(self.compare(torch.cat([image, *differences], dim=1)))
        shares = torch.sigmoid(self.PACE * self.share(features))
        for share, kept in zip(shares.split(1, dim=1), differences, strict=True):
            restored = restored + share * kept
        return restored


def local_means(image: Tensor, windows: Iterable[int]) -> list[Tensor]:
    """The means of the squares around each pixel, as far as these lie in the image.

    From running sums: a pooling would take longer the wider the window.

    Args:
        image: ``(N, C, H, W)``.
        windows: sides of the squares in pixels, odd.

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
    """Means of each place and up to ``reach`` others at either side, from the running sums along the last axis."""
    length = sums.shape[-1]
    end = sums[..., -1:].expand(*sums.shape[:-1], reach)
    sums = torch.cat([F.pad(sums, (reach + 1, 0)), end], dim=-1)
    place = torch.arange(length, device=sums.device)
    count = (place + reach + 1).clamp(max=length) - (place - reach).clamp(min=0)
    return (sums[..., 2 * reach + 1 :] - sums[..., :length]) / count


class LatentNetwork(AutomatonNetwork):
    """An automaton in the latent space of an :class:`Autoencoder`.

    Args:
        autoencoder, automaton: the parts.
        update_rate, steps: see :class:`AutomatonNetwork`.
        blend: whether what is decoded is blended with the given image; not in the paper. The skip has the image, too,
            then, and restored images may reach a little beyond [0, 1].
    """

    def __init__(
        self, autoencoder: Autoencoder, automaton: CellularAutomaton, update_rate: float, steps: int, blend: bool
    ) -> None:
        super().__init__(automaton, update_rate, steps)
        self.autoencoder = autoencoder
        self.image_channels = autoencoder.image_channels
        self.stride = autoencoder.stride
        self.blend = Blend(autoencoder.image_channels) if blend else None

    def seed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent, skip = self.autoencoder.encode(image)
        if self.blend is not None:
            skip = torch.cat([skip, F.pixel_unshuffle(image, 2)], dim=1)
        return self.automaton.seed(latent), skip

    def render(self, state: Tensor, skip: Tensor) -> Tensor:
        latent = self.automaton.output(state)
        if self.blend is None:
            return self.autoencoder.decode(latent, skip)
        channels = 4 * self.image_channels  # of the image, at the skip's size
        image = F.pixel_shuffle(skip[:, -channels:], 2)
        return self.blend(image, self.autoencoder.decode(latent, skip[:, :-channels]))


class LatentNAFCA(LatentNetwork):
    """Autoencoder and :class:`~lnca_arch.NAFCA`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: the automaton's memory.
        embed_channels, ffn_expand, dropout: see :class:`~lnca_arch.NAFCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
        blend: see :class:`LatentNetwork`.
        perception: how the rule sees neighbours: ``gate`` (the paper's) or ``depthwise``, see
            :class:`~lnca_arch.DepthwiseNAFCA`.
        steps: see :class:`AutomatonNetwork`.

    Raises:
        ValueError: another perception, or sizes that do not fit.
    """

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 16,
        downsamplings: int = 2,
        hidden_channels: int = 32,
        embed_channels: int = 128,
        ffn_expand: int = 4,
        dropout: float = 0.1,
        update_rate: float = 1.0,
        blend: bool = False,
        perception: Perception = 'gate',
        steps: int = INFERENCE_STEPS,
    ) -> None:
        if perception not in PERCEPTIONS:
            raise ValueError(f'perception must be one of {", ".join(PERCEPTIONS)}, got {perception!r}')
        rule = PERCEPTIONS[perception]
        super().__init__(
            Autoencoder(image_channels, latent_channels, downsamplings),
            rule(latent_channels, latent_channels, hidden_channels, embed_channels, ffn_expand, dropout),
            update_rate,
            steps,
            blend,
        )


class LatentViTCA(LatentNetwork):
    """Autoencoder and :class:`ViTCA`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: the automaton's memory.
        embed_channels, heads, mlp_channels: see :class:`ViTCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
        blend: see :class:`LatentNetwork`.
        steps: see :class:`AutomatonNetwork`.
    """

    def __init__(
        self,
        image_channels: int = 3,
        latent_channels: int = 16,
        downsamplings: int = 2,
        hidden_channels: int = 32,
        embed_channels: int = 128,
        heads: int = 4,
        mlp_channels: int = 64,
        update_rate: float = 1.0,
        blend: bool = False,
        steps: int = INFERENCE_STEPS,
    ) -> None:
        super().__init__(
            Autoencoder(image_channels, latent_channels, downsamplings),
            ViTCA(latent_channels, latent_channels, hidden_channels, embed_channels, heads, mlp_channels),
            update_rate,
            steps,
            blend,
        )
