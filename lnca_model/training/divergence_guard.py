"""Detection of divergence, and rollback to a snapshot."""

import math
import statistics
from collections.abc import Mapping
from copy import deepcopy
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lnca_utils.errors import LNCAError

from basicsr.utils import get_root_logger

if TYPE_CHECKING:
    from lnca_model.models.restoration_model import RestorationModel
    from lnca_model.training.phases import Phase

WATCHED_LOSSES = ('total', 'reconstruction')
#: Largest and smallest number of iterations that the baseline is the median of.
WINDOW, MIN_WINDOW = 100, 25
#: Number of consecutive iterations that must exceed the limit, since a single hard batch is not a divergence.
PATIENCE = 5
#: The limit, as a multiple of the baseline.
FACTOR = 3.0
#: Cap of the baseline, as a multiple of the lowest baseline of the phase. A curriculum raises losses by less.
MAX_DRIFT = 4.0
#: A gain below -MIN_GAIN after one above MIN_GAIN counts as divergence. Gains are relative to the score of the input.
MIN_GAIN = 0.01
#: Iterations between snapshots, of which the last two are kept.
SNAPSHOT_INTERVAL = 50
MAX_ROLLBACKS = 5
NO_LOSSES: Mapping[str, Any] = MappingProxyType({'history': {}, 'lowest': {}})


