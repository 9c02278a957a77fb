"""Finding the checkpoint that a run resumes from."""

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

TICK = 10**6  # nanoseconds, which file systems tell apart


@dataclass
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        path: of the training state.
        network: path of the network of the same iteration.
        state: what the training state holds, on the CPU.
        damaged: a line for each newer checkpoint that could not be read.
    """

    path: Path
    network: Path
    state: dict[str, Any]
    damaged: list[str] = field(default_factory=list)


def find_resume_point(opt: Mapping[str, Any]) -> ResumePoint | None:
    """Take the lock of the experiment and find the checkpoint to resume from.

    Under ``--auto_resume`` it is the latest of the experiment that can be read, else ``path.resume_state``. BasicSR's
    load_resume_state looks in the current directory, needs a GPU and runs what the file holds.

    Raises:
        CheckpointError: if no checkpoint can be read, or another run is writing there.
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
        touch_as_latest(path)  # also where this run ends before it saves
    state = checkpoint.load(path)
    if state['iter'] > opt['train']['total_iter']:
        raise CheckpointError(
            f'{path}: is of iteration {state["iter"]:,}, beyond train.total_iter of {opt["train"]["total_iter"]:,}; '
            'set that higher, or give the run another name'
        )
    return ResumePoint(path, _network_of(state, Path(paths['models'])), state, damaged)


def list_checkpoints(folder: Path | str) -> list[Path]:
    """The training states in a folder, ``ITERATION.state``, the latest last; files of other names are left alone.

    They are in the order in which they were written: a run that went back to an earlier one overtakes what it had left
    behind.
    """
    states = [path for path in Path(folder).glob('*.state') if re.fullmatch('[0-9]+', path.stem)]
    return sorted(states, key=lambda path: (path.stat().st_mtime_ns, int(path.stem)))


def touch_as_latest(state: Path) -> None:
    """Make a training state the last of :func:`list_checkpoints`, also where clocks go back or differ."""
    others = [other.stat().st_mtime_ns + TICK for other in list_checkpoints(state.parent) if other != state]
    moment = max([time.time_ns(), *others])
    os.utime(state, ns=(moment, moment))


def _remove_partial_files(paths: Mapping[str, str]) -> None:
    """Remove the files that a run was writing when it was killed."""
    for folder in ('models', 'training_states'):
        for file in Path(paths[folder]).glob(PARTIAL):
            file.unlink(missing_ok=True)


def _first_readable(states: Iterable[Path], models: Path) -> tuple[Path | None, list[str]]:
    """The first training state that can be read, with its network; and why those before it cannot."""
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
