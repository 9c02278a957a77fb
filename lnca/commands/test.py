"""Score a trained network and save its images."""

from collections.abc import Sequence
from pathlib import Path

from lnca.commands.pipelines import run


def main(arguments: Sequence[str] | None = None, prog: str | None = None, root: Path | None = None) -> None:
    """Run the command, see :func:`~lnca.commands.pipelines.run`."""
    run('test', arguments, prog, root)
