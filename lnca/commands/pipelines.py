"""The code that the subcommands train and test share."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal


def run(kind: Literal['train', 'test'], arguments: Sequence[str] | None, prog: str | None, root: Path | None) -> None:
    """Run a training or a test with BasicSR's command line.

    Args:
        kind: ``'train'`` or ``'test'``.
        arguments: BasicSR's command line. Default: that of the process.
        prog: name of the command in messages.
        root: folder that contains ``experiments/`` and ``datasets/``. Default: the current folder.
    """
    if arguments is not None:
        sys.argv = [prog or kind, *arguments]  # read by the plug-in and by BasicSR's pipelines

    import lnca_model  # noqa: F401  registers the plug-in

    hook = importlib.import_module('lnca_model.integrations.basicsr_hook')
    getattr(hook, f'{kind}_pipeline')(str(root or Path.cwd()))
