"""What the subcommands train and test share: BasicSR's command line and pipelines."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def run(kind: Literal['train', 'test'], arguments: Sequence[str] | None, prog: str | None, root: Path | None) -> None:
    """Train or test as a command line says.

    Args:
        kind: which of the two.
        arguments: BasicSR's command line. Default: that of the process.
        prog: name of the command in messages.
        root: folder below which experiments and datasets are. Default: the current folder.
    """
    if arguments is not None:
        sys.argv = [prog or kind, *arguments]  # BasicSR's own pipeline reads it, for other models

    import lnca_model  # noqa: F401  registers the plug-in

    hook = importlib.import_module('lnca_model.integrations.basicsr_hook')
    getattr(hook, f'{kind}_pipeline')(str(root or Path.cwd()))
