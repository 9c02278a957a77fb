"""Latent neural cellular automata as PyTorch modules.

They need only PyTorch; :mod:`lnca_arch.registration` registers them with BasicSR.
"""

from lnca_arch.acceleration import fused_nafca, fused_vitca  # noqa: F401  registers the fused forms
from lnca_arch.automata.cellular_automaton import CellularAutomaton
from lnca_arch.automata.nafca import NAFCA
from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.autoencoder import Autoencoder
from lnca_arch.networks.latent_networks import LatentNAFCA, LatentViTCA
from lnca_arch.networks.pixel_vitca import PixelViTCA

#: Class name, as in option files → class.
NETWORKS = {kind.__name__: kind for kind in (Autoencoder, NAFCA, ViTCA, LatentNAFCA, LatentViTCA, PixelViTCA)}

__all__ = [
    'NAFCA',
    'NETWORKS',
    'Autoencoder',
    'CellularAutomaton',
    'LatentNAFCA',
    'LatentViTCA',
    'PixelViTCA',
    'ViTCA',
]
