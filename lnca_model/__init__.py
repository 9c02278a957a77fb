"""The plug-in: importing it registers its networks, datasets, losses, metrics and models with BasicSR."""

import lnca_arch.registration  # noqa: F401  first: it makes BasicSR importable
from lnca_data.tile_dataset import TileDataset
from lnca_model import losses, metrics
from lnca_model.models.automaton_model import AutomatonModel
from lnca_model.models.lnca_model import LNCAModel
from lnca_model.models.restoration_model import RestorationModel
from lnca_restore import Restorer

__all__ = ['AutomatonModel', 'LNCAModel', 'RestorationModel', 'Restorer', 'TileDataset', 'losses', 'metrics']
