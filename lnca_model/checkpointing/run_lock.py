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

# Lock files, open until the process ends; closing them would release the lock.
_held: list[IO[str]] = []


def lock(experiment: Path | str) -> None:
    """Lock an experiment until this process ends.

    Does nothing on Windows and on file systems without locks. The lock file is next to the folder, not in it, since
    BasicSR renames the folder when a new run has the same name.

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
        # Not flock: data loader workers would inherit its lock, and hold it for a while after the run is killed.
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
