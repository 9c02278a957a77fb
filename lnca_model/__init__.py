"""The plug-in: importing it registers networks, data, losses and models with BasicSR."""

import lnca_arch  # noqa: F401  first: it mends what keeps BasicSR from being imported
import lnca_data  # noqa: F401
from lnca_model import losses, metrics, pipeline
from lnca_model.automaton_model import AutomatonModel
from lnca_model.lnca_model import LNCAModel
from lnca_model.restoration_model import RestorationModel
from lnca_model.restorer import Restorer

pipeline.install()

__all__ = ['AutomatonModel', 'LNCAModel', 'RestorationModel', 'Restorer', 'losses', 'metrics']
