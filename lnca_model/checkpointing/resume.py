"""Search for the checkpoint that a run resumes from."""

import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lnca_model import distributed
from lnca_model.checkpointing.run_lock import lock
from lnca_utils import checkpoint
from lnca_utils.atomic import PARTIAL
from lnca_utils.errors import CheckpointError, LNCAError

TICK = 10**6  # nanoseconds; some file systems do not store shorter differences


@dataclass
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        path: path of the training state.
        network: path of the network of the same iteration.
        state: the training state, on the CPU.
        damaged: an error message for each later checkpoint that cannot be read.
    """

    path: Path
    network: Path
    state: dict[str, Any]
    damaged: list[str] = field(default_factory=list)


def find_resume_point(opt: Mapping[str, Any]) -> ResumePoint | None:
    """Lock the experiment, and find the checkpoint to resume from.

    With ``--auto_resume``, and if the experiment has checkpoints, it is the latest readable one; otherwise it is
    ``path.resume_state``. Replaces BasicSR's load_resume_state, which searches the current directory, needs a GPU and
    loads arbitrary pickles.

    Args:
        opt: the options.

    Returns:
        The checkpoint, None for a new run.

    Raises:
        CheckpointError: if none of the checkpoints can be read, the checkpoint is of an iteration after
            ``train.total_iter``, or another run is writing to the experiment.
    """
    paths = opt['path']
    distributed.broadcast_from_rank0(lambda: lock(paths['experiments_root']))
    if distributed.rank() == 0:
        _remove_partial_files(paths)
    found = list_checkpoints(paths['training_states'])[::-1]
    named = paths.get('resume_state')
    candidates = found if opt['auto_resume'] and found else [Path(named)] if named else []
    path, damaged = distributed.broadcast_from_rank0(lambda: _first_readable(candidates, Path(paths['models'])))
    if path is None:
        return None
    if distributed.rank() == 0 and path.resolve().parent == Path(paths['training_states']).resolve():
        touch_as_latest(path)  # so that it stays the latest if this run ends before it saves
    state = checkpoint.load(path)
    if state['iter'] > opt['train']['total_iter']:
        raise CheckpointError(
            f'{path}: is of iteration {state["iter"]:,}, train.total_iter is {opt["train"]["total_iter"]:,}; raise it, '
            'or give the run another name'
        )
    return ResumePoint(path, _network_of(state, Path(paths['models'])), state, damaged)


def list_checkpoints(folder: Path | str) -> list[Path]:
    """Return the training states in a folder, ``ITERATION.state``, in the order in which they were written.

    The latest one need not have the highest iteration, since a run may resume from an earlier checkpoint.
    """
    states = [path for path in Path(folder).glob('*.state') if re.fullmatch('[0-9]+', path.stem)]
    return sorted(states, key=lambda path: (path.stat().st_mtime_ns, int(path.stem)))


def touch_as_latest(state: Path) -> None:
    """Make a training state the last one in :func:`list_checkpoints`, even if clocks differ or are set back."""
    others = [other.stat().st_mtime_ns + TICK for other in list_checkpoints(state.parent) if other != state]
    moment = max([time.time_ns(), *others])
    os.utime(state, ns=(moment, moment))


def _remove_partial_files(paths: Mapping[str, str]) -> None:
    """Remove the incomplete files of a killed run."""
    for folder in ('models', 'training_states'):
        for file in Path(paths[folder]).glob(PARTIAL):
            file.unlink(missing_ok=True)


def _first_readable(states: Iterable[Path], models: Path) -> tuple[Path | None, list[str]]:
    """Find the first training state that can be read together with its network.

    Returns:
        Its path, or None if there are no states, and an error message for each state before it.

    Raises:
        CheckpointError: if none of the states can be read.
    """
    damaged: list[str] = []
    for path in states:
        try:
            state = checkpoint.load(path)
            if not {'iter', 'epoch', 'optimizers', 'schedulers'} <= state.keys():
                raise CheckpointError(f'{path}: not a training state; a network is named under path.pretrain_network_g')
            checkpoint.load(_network_of(state, models))
        except LNCAError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    if damaged:
        raise CheckpointError(f'no checkpoint can be resumed from: {"; ".join(damaged)}')
    return None, []


def _network_of(state: Mapping[str, Any], models: Path) -> Path:
    return models / f'net_g_{state["iter"]}.pth'
