"""Outputs that are either complete or not there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = '.*.partial*'  # what a killed process may leave of a file


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write to the yielded temporary name; on leaving it is flushed to disk and renamed to ``path``, flushed too.

    When the block raises, the temporary file is removed and what was at ``path`` stays. An OSError of the block names
    ``path``.
    """
    path = Path(path)
    # The suffix stays: writers such as OpenCV choose the format by it.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_entries(path.parent)
    except OSError as error:
        # A write that fails names no file, and what failed to be opened is the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_entries(folder: Path) -> None:
    """Have the names in a folder outlast a loss of power, where the system has a way to."""
    # Windows opens no folders, and some file systems of networks flush none: there a name is written when they like.
    with suppress(OSError):
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def write_json(path: Path | str, content: Any) -> None:
    """Write plain data as a :func:`atomic_file`, indented for people."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Fill the yielded temporary folder; on leaving it takes the place of ``path``.

    When the block raises, the temporary folder is removed and what was at ``path`` stays. What a killed run left
    behind is removed by the next.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.partial')
    previous = path.with_name(f'.{path.name}.previous')
    if previous.exists() and not path.exists():
        previous.rename(path)  # a run was killed between the two renames below
    for leftover in (temporary, previous):
        _remove(leftover)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(previous)
        try:
            temporary.rename(path)
        except OSError:
            if previous.exists():
                previous.rename(path)
            raise
        _remove(previous)
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
