"""Results of a benchmark on disk: a folder that an interrupted command can resume, and tables as text, CSV and JSON."""

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
MAX_LISTED_DIFFERENCES = 4


class ResultsStore:
    """A folder with the settings of a benchmark, a record per finished measurement, and the tables.

    Args:
        path: the folder; created if it does not exist.
        settings: settings that all results in the folder share.
        networks: network → its options, which must equal those of earlier results of the same network.

    Attributes:
        settings: the settings; under ``'networks'``, the options of the networks that have results.

    Raises:
        ConfigError: if the folder holds results of other settings; the message lists the differences.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], networks: Mapping[str, Any]) -> None:
        self.path = path
        settings, self._networks = (json.loads(json.dumps(value)) for value in (settings, networks))
        stored = stored_settings(path) or {**settings, 'networks': {}}
        stored_networks = stored.pop('networks')
        common = stored_networks.keys() & self._networks.keys()
        differences = [
            *_differences('', stored, settings),
            *_differences('networks', *({n: side[n] for n in common} for side in (stored_networks, self._networks))),
        ]
        if differences:
            more = len(differences) - MAX_LISTED_DIFFERENCES
            raise ConfigError(
                f'{path} holds results of other settings: {"; ".join(differences[:MAX_LISTED_DIFFERENCES])}'
                f'{f" and {more} more" if more > 0 else ""}; choose another --output, or remove that folder'
            )
        self.settings = {**settings, 'networks': stored_networks}
        path.mkdir(parents=True, exist_ok=True)
        write_json(path / SETTINGS, self.settings)

    def read(self, name: str) -> Any:
        """Return the record ``name``, or None if there is none."""
        return read_json(self.path / name)

    def write(self, name: str, record: Any, network: str | None = None) -> None:
        """Write a record.

        Args:
            name: path below the folder.
            record: plain data.
            network: name of the network that was measured, whose options may not change from now on.
        """
        if network is not None:
            self.settings['networks'][network] = self._networks[network]
            write_json(self.path / SETTINGS, self.settings)
        (self.path / name).parent.mkdir(exist_ok=True)
        write_json(self.path / name, record)


def stored_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings of the results in a folder, or None if it is empty or does not exist.

    Raises:
        ConfigError: if the folder holds something else.
    """
    settings = read_json(path / SETTINGS)
    if settings is None and path.is_dir() and any(path.iterdir()):
        raise ConfigError(f'{path} is not empty and holds no {SETTINGS}; choose another --output')
    return settings


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is no such file.

    Raises:
        ConfigError: if the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f'{path}: damaged ({error}); remove it, then run again') from None


def _differences(where: str, stored: Any, new: Any) -> Iterator[str]:
    if isinstance(stored, dict) and isinstance(new, dict):
        for key in {**stored, **new}:
            yield from _differences(f'{where}.{key}' if where else key, stored.get(key), new.get(key))
    elif stored != new:
        yield f'{where} was {stored}, now {new}'


# --- tables


def write_tables(folder: Path, text: str, rows: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.json``.

    Args:
        folder: an existing folder.
        text: the Markdown.
        rows: rows of the CSV.
        content: content of the JSON file.
    """
    write_text(folder / 'table.md', text)
    write_csv(folder / 'table.csv', rows)
    write_json(folder / 'table.json', content)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the columns of the first as a whole or not at all; None becomes an empty field."""
    with atomic_file(path) as temporary, open(temporary, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is aligned to the left, the others to the right."""
    lines = [columns, ['---'] + ['---:'] * (len(columns) - 1), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def markdown_of_rows(rows: Sequence[Mapping[str, Any]], digits: int) -> str:
    """Return a Markdown table of rows, floats with so many significant digits; None and missing values are dashes."""

    def text(value: Any) -> str:
        return '–' if value is None else f'{value:.{digits}g}' if isinstance(value, float) else str(value)

    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown_table(columns, [[text(row.get(column)) for column in columns] for row in rows])


def command_line() -> str:
    """Return the command that started this process, relative to the repository."""
    return f'python benchmarks/{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}'


def with_deviation(value: float | None, deviation: float | None, digits: int) -> str:
    """Return ``'0.123 ± 0.004'``; only the mean without a deviation, ``''`` without a value."""
    if value is None:
        return ''
    return f'{value:.{digits}f}' + ('' if deviation is None else f' ± {deviation:.{digits}f}')


def duration(seconds: float) -> str:
    """Return a duration for people: ``'41 s'``, ``'12 min'``, ``'3.4 h'``."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
