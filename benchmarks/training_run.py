"""Run ``basicsr/train.py`` in a process of its own and read its output."""

import csv
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'results'
EXPERIMENTS = ROOT / 'experiments'
SIDES = ('restored', 'corrupted', 'gain')  # columns of scores.csv

_ITERATION = re.compile(r'epoch:.*, iter:\s*([\d,]+),')

Process = subprocess.Popen[str]


def run_training(
    options: Path,
    log: Path,
    on_line: Callable[[Process, str], None],
    resume: bool = True,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """Train to the end.

    Args:
        options: the option file.
        log: file to which the output is appended.
        on_line: called with the process and each line of its output.
        resume: whether to resume from the last checkpoint, if there is one.
        environment: additional environment variables.

    Returns:
        The exit code and the last line of the output.
    """
    command = [sys.executable, str(ROOT / 'basicsr' / 'train.py'), '-opt', str(options)]
    line = ''
    with (
        open(log, 'a', encoding='utf-8') as file,
        subprocess.Popen(
            [*command, '--auto_resume'] if resume else command,
            env=os.environ | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            on_line(process, line)
    return process.returncode, line


def logged_iteration(line: str) -> int | None:
    """Return the iteration that a line of the log reports, or None if it reports none."""
    match = _ITERATION.search(line)
    return match and int(match[1].replace(',', ''))


def read_scores(experiment: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Return the last scores of an experiment: (dataset, metric) → score per side (:data:`SIDES`)."""
    with open(experiment / 'scores.csv', newline='', encoding='utf-8') as file:
        return {
            (row['dataset'], row['metric']): {side: float(row[side]) for side in SIDES} for row in csv.DictReader(file)
        }


def folder_hash(folder: Path) -> str:
    """Return six hexadecimal digits that distinguish folders of the same name at different places."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
