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
#: Largest and smallest number of iterations whose median is the baseline.
WINDOW, MIN_WINDOW = 100, 25
#: Number of consecutive iterations that must exceed the baseline, since a single hard batch is no divergence.
PATIENCE = 5
#: Multiple of the baseline that counts as divergence.
FACTOR = 3.0
#: Limit of the baseline as a multiple of the lowest one of the phase. A curriculum raises losses by less.
MAX_DRIFT = 4.0
#: How far a validation must have been above the corrupted input, and another must now be below it, to count as
#: divergence; relative to the score of the input.
MIN_GAIN = 0.01
#: Iterations between snapshots. The last two are kept: the older one is at most twice this many iterations old.
SNAPSHOT_INTERVAL = 50
MAX_ROLLBACKS = 5
NO_LOSSES: Mapping[str, Any] = MappingProxyType({'history': {}, 'lowest': {}})


class DivergenceDetector:
    """Compares the losses of a phase with their running median, and its validations with the corrupted input.

    A phase diverges when one of :data:`WATCHED_LOSSES` exceeds :data:`FACTOR` times the median of the
    :data:`WINDOW` iterations before, :data:`PATIENCE` times in a row, or when a validation falls clearly below the
    corrupted input after an earlier one was clearly above it. A median above :data:`MAX_DRIFT` times the phase's lowest
    counts as that much, so that a slow divergence does not become its own baseline. Negative losses, such as the
    negative PSNR, are not compared.
    """

    def __init__(self) -> None:
        self._history: dict[str, list[float]] = {}
        self._lowest: dict[str, float] = {}
        self._best_gain = -math.inf

    def observe(self, losses: Mapping[str, float]) -> str | None:
        """Take the losses of an iteration.

        Args:
            losses: name → loss.

        Returns:
            What has diverged, for messages, or None.
        """
        reasons = [self._observe_loss(name, losses[name]) for name in WATCHED_LOSSES if name in losses]
        return next(filter(None, reasons), None)

    def _observe_loss(self, name: str, loss: float) -> str | None:
        """Take one loss of an iteration; return what has diverged, or None."""
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
        """Take the gain of a validation.

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
        """Replace the losses that new ones are compared with by an earlier :attr:`losses`."""
        self._history, self._lowest = deepcopy(losses['history']), dict(losses['lowest'])

    @property
    def losses(self) -> dict[str, Any]:
        """A copy of the losses that new ones are compared with."""
        return {'history': deepcopy(self._history), 'lowest': dict(self._lowest)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain data."""
        return {**self.losses, 'best_gain': self._best_gain}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.load_losses(saved)
        self._best_gain = saved['best_gain']


class DivergenceGuard:
    """Rolls a diverged phase back to a snapshot, and continues at half the learning rate.

    With ``train.on_divergence: rollback``, a phase whose losses diverge returns to a snapshot that is 50 to 100
    iterations old, and one whose validation diverges to the last validation that did not, at most
    :data:`MAX_ROLLBACKS` times per phase. With ``warn``, or with ``train.paper_exact``, a warning is logged. Losses are
    averaged over the ranks, so that all ranks decide alike.

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
        self._validated: dict[str, Any] | None = None  # the snapshot of the last validation that did not diverge
        self._observed_at = 0  # iteration of the last validation

    def before_iteration(self) -> None:
        """Reset if the model has started a new phase. Call it before every iteration."""
        if self._model.phase is not self._phase:
            self._phase = self._model.phase
            self._reset()
            self._snapshots = self._take_snapshot(self._model.iteration - 1)

    def after_iteration(self) -> None:
        """Check the losses of the iteration, and handle a divergence.

        Raises:
            LNCAError: if the losses diverge after the last rollback.
        """
        reason = self._detector.observe(self._model.iteration_losses)
        iteration = self._model.iteration
        if reason:
            self._detector.load_losses(NO_LOSSES)
            self.handle(reason)
        elif self._model.is_finite and (iteration - self._phase.first + 1) % SNAPSHOT_INTERVAL == 0:
            self._snapshots = [*self._snapshots[-1:], *self._take_snapshot(iteration)]

    def observe_gain(self, gain: float) -> None:
        """Check the gain of a validation, and handle a divergence.

        A second call in an iteration does nothing, since a resumed run cannot know whether there was a first.

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
            LNCAError: if the phase has been rolled back :data:`MAX_ROLLBACKS` times already.
        """
        if not self._model.rolls_back:
            self._warn(reason)
        elif self.can_roll_back:
            self._roll_back(reason, self._snapshots[0])  # the older one is from before the onset
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
        """Restore the guard, after its model has been restored.

        If the learning rate in the options has changed, earlier rollbacks no longer count. If the model now has a
        moving average of its weights, snapshots without one are replaced.
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
