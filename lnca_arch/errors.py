"""Errors that the user can mend. The commands print them as one line; everything else is a bug and keeps its trace."""

import difflib
import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

EXIT_CODE = 2
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """What is wrong, where, and what to do, in one line."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``' Did you mean X?'`` for a misspelt name, else the known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f'Did you mean {close[0]}?' if close else f'Known: {", ".join(known)}.'


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn an :class:`InputError` or a full disk into one line on standard error and exit code 2."""
    try:
        yield
    except InputError as error:
        # A data loader's worker wraps the message in its own trace, the message last.
        line = str(error).strip().splitlines()[-1]
        line = line.removeprefix(f'{InputError.__module__}.{InputError.__qualname__}: ')
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        line = f'cannot write {error.filename or "the output"} ({error.strerror}); make room, then run again'
    else:
        return
    print(f'error: {line}', file=sys.stderr)
    sys.exit(EXIT_CODE)
