"""For spandrel, and what loads networks with it, chaiNNer among others: this package's checkpoints."""

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, StateDict
from spandrel.util import KeyCondition

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_arch.networks.detection import NAMES, detect


class AutomatonArchitecture(Architecture[AutomatonNetwork]):
    """The checkpoints of one of the networks that restore with an automaton."""

    def __init__(self, kind: type[AutomatonNetwork]) -> None:
        super().__init__(id=kind.__name__, detect=KeyCondition.has_all(*NAMES[kind]))

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[AutomatonNetwork]:
        """The network, its sizes read from the state dict."""
        kind, sizes = detect(state_dict)
        network = kind(**sizes)
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose='Restoration',
            tags=[f'{sizes["hidden_channels"]} hidden'],
            supports_half=False,
            supports_bfloat16=False,
            scale=1,
            input_channels=sizes['image_channels'],
            output_channels=sizes['image_channels'],
            tiling=ModelTiling.DISCOURAGED if network.automaton.fixed_grid else ModelTiling.SUPPORTED,
        )


def install() -> None:
    """Have spandrel's ``ModelLoader`` recognise LatentNAFCA, LatentViTCA and PixelViTCA. A second call does nothing."""
    # In this order, as a LatentViTCA has all the names of a PixelViTCA.
    supports = (ArchSupport.from_architecture(AutomatonArchitecture(kind)) for kind in NAMES)
    MAIN_REGISTRY.add(*supports, ignore_duplicates=True)