class DivergenceDetector:
    """Compares the losses of a phase with their running median, and its validations with the corrupted input.

    A phase diverges when one of :data:`WATCHED_LOSSES` exceeds :data:`FACTOR` times its baseline in
    :data:`PATIENCE` consecutive iterations, or when a validation scores clearly below the corrupted input after an
    earlier one scored clearly above it. The baseline is the median of the :data:`WINDOW` iterations before. It is
    capped at :data:`MAX_DRIFT` times the lowest baseline of the phase, so that it does not follow a slow divergence.
    Negative losses, such as the negative PSNR, are not checked.
    """

    def __init__(self) -> None:
        self._history: dict[str, list[float]] = {}
        self._lowest: dict[str, float] = {}
        self._best_gain = -math.inf

    def observe(self, losses: Mapping[str, float]) -> str | None:
        """Record the losses of an iteration and check them for divergence.

        Args:
            losses: name → loss.

        Returns:
            What has diverged, for messages, or None.
        """
        reasons = [self._observe_loss(name, losses[name]) for name in WATCHED_LOSSES if name in losses]
        return next(filter(None, reasons), None)

    def _observe_loss(self, name: str, loss: float) -> str | None:
        """Record and check one loss; return what has diverged, or None."""
        history = [*self._history.get(name, []), loss][-WINDOW - PATIENCE :]
        self._history[name] = history
        before, recent = history[:-PATIENCE], history[-PATIENCE:]
        median = statistics.median(before) if len(before) >= MIN_WINDOW else math.inf
        self._lowest[name] = lowest = min(self._lowest.get(name, math.inf), median)
        baseline = min(median, MAX_DRIFT * lowest)
        if len(recent) < PATIENCE or not 0 < FACTOR * baseline < min(recent):
            return None
        return f'the {name} loss is {loss:.3g}, {loss / baseline:.1f} times what it was before'

    def observe_gain(self, gain: float) -> str | None:
        """Record the gain of a validation and check it for divergence.

        Args:
            gain: gain over the corrupted input, relative to the score of the input.

        Returns:
            What has diverged, for messages, or None.
        """
        self._best_gain = max(self._best_gain, gain)
        if gain < -MIN_GAIN and self._best_gain > MIN_GAIN:
            return (
                f'the restored images score {-gain:.1%} below the corrupted ones, and scored {self._best_gain:.1%} '
                'above them before'
            )
        return None

    def load_losses(self, losses: Mapping[str, Any]) -> None:
        """Replace the recorded losses by an earlier copy from :attr:`losses`."""
        self._history, self._lowest = deepcopy(losses['history']), dict(losses['lowest'])

    @property
    def losses(self) -> dict[str, Any]:
        """A copy of the recorded losses: recent ones, and the lowest baselines."""
        return {'history': deepcopy(self._history), 'lowest': dict(self._lowest)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {**self.losses, 'best_gain': self._best_gain}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.load_losses(saved)
        self._best_gain = saved['best_gain']


class DivergenceGuard:
    """Rolls a diverged phase back to a snapshot and halves the learning rate.

    With ``train.on_divergence: rollback``, a phase whose losses diverge returns to the older of its last two snapshots,
    normally at most 100 iterations back. A phase whose validation diverges returns to the last validation that did not.
    There are at most :data:`MAX_ROLLBACKS` rollbacks per phase. With ``warn``, or with ``train.paper_exact``, only a
    warning is logged. Losses are averaged over the ranks, so that all ranks decide alike.

    Args:
        model: the model in training.

    Attributes:
        diverged_at: name of the phase and iteration of each divergence that was not rolled back.
        rollbacks: number of rollbacks in the current phase.
    """

    def __init__(self, model: 'RestorationModel') -> None:
        self._model = model
        self.diverged_at: list[tuple[str, int]] = []
        self._phase: Phase = model.phase
        self._reset()

    def _reset(self) -> None:
        self.rollbacks = 0
        self._detector = DivergenceDetector()
        self._snapshots: list[dict[str, Any]] = []
        self._validated: dict[str, Any] | None = None  # snapshot of the last validation that did not diverge
        self._observed_at = 0  # iteration of the last validation

    def before_iteration(self) -> None:
        """Reset the guard if the iteration starts a new phase; call it before every iteration."""
        if self._model.phase is not self._phase:
            self._phase = self._model.phase
            self._reset()
            self._snapshots = self._take_snapshot(self._model.iteration - 1)

    def after_iteration(self) -> None:
        """Check the losses of the iteration and handle a divergence; call it after every iteration.

        Raises:
            LNCAError: if the losses diverge and no rollbacks are left.
        """
        reason = self._detector.observe(self._model.iteration_losses)
        iteration = self._model.iteration
        if reason:
            self._detector.load_losses(NO_LOSSES)
            self.handle(reason)
        elif self._model.is_finite and (iteration - self._phase.first + 1) % SNAPSHOT_INTERVAL == 0:
            self._snapshots = [*self._snapshots[-1:], *self._take_snapshot(iteration)]

    def observe_gain(self, gain: float) -> None:
        """Check the gain of a validation and handle a divergence.

        Further calls in the same iteration do nothing, since a resumed run may repeat a validation.

        Args:
            gain: gain over the corrupted input, relative to the score of the input.
        """
        if self._observed_at == self._model.iteration:
            return
        self._observed_at = self._model.iteration
        reason = self._detector.observe_gain(gain)
        if not reason:
            self._validated = next(iter(self._take_snapshot(self._model.iteration)), None)
        elif self._validated and self.can_roll_back:
            self._roll_back(reason, self._validated)
        else:
            self._warn(reason)

    @property
    def can_roll_back(self) -> bool:
        """Whether the run rolls back, has a snapshot of this phase and has rollbacks left."""
        return self._model.rolls_back and bool(self._snapshots) and self.rollbacks < MAX_ROLLBACKS

    def handle(self, reason: str) -> None:
        """Handle diverged losses: roll back or warn.

        Args:
            reason: what has diverged, for messages.

        Raises:
            LNCAError: if the run rolls back, but the phase has no rollbacks or no snapshot left.
        """
        if not self._model.rolls_back:
            self._warn(reason)
        elif self.can_roll_back:
            self._roll_back(reason, self._snapshots[0])  # the older one, which is from before the divergence began
        else:
            raise LNCAError(
                f'{self._where}: {reason}, after {self.rollbacks} rollbacks; lower {self._phase.where}.optim_g.lr and '
                'start again'
            )

    @property
    def _where(self) -> str:
        return f'{self._phase.where}: diverged in iteration {self._model.iteration:,}'

    def _warn(self, reason: str) -> None:
        self.diverged_at.append((self._phase.name, self._model.iteration))
        hint = 'set train.on_divergence: rollback, without train.paper_exact, or '
        get_root_logger().warning(
            f'{self._where}: {reason}; no action taken: {"" if self._model.rolls_back else hint}lower '
            f'{self._phase.where}.optim_g.lr.'
        )

    def _roll_back(self, reason: str, snapshot: dict[str, Any]) -> None:
        self.rollbacks += 1
        self._snapshots = [snapshot]
        self._detector.load_losses(snapshot['losses'])
        where = self._where
        self._model.restore_snapshot(snapshot)
        self._model.scale_learning_rate(0.5)
        rates = ', '.join(f'{rate:.3g}' for rate in self._model.get_current_learning_rate())
        get_root_logger().warning(
            f'{where}: {reason}; rolled back to the weights of iteration {snapshot["iteration"]:,} and halved the '
            f'learning rate to {rates} (rollback {self.rollbacks} of at most {MAX_ROLLBACKS}).'
        )

    def _take_snapshot(self, iteration: int) -> list[dict[str, Any]]:
        """Return a list of one snapshot, or an empty one if the run does not roll back."""
        if not self._model.rolls_back:
            return []
        return [{'iteration': iteration, 'losses': self._detector.losses, **self._model.snapshot()}]

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: tensors and plain data."""
        return {
            'diverged_at': self.diverged_at,
            'rollbacks': self.rollbacks,
            'base_rates': self._model.base_rates,
            'detector': self._detector.state_dict(),
            'snapshots': self._snapshots,
            'validated': self._validated,
            'observed_at': self._observed_at,
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the model must be restored before.

        If the learning rate in the options has changed, earlier rollbacks no longer count. If the model now has a
        moving average of its weights but the snapshots have none, they are replaced by a new one.
        """
        self._phase = self._model.phase
        self.diverged_at = [(name, iteration) for name, iteration in saved['diverged_at']]
        self._detector.load_state_dict(saved['detector'])
        self._observed_at = saved['observed_at']
        snapshots = [*saved['snapshots'], *filter(None, [saved['validated']])]
        if not self._model.rolls_back:
            return
        if snapshots and all(self._model.networks.keys() <= snapshot.keys() for snapshot in snapshots):
            self._snapshots, self._validated = list(saved['snapshots']), saved['validated']
        else:
            self._snapshots = self._take_snapshot(self._model.iteration)
        factor = 0.5 ** saved['rollbacks']
        if saved['base_rates'] == [factor * rate for rate in self._model.base_rates]:
            self.rollbacks = saved['rollbacks']
            self._model.scale_learning_rate(factor)
