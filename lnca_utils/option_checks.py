"""Checks of options, and construction of objects from blocks of options."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lnca_utils.errors import ConfigError, LNCAError, one_line


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """Return ``'Did you mean X?'`` for a misspelt name, ``'Known: …'`` if no known name is similar."""
    by_lower_case = {entry.lower(): entry for entry in sorted(known)}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1)
    return f'Did you mean {by_lower_case[close[0]]}?' if close else f'Known: {", ".join(by_lower_case.values())}.'


def check_known(name: Any, known: Iterable[str], where: str) -> None:
    """Raise ConfigError unless a name is known.

    Args:
        name: the name.
        known: the known names.
        where: what the name is, and its place in the option file, for messages.
    """
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f'{where} {name!r} is unknown. {did_you_mean(name, known)}')


def check_all(checks: Iterable[Callable[[], object]]) -> None:
    """Run all checks, then raise one LNCAError with a line for each mistake.

    Args:
        checks: functions that raise LNCAError.
    """
    errors = []
    for check in checks:
        try:
            check()
        except LNCAError as error:
            errors.append(error)
    if errors:
        lines = [line for error in errors for line in str(error).splitlines()]
        kinds = {type(error) for error in errors}
        raise (kinds.pop() if len(kinds) == 1 else ConfigError)('\n'.join(dict.fromkeys(lines)))


def construct(options: Any, known: Iterable[tuple[str, Callable]], where: str, *arguments: Any) -> Any:
    """Create the object that a block of options describes.

    Args:
        options: the block, ``{type: NAME, ...}``; its other entries are keyword arguments.
        known: pairs of a name and a class or function, such as one of BasicSR's registries.
        where: the block's place in the option file, for messages.
        arguments: positional arguments.

    Raises:
        ConfigError: if the block has no type, or the type or an argument is unknown or invalid.
    """
    if not isinstance(options, Mapping) or 'type' not in options:
        raise ConfigError(f'{where}: expected a block with a type, such as {{type: NAME}}, got {options!r}')
    kinds = dict(iter(known))
    keywords = dict(options)
    name = keywords.pop('type')
    check_known(name, kinds, f'{where}: type')
    _check_keywords(kinds[name], keywords, where)
    try:
        return kinds[name](*arguments, **keywords)
    except Exception as error:  # for invalid values, classes of other packages can raise anything
        raise ConfigError(f'{where}, type {name}: {one_line(error)}') from None


def _check_keywords(kind: Callable, keywords: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for a keyword argument that ``kind`` does not take."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    names = [parameter.name for parameter in parameters]
    for key in keywords:
        if key not in names:
            raise ConfigError(f'{where}.{key} is unknown. {did_you_mean(key, names)}')
