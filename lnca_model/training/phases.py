"""Training in phases, each with its own block of options, optimiser and schedule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnca_utils.errors import ConfigError


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        name: what the log calls it.
        options: its block of the option file.
        where: the block's place there, for messages.
        first, last: its iterations, counted over the whole run from 1; none where ``last < first``.
    """

    name: str
    options: Mapping[str, Any]
    where: str
    first: int
    last: int

    @property
    def iters(self) -> int:
        return self.last - self.first + 1

    def progress(self, iteration: int) -> float:
        """The share of the phase that was over when ``iteration`` began: 0 at its first."""
        return (iteration - self.first) / self.iters


def phases_of(train_options: Mapping[str, Any], names: Sequence[str]) -> list[Phase]:
    """The phases of a run in their order.

    Args:
        train_options: the block ``train:`` of an option file.
        names: the blocks in it that are phases, each with its ``iters``; none where ``train:`` is one phase itself. A
            block that is not there is no phase.

    Raises:
        ConfigError: the numbers of iterations do not add up to ``total_iter``.
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
        raise ConfigError(f'train.total_iter is {total}, but {sum_of} is {last}; make them equal')
    return phases


def phase_at(phases: Sequence[Phase], iteration: int) -> Phase:
    """The phase that an iteration belongs to."""
    return next(phase for phase in phases if phase.first <= iteration <= phase.last)
