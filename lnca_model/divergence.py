"""Detection of a training phase that diverges, and the snapshots from which it can go on."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

WATCHED_LOSSES = ('total', 'reconstruction')
#: Iterations whose median is the baseline, and how many of them it takes to have one.
WINDOW, MIN_WINDOW = 100, 25
#: Iterations in a row that must exceed the baseline: a single hard batch does not count.
PATIENCE = 5
#: Multiple of the baseline that counts as divergence.
FACTOR = 3.0
#: Iterations between snapshots. The last two are kept, so that the older one is at most twice as old as this.
SNAPSHOT_INTERVAL = 50
MAX_ROLLBACKS = 5


class DivergenceGuard:
    """Watches the losses of a phase and keeps snapshots of what it trains.

    A phase diverges when one of :data:`WATCHED_LOSSES` exceeds :data:`FACTOR` times the median of the
    :data:`WINDOW` iterations before, :data:`PATIENCE` times in a row. Losses below zero, such as minus the PSNR in dB,
    have no such multiple and are not watched. The guard decides and remembers; the model takes the snapshots and goes
    back to them.

    Attributes:
        rollbacks: how often the phase went back to a snapshot.
        diverged_at: the phase and iteration of every divergence of the training, in the order in which they were
            detected.
    """

    def __init__(self) -> None:
        self.diverged_at: list[tuple[str, int]] = []
        self.start_phase({})

    def start_phase(self, snapshot: dict[str, Any]) -> None:
        """Forget the phase before.

        Args:
            snapshot: see :meth:`add_snapshot`; of the state before the first iteration.
        """
        self.rollbacks = 0
        self._best_gain = -math.inf
        self._history: dict[str, list[float]] = {}
        self._snapshots = [self._with_history(snapshot)] if snapshot else []

    def observe(self, losses: Mapping[str, float]) -> str | None:
        """Take the losses of an iteration, summed over its optimiser steps.

        Returns:
            What has diverged, in words; None while nothing has.
        """
        diverged = None
        for name in WATCHED_LOSSES:
            if name not in losses:
                continue
            history = self._history.setdefault(name, [])
            history.append(losses[name])
            del history[: -(WINDOW + PATIENCE)]
            before, recent = history[:-PATIENCE], history[-PATIENCE:]
            baseline = statistics.median(before) if len(before) >= MIN_WINDOW else math.inf
            if 0 < FACTOR * baseline < min(recent):
                diverged = diverged or (
                    f'the {name} loss is {recent[-1]:.3g}, {recent[-1] / baseline:.1f} times its median of the '
                    f'{len(before)} iterations before'
                )
        return diverged

    def observe_gain(self, gain: float) -> bool:
        """Take by how much a validation score of the restored images is better than that of the corrupted ones.

        Returns:
            Whether the phase diverged: it is worse now, and was better in an earlier validation.
        """
        self._best_gain = max(self._best_gain, gain)
        return gain < 0 < self._best_gain

    def is_snapshot_due(self, iteration: int) -> bool:
        """Whether to call :meth:`add_snapshot` after an iteration of the phase, counted from 1."""
        return iteration % SNAPSHOT_INTERVAL == 0

    def add_snapshot(self, snapshot: dict[str, Any]) -> None:
        """Keep a snapshot: whatever the model needs to go on from here, tensors and plain data."""
        self._snapshots = [*self._snapshots[-1:], self._with_history(snapshot)]

    @property
    def can_roll_back(self) -> bool:
        return bool(self._snapshots) and self.rollbacks < MAX_ROLLBACKS

    def roll_back(self) -> dict[str, Any]:
        """Count a rollback and return the older of the two snapshots, which lies before the onset of the divergence."""
        self.rollbacks += 1
        del self._snapshots[1:]
        self.forget_losses()
        self._history |= {name: list(values) for name, values in self._snapshots[0]['history'].items()}
        return self._snapshots[0]

    def forget_losses(self) -> None:
        """Compare with losses from now on alone."""
        self._history = {}

    def _with_history(self, snapshot: dict[str, Any]) -> dict[str, Any]:
        return {**snapshot, 'history': {name: list(values) for name, values in self._history.items()}}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain data."""
        return {
            'diverged_at': self.diverged_at,
            'rollbacks': self.rollbacks,
            'best_gain': self._best_gain,
            'history': self._history,
            'snapshots': self._snapshots,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.diverged_at = [tuple(entry) for entry in saved['diverged_at']]
        self.rollbacks = saved['rollbacks']
        self._best_gain = saved['best_gain']
        self._history = saved['history']
        self._snapshots = saved['snapshots']
