"""The phases of a training; each has its own block of options, optimizer and learning-rate schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnca_utils.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """A phase of a training: a range of iterations.

    Attributes:
        name: name of the phase.
        options: its block of the option file.
        where: the block's place there, for messages.
        first, last: its first and last iteration, counted from 1 over the whole run; a phase without iterations has
            ``last = first - 1``.
    """

    name: str
    options: Mapping[str, Any]
    where: str
    first: int
    last: int

    @property
    def iters(self) -> int:
        """Number of iterations of the phase."""
        return self.last - self.first + 1

    def progress(self, iteration: int) -> float:
        """Return the fraction, in [0, 1), of the phase's iterations before ``iteration``."""
        return (iteration - self.first) / self.iters


def phases_of(train_options: Mapping[str, Any], names: Sequence[str]) -> list[Phase]:
    """Return the phases of a run in order.

    Args:
        train_options: the block ``train:`` of an option file.
        names: names of the blocks in it that are phases; missing blocks are skipped. Empty if ``train:`` itself is the
            only phase.

    Raises:
        ConfigError: if the ``iters`` of the phases do not add up to ``total_iter``.
    """
    total = int(train_options['total_iter'])
    if not names:
        return [Phase('training', train_options, 'train', 1, total)]
    phases: list[Phase] = []
    for name in (name for name in names if train_options.get(name)):
        first = phases[-1].last + 1 if phases else 1
        iters = int(train_options[name]['iters'])
        phases.append(Phase(name, train_options[name], f'train.{name}', first, first + iters - 1))
    last = phases[-1].last if phases else 0
    if last != total:
        sum_of = ' + '.join(f'{phase.where}.iters' for phase in phases) or f'the sum of {", ".join(names)}'
        raise ConfigError(f'train.total_iter: is {total}, but {sum_of} is {last}; make them equal')
    return phases


def phase_at(phases: Sequence[Phase], iteration: int) -> Phase:
    """Return the phase that an iteration belongs to."""
    return next(phase for phase in phases if phase.first <= iteration <= phase.last)
