"""Support of this package's checkpoints in spandrel and in programs that use it, such as chaiNNer."""

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling, StateDict
from spandrel.util import KeyCondition

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_arch.networks.detection import NAMES, detect
from lnca_utils.errors import LNCAError


class AutomatonArchitecture(Architecture[AutomatonNetwork]):
    """Checkpoints of a network with an automaton."""

    def __init__(self, kind: type[AutomatonNetwork]) -> None:
        super().__init__(id=kind.__name__, detect=KeyCondition.has_all(*NAMES[kind]))

    def load(self, state_dict: StateDict) -> ImageModelDescriptor[AutomatonNetwork]:
        """Build the network of a state dict.

        Raises:
            LNCAError: if the parameters do not have the shapes of such a network.
        """
        spec = detect(state_dict)
        if spec is None:
            raise LNCAError(f'{self.id}: the parameters have the names of this network, but not its shapes')
        arguments = spec.arguments
        network = spec.kind(**arguments)
        return ImageModelDescriptor(
            network,
            state_dict,
            architecture=self,
            purpose='Restoration',
            tags=[f'{arguments["hidden_channels"]} hidden'],
            supports_half=False,
            supports_bfloat16=False,
            scale=1,
            input_channels=arguments['image_channels'],
            output_channels=arguments['image_channels'],
            tiling=ModelTiling.DISCOURAGED if network.automaton.fixed_grid else ModelTiling.SUPPORTED,
        )


def install() -> None:
    """Register LatentNAFCA, LatentViTCA and PixelViTCA with spandrel's ``ModelLoader``.

    A second call does nothing.
    """
    # In this order, since a LatentViTCA has all parameter names of a PixelViTCA.
    supports = (ArchSupport.from_architecture(AutomatonArchitecture(kind)) for kind in NAMES)
    MAIN_REGISTRY.add(*supports, ignore_duplicates=True)
