"""The networks of the latent neural cellular automata, registered in BasicSR's ARCH_REGISTRY."""

from lnca_arch import basicsr_compat

basicsr_compat.apply()

from lnca_arch.autoencoder import Autoencoder  # noqa: E402
from lnca_arch.automaton import CellularAutomaton  # noqa: E402
from lnca_arch.baselines import NAFNet, Restormer  # noqa: E402
from lnca_arch.latent import LatentNAFCA, LatentViTCA  # noqa: E402
from lnca_arch.nafca import NAFCA  # noqa: E402
from lnca_arch.pixel import PixelViTCA  # noqa: E402
from lnca_arch.vitca import ViTCA  # noqa: E402

__all__ = [
    'NAFCA',
    'Autoencoder',
    'CellularAutomaton',
    'LatentNAFCA',
    'LatentViTCA',
    'NAFNet',
    'PixelViTCA',
    'Restormer',
    'ViTCA',
]
