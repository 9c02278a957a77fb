"""Errors that the user can mend. The commands print them as one line; everything else is a bug and keeps its trace."""

import difflib
import errno
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class InputError(ValueError):
    """What is wrong, where, and what to do, in one line; several mistakes in as many lines."""


class InstallationError(ImportError):
    """What does not fit together, and what to install, in one line."""


def report_in_one_line() -> None:
    """Have the process end with one line on standard error, or one a mistake, and exit code 1, when it runs into an
    :class:`InputError`, an :class:`InstallationError`, or a file that cannot be read or written. What a command does
    first."""
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, InputError | InstallationError):
        # A data loader's worker wraps the message in its own trace, the message last.
        line = str(error).strip().rpartition(f'{InputError.__module__}.{InputError.__qualname__}: ')[2]
    elif isinstance(error, OSError) and error.errno in DISK_FULL:
        line = f'cannot write {error.filename or "the output"} ({error.strerror}); make room, then run again'
    elif isinstance(error, OSError) and error.filename:
        line = f'{error.filename}: {error.strerror}'
    else:
        sys.__excepthook__(kind, error, trace)
        return
    for mistake in line.splitlines():
        print(f'error: {mistake}', file=sys.stderr)


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    return ' '.join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """The first line of what an error says: compilers and loaders say much after it."""
    return str(error).strip().partition('\n')[0] or type(error).__name__


def nearest(name: Any, known: Iterable[str]) -> str:
    """``'Did you mean X?'`` for a misspelt name, else the known ones."""
    known = {entry.lower(): entry for entry in sorted(known)}
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    return f'Did you mean {known[close[0]]}?' if close else f'Known: {", ".join(known.values())}.'


def check_known(name: Any, known: Iterable[str], what: str) -> None:
    """Raise InputError, naming the nearest known one, unless a name is known."""
    if not isinstance(name, str) or name not in known:
        raise InputError(f'{what} {name!r} is unknown. {nearest(name, known)}')


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Run all checks, then raise one InputError for all that they have found, a line each."""
    mistakes = []
    for check in checks:
        try:
            check()
        except InputError as error:
            mistakes += str(error).splitlines()
    if mistakes:
        raise InputError('\n'.join(dict.fromkeys(mistakes)))


def construct(options: Any, known: Iterable[tuple[str, Callable]], where: str, *arguments: Any) -> Any:
    """Make what a block of options describes: ``{type: NAME, ...}``, the rest being keyword arguments.

    Args:
        options: the block.
        known: pairs of a name and what makes an object of it, such as one of BasicSR's registries.
        where: the block's place in the option file, for messages.
        arguments: positional arguments that come before the block's.

    Raises:
        InputError: not such a block, an unknown type, or arguments that do not suit it.
    """
    if not isinstance(options, Mapping) or 'type' not in options:
        raise InputError(f'{where}: expected a block with a type, such as {{type: NAME}}, got {options!r}')
    known = dict(iter(known))
    keywords = dict(options)
    name = keywords.pop('type')
    check_known(name, known, f'{where}: type')
    _check_keywords(known[name], keywords, where)
    try:
        return known[name](*arguments, **keywords)
    # Whatever it is: the values are the user's, and many of these classes are others' and do not look at them.
    except Exception as error:
        raise InputError(f'{where}, type {name}: {one_line(error)}') from None


def _check_keywords(kind: Callable, keywords: Mapping[str, Any], where: str) -> None:
    """Raise InputError for a keyword argument that ``kind`` does not take."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = [parameter.name for parameter in parameters]
    for key in keywords:
        if key not in taken:
            raise InputError(f'{where}.{key} is unknown. {nearest(key, taken)}')
