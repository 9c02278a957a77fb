"""A folder of results that grows: what is finished is not done again, results of other settings are not mixed in."""

import csv
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lnca_utils.atomic import atomic_file, write_json
from lnca_utils.errors import ConfigError

SETTINGS = 'settings.json'
MANY = 4  # differences that a message names


class ResultsFolder:
    """Where a command keeps its settings, what it has finished so far, and its tables.

    Args:
        path: the folder; made if need be.
        settings: what all results in it share.
        networks: network → its options, which must agree with those of earlier results of the same network.

    Raises:
        ConfigError: it holds results of other settings; the message names what differs.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
        self.path = path
        settings, self._networks = (json.loads(json.dumps(value)) for value in (settings, networks))
        known = stored_settings(path) or {**settings, 'networks': {}}
        of_known = known.pop('networks')
        both = of_known.keys() & self._networks.keys()
        differences = [
            *_differences('', known, settings),
            *_differences('networks', *({name: side[name] for name in both} for side in (of_known, self._networks))),
        ]
        if differences:
            more = f' and {len(differences) - MANY} more' if len(differences) > MANY else ''
            raise ConfigError(
                f'{path} holds results of other settings: {"; ".join(differences[:MANY])}{more}; choose another '
                '--output, or remove that folder'
            )
        #: The settings; under ``'networks'``, those of which there are results.
        self.settings = {**settings, 'networks': of_known}
        self.write_json(SETTINGS, self.settings)

    def has_results_of(self, network: str) -> None:
        """From now on, the options of a network may not change."""
        self.settings['networks'][network] = self._networks[network]
        self.write_json(SETTINGS, self.settings)

    def read_json(self, name: str) -> Any:
        """What :meth:`write_json` wrote, or None."""
        return read_json(self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        write_json(self._place(name), content)

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        with atomic_file(self._place(name)) as temporary:
            temporary.write_text(text, encoding='utf-8')

    def _place(self, name: str) -> Path:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write_csv(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        write_csv(self._place(name), rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same columns, whole or not at all; None is left empty."""
    with atomic_file(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def stored_settings(path: Path) -> dict[str, Any] | None:
    """The settings of the results in a folder, or None if there are none.

    Raises:
        ConfigError: the folder holds something else.
    """
    settings = read_json(path / SETTINGS)
    if settings is None and path.is_dir() and any(path.iterdir()):
        raise ConfigError(f'{path} is not empty and holds no {SETTINGS}; choose another --output')
    return settings


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, the first column to the left and the others to the right."""
    lines = [columns, ['---'] + ['---:'] * (len(columns) - 1), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def command_line() -> str:
    """What was typed to start this command."""
    return f'python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}'


def with_deviation(value: float | None, deviation: float | None, digits: int) -> str:
    """``'0.123 ± 0.004'``, or as much of it as there is."""
    if value is None:
        return ''
    return f'{value:.{digits}f}' + ('' if deviation is None else f' ± {deviation:.{digits}f}')


def duration(seconds: float) -> str:
    """Seconds for people: ``'41 s'``, ``'12 min'``, ``'3.4 h'``."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'


def read_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds, or None if there is no such file.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f'{path} is damaged ({error}); remove it, then run again') from None


def _differences(where: str, known: Any, new: Any) -> Iterator[str]:
    if isinstance(known, dict) and isinstance(new, dict):
        for key in {**known, **new}:
            yield from _differences(f'{where}.{key}' if where else key, known.get(key), new.get(key))
    elif known != new:
        yield f'{where} was {known}, now {new}'
