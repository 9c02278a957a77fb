"""A lock that keeps a second run from an experiment."""

import os
import socket
from pathlib import Path
from typing import IO

from lnca_utils.errors import CheckpointError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

# Open as long as the process lives: the lock ends with it, however it ends.
_held: list[IO[str]] = []


def lock(experiment: Path | str) -> None:
    """Keep other runs from an experiment until this process ends. On file systems that know no locks, and on Windows,
    nothing is kept from anything.

    The file is beside the folder, which BasicSR renames when a run of its name begins anew.

    Raises:
        CheckpointError: another run is writing there.
    """
    experiment = Path(experiment)
    if fcntl is None:
        return
    experiment.parent.mkdir(parents=True, exist_ok=True)
    file = open(experiment.with_name(f'.{experiment.name}.lock'), 'a+')  # noqa: SIM115
    try:
        # Not flock, which workers of a data loader would inherit, and hold for a while after the run was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        who = file.read().strip() or 'another run'
        file.close()
        raise CheckpointError(
            f'{experiment}: {who} is writing there; wait for its end, or give this run another name'
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} of {socket.gethostname()}\n')
    file.flush()
    _held.append(file)
