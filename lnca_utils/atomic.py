"""Atomic writing of files and folders."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = '.*.partial*'  # pattern of the files that a killed process may leave


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically.

    The block writes to the temporary path that is yielded. At its end the file is flushed to disk and renamed to
    ``path``. If the block raises, the temporary file is removed and ``path`` stays as it was. An OSError of the block
    names ``path``.
    """
    path = Path(path)
    # Keep the suffix, by which writers such as OpenCV choose the format.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_entries(path.parent)
    except OSError as error:
        # Failed writes name no file, and a file that cannot be opened is the temporary one.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_entries(folder: Path) -> None:
    """Flush the entries of a folder to disk, where the system can."""
    # Windows and some network file systems cannot.
    with suppress(OSError):
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def write_json(path: Path | str, content: Any) -> None:
    """Write plain data as a :func:`atomic_file`, indented."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Write a folder atomically.

    The block fills the temporary folder that is yielded. At its end the folder replaces ``path``. If the block raises,
    the temporary folder is removed and ``path`` stays as it was. Leftovers of a killed run are removed by the next.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.partial')
    previous = path.with_name(f'.{path.name}.previous')
    if previous.exists() and not path.exists():
        previous.rename(path)  # an earlier run was killed between the two renames below
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
