"""The latent networks: an automaton in the latent space of an autoencoder (paper section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lnca_arch.automata.cellular_automaton import CellularAutomaton
from lnca_arch.automata.nafca import NAFCA, Perception
from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.autoencoder import Autoencoder
from lnca_arch.networks.automaton_network import INFERENCE_STEPS, AutomatonNetwork
from lnca_arch.networks.blend import Blend


class LatentNetwork(AutomatonNetwork):
    """An automaton in the latent space of an :class:`Autoencoder`.

    Args:
        autoencoder: the autoencoder.
        automaton: the rule, with as many input and output channels as the latent.
        update_rate, steps: see :class:`AutomatonNetwork`.
        blend: whether to blend the input image into the decoded one with a
            :class:`~lnca_arch.networks.blend.Blend` (not in the paper). The skip then includes the input image, and
            restored images may exceed [0, 1] a little.
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
        """Encode images; return the seed of the automaton and the skip."""
        latent, skip = self.autoencoder.encode(image)
        if self.blend is not None:
            skip = torch.cat([skip, F.pixel_unshuffle(image, 2)], dim=1)
        return self.automaton.seed(latent), skip

    def render(self, state: Tensor, skip: Tensor | None = None) -> Tensor:
        """Decode the output channels of a state, and blend in the input image if ``blend`` is set."""
        assert skip is not None
        latent = self.automaton.output(state)
        if self.blend is None:
            return self.autoencoder.decode(latent, skip)
        channels = 4 * self.image_channels  # of the image after pixel_unshuffle
        image = F.pixel_shuffle(skip[:, -channels:], 2)
        return self.blend(image, self.autoencoder.decode(latent, skip[:, :-channels]))


class LatentNAFCA(LatentNetwork):
    """A :class:`~lnca_arch.NAFCA` in the latent space of an :class:`Autoencoder`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: number of hidden channels of the automaton.
        embed_channels, ffn_expand, dropout: see :class:`~lnca_arch.NAFCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
        blend: see :class:`LatentNetwork`.
        perception: see :class:`~lnca_arch.NAFCA`.
        steps: see :class:`AutomatonNetwork`.

    Raises:
        ValueError: if an argument is out of range.
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
        super().__init__(
            Autoencoder(image_channels, latent_channels, downsamplings),
            NAFCA(latent_channels, latent_channels, hidden_channels, embed_channels, ffn_expand, dropout, perception),
            update_rate,
            steps,
            blend,
        )


class LatentViTCA(LatentNetwork):
    """A :class:`ViTCA` in the latent space of an :class:`Autoencoder`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: number of hidden channels of the automaton.
        embed_channels, heads, mlp_channels: see :class:`ViTCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
        blend: see :class:`LatentNetwork`.
        steps: see :class:`AutomatonNetwork`.

    Raises:
        ValueError: if an argument is out of range.
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
