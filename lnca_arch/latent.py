"""The latent automata: an autoencoder and a rule that works in its latent space (paper section 3)."""

from torch import Tensor

from lnca_arch.autoencoder import Autoencoder
from lnca_arch.automaton import CellularAutomaton
from lnca_arch.nafca import NAFCA
from lnca_arch.network import AutomatonNetwork
from lnca_arch.vitca import ViTCA


class LatentNetwork(AutomatonNetwork):
    """An automaton in the latent space of an :class:`Autoencoder`."""

    def __init__(self, autoencoder: Autoencoder, automaton: CellularAutomaton, update_rate: float) -> None:
        super().__init__(automaton, update_rate)
        self.autoencoder = autoencoder
        self.image_channels = autoencoder.image_channels
        self.stride = autoencoder.stride

    def seed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        latent, skip = self.autoencoder.encode(image)
        return self.automaton.seed(latent), skip

    def render(self, state: Tensor, skip: Tensor) -> Tensor:
        return self.autoencoder.decode(self.automaton.output(state), skip)


class LatentNAFCA(LatentNetwork):
    """Autoencoder and :class:`NAFCA`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: the automaton's memory.
        embed_channels, ffn_expand, dropout: see :class:`NAFCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
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
    ) -> None:
        super().__init__(
            Autoencoder(image_channels, latent_channels, downsamplings),
            NAFCA(latent_channels, latent_channels, hidden_channels, embed_channels, ffn_expand, dropout),
            update_rate,
        )


class LatentViTCA(LatentNetwork):
    """Autoencoder and :class:`ViTCA`.

    Args:
        image_channels, latent_channels, downsamplings: see :class:`Autoencoder`.
        hidden_channels: the automaton's memory.
        embed_channels, heads, mlp_channels: see :class:`ViTCA`.
        update_rate: see :class:`AutomatonNetwork`. The published latent results use 1.
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
    ) -> None:
        super().__init__(
            Autoencoder(image_channels, latent_channels, downsamplings),
            ViTCA(latent_channels, latent_channels, hidden_channels, embed_channels, heads, mlp_channels),
            update_rate,
        )
