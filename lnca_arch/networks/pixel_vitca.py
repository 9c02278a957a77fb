"""ViTCA in pixel space, the automaton that the latent ones are compared with."""

from torch import Tensor

from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.automaton_network import INFERENCE_STEPS, AutomatonNetwork


class PixelViTCA(AutomatonNetwork):
    """:class:`ViTCA` on the pixels themselves: no autoencoder, one training phase.

    Args:
        image_channels: channels of the image.
        hidden_channels: the automaton's memory.
        embed_channels, heads, mlp_channels: see :class:`ViTCA`.
        update_rate: see :class:`AutomatonNetwork`; 0.5 in the reference, in training and in testing.
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
        return self.automaton.seed(image), None

    def render(self, state: Tensor, skip: None) -> Tensor:
        return self.automaton.output(state)
