"""ViTCA in pixel space, the baseline of the latent automata."""

from torch import Tensor

from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.automaton_network import INFERENCE_STEPS, AutomatonNetwork


class PixelViTCA(AutomatonNetwork):
    """:class:`ViTCA` on pixels, without an autoencoder.

    Args:
        image_channels: number of image channels.
        hidden_channels: number of hidden channels of the automaton.
        embed_channels, heads, mlp_channels: see :class:`ViTCA`.
        update_rate: see :class:`AutomatonNetwork`. The reference trains and tests with 0.5.
        steps: see :class:`AutomatonNetwork`.
    """

    def __init__(
        self,
        image_channels: int = 3,
        hidden_channels: int = 32,
        embed_channels: int = 128,
        heads: int = 4,
        mlp_channels: int = 64,
        update_rate: float = 0.5,
        steps: int = INFERENCE_STEPS,
    ) -> None:
        super().__init__(
            ViTCA(image_channels, image_channels, hidden_channels, embed_channels, heads, mlp_channels),
            update_rate,
            steps,
        )
        self.image_channels = image_channels

    def seed(self, image: Tensor) -> tuple[Tensor, None]:
        """Return the seed of the automaton; there is no skip."""
        return self.automaton.seed(image), None

    def render(self, state: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return the output channels of a state."""
        return self.automaton.output(state)
