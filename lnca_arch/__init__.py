"""The networks of the latent neural cellular automata. They need PyTorch alone; :mod:`lnca_arch.registration` makes
them known to BasicSR."""

from lnca_arch.automata.cellular_automaton import CellularAutomaton
from lnca_arch.automata.nafca import NAFCA, DepthwiseNAFCA
from lnca_arch.automata.vitca import ViTCA
from lnca_arch.networks.autoencoder import Autoencoder
from lnca_arch.networks.latent_networks import LatentNAFCA, LatentViTCA
from lnca_arch.networks.pixel_vitca import PixelViTCA

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
