"""The plug-in: importing it registers networks, data, losses and models with BasicSR."""

import lnca_arch.registration  # noqa: F401  first: it mends what keeps BasicSR from being imported
from lnca_data.tile_dataset import TileDataset
from lnca_model import losses, metrics, pipeline
from lnca_model.automaton_model import AutomatonModel
from lnca_model.lnca_model import LNCAModel
from lnca_model.restoration_model import RestorationModel
from lnca_restore import Restorer

pipeline.install()

__all__ = ['AutomatonModel', 'LNCAModel', 'RestorationModel', 'Restorer', 'TileDataset', 'losses', 'metrics']
