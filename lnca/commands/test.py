"""Score a trained network and save its images."""

import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None, prog: str | None = None, root: Path | None = None) -> None:
    """Run the command.

    Args:
        arguments: BasicSR's command line. Default: that of the process.
        prog: name of the command in messages.
        root: folder below which experiments and datasets are. Default: the current folder.
    """
    if arguments is not None:
        sys.argv = [prog or 'test', *arguments]  # BasicSR's own pipeline reads it, for other models

    import lnca_model  # noqa: F401  registers the plug-in
    from lnca_model.integrations.basicsr_hook import test_pipeline

    test_pipeline(str(root or Path.cwd()))
