"""Atomic writing of files and folders."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = '.*.partial*'  # pattern of temporary files, which a killed process leaves behind


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Write a file atomically.

    The context manager yields a temporary path to write to. On exit, the file is flushed to disk and renamed to
    ``path``. If the block raises, the temporary file is removed and ``path`` stays unchanged. An OSError raised in the
    block names ``path``, not the temporary file.
    """
    path = Path(path)
    # Keep the suffix: OpenCV and others choose the format by it.
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.partial{path.suffix}')
    try:
        yield temporary
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_entries(path.parent)
    except OSError as error:
        # A failed write names no file, and a failed open names the temporary file.
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush_entries(folder: Path) -> None:
    """Flush the entries of a folder to disk, if the system supports it."""
    # Windows and some network file systems do not.
    with suppress(OSError):
        entries = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(entries)
        finally:
            os.close(entries)


def write_json(path: Path | str, content: Any) -> None:
    """Write plain data to an indented JSON file, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


@contextmanager
def atomic_dir(path: Path | str) -> Iterator[Path]:
    """Write a folder atomically.

    The context manager yields a temporary folder to write to. On exit, that folder replaces ``path``. If the block
    raises, the temporary folder is removed and ``path`` stays unchanged. The next call removes what a killed process
    left behind.
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
