"""A lock that keeps a second run from writing to an experiment."""

import os
import socket
from pathlib import Path
from typing import IO

from lnca_utils.errors import CheckpointError

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Open until the process ends, which releases the lock.
_held: list[IO[str]] = []


def lock(experiment: Path | str) -> None:
    """Lock an experiment until this process ends.

    On Windows, and on file systems without locks, nothing is locked. The lock file is next to the folder, since BasicSR
    renames the folder when a new run has its name.

    Args:
        experiment: the folder of the experiment, which need not exist.

    Raises:
        CheckpointError: if another run holds the lock.
    """
    experiment = Path(experiment)
    if fcntl is None:
        return
    experiment.parent.mkdir(parents=True, exist_ok=True)
    file = open(experiment.with_name(f'.{experiment.name}.lock'), 'a+')  # noqa: SIM115
    try:
        # Data loader workers would inherit a lock of flock, and hold it for a while after the run was killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        who = file.read().strip() or 'another run'
        file.close()
        raise CheckpointError(
            f'{experiment}: {who} is writing there; wait until it ends, or give this run another name'
        ) from None
    except OSError:  # a file system without locks
        file.close()
        return
    file.truncate(0)
    file.write(f'process {os.getpid()} of {socket.gethostname()}\n')
    file.flush()
    _held.append(file)
