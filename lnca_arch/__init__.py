"""The networks of the latent neural cellular automata. They need PyTorch alone; :mod:`lnca_arch.registration` makes
them known to BasicSR."""

from lnca_arch.autoencoder import Autoencoder
from lnca_arch.automaton import CellularAutomaton
from lnca_arch.latent import LatentNAFCA, LatentViTCA
from lnca_arch.nafca import NAFCA, DepthwiseNAFCA
from lnca_arch.pixel import PixelViTCA
from lnca_arch.vitca import ViTCA

# By the names that option files give them.
NETWORKS = {kind.__name__: kind for kind in (Autoencoder, NAFCA, ViTCA, LatentNAFCA, LatentViTCA, PixelViTCA)}

__all__ = [
    'NAFCA',
    'NETWORKS',
    'Autoencoder',
    'CellularAutomaton',
    'DepthwiseNAFCA',
    'LatentNAFCA',
    'LatentViTCA',
    'PixelViTCA',
    'ViTCA',
]
