"""Saving of networks and training states."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lnca_model import distributed
from lnca_model.checkpointing.resume import list_checkpoints, touch_as_latest
from lnca_model.checkpointing.rng_state import rng_state
from lnca_utils import checkpoint

from basicsr.utils import get_root_logger

if TYPE_CHECKING:
    from lnca_model.models.restoration_model import RestorationModel

NETWORK = 'net_g'


class Checkpointer:
    """Writes networks and training states atomically, on rank 0, with BasicSR's file names and layout.

    Args:
        model: the model to save.
        paths: the folders ``models`` and ``training_states``.
        keep_last: number of checkpoints to keep; None keeps all.

    Attributes:
        last_saved: iteration of the last checkpoint, 0 if there is none.
    """

    def __init__(self, model: 'RestorationModel', paths: Mapping[str, str], keep_last: int | None = None) -> None:
        self._model = model
        self._models = Path(paths['models'])
        self._states = Path(paths['training_states'])
        self._keep_last = keep_last
        self.last_saved = 0

    def save(self, iteration: int, **trainer_state: Any) -> None:
        """Save the network and the training state of an iteration, and remove old checkpoints.

        Nothing is saved while the model skips non-finite steps, since the network itself may be the cause.

        Args:
            iteration: number of the iteration.
            trainer_state: further entries of the training state.

        Raises:
            CheckpointError: if a file cannot be written.
        """
        if not self._model.is_finite:
            get_root_logger().warning(
                f'No checkpoint of iteration {iteration:,}, whose step was skipped; the last one is of iteration '
                f'{self.last_saved:,}.'
            )
            return
        self.save_network(iteration)
        ranks = distributed.gather({'rng': rng_state(), **self._model.rank_state()})
        if distributed.rank() == 0:
            path = self._states / f'{iteration}.state'
            checkpoint.save({'iter': iteration, **trainer_state, **self._model.training_state(), 'ranks': ranks}, path)
            touch_as_latest(path)
            self._remove_old()
        self.last_saved = iteration

    def save_network(self, label: int | str, **entries: Any) -> None:
        """Save the network, the moving average of its weights if there is one, and its options ``network_g``.

        Args:
            label: iteration or word in the name of the file, ``net_g_LABEL.pth``.
            entries: further entries of the file.

        Raises:
            CheckpointError: if the file cannot be written.
        """
        if distributed.rank() > 0:
            return
        content = {
            key: {name: tensor.cpu() for name, tensor in network.state_dict().items()}
            for key, network in self._model.networks.items()
        }
        content[checkpoint.OPTIONS] = dict(self._model.opt[checkpoint.OPTIONS])
        checkpoint.save(content | entries, self._models / f'{NETWORK}_{label}.pth')

    def _remove_old(self) -> None:
        if not self._keep_last:
            return
        for state in list_checkpoints(self._states)[: -self._keep_last]:
            # Remove the state first: if interrupted, no state is left without its network.
            for path in (state, self._models / f'{NETWORK}_{state.stem}.pth'):
                path.unlink(missing_ok=True)
