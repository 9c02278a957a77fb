"""The interface between the plug-in and BasicSR's commands.

``lnca train`` and ``lnca test`` call :func:`train_pipeline` and :func:`test_pipeline`. In a BasicSR checkout,
``basicsr/train.py`` and ``basicsr/test.py`` call parse_options, which :func:`install` replaces. Either way, the plug-in
trains and tests its own models, and BasicSR all others, unchanged.

In a checkout, this module is imported while BasicSR itself is being imported. Modules that need all of BasicSR are
therefore imported within functions.
"""

import argparse
import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lnca_arch.integrations import basicsr_compat
from lnca_model.config.yaml_options import read_command_line
from lnca_model.distributed import join_ranks
from lnca_model.training import preemption
from lnca_model.training.profiler import keep_freed_memory
from lnca_utils.errors import install_excepthook

from basicsr.utils import options as basicsr_options


def train_pipeline(root_path: str) -> None:
    """Train the model that the command line names; replaces BasicSR's train_pipeline.

    Args:
        root_path: folder that relative paths are resolved against and that results are written to.
    """
    _dispatch(root_path, is_train=True)


def test_pipeline(root_path: str) -> None:
    """Test the model that the command line names; replaces BasicSR's test_pipeline.

    Args:
        root_path: as for :func:`train_pipeline`.
    """
    _dispatch(root_path, is_train=False)


def install() -> None:
    """Replace BasicSR's parse_options; call it before BasicSR's train.py or test.py imports that function."""
    original = basicsr_options.parse_options
    if not hasattr(original, '__wrapped__'):
        basicsr_options.parse_options = _hooked(original)


def _dispatch(root_path: str, is_train: bool) -> None:
    args = read_command_line()
    if _names_ours(args):
        _run(args, Path(root_path), is_train)
    else:
        name = 'train' if is_train else 'test'
        getattr(importlib.import_module(f'basicsr.{name}'), f'{name}_pipeline')(root_path)


def _hooked(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse_options(root_path: str, is_train: bool = True) -> Any:
        """Run a model of the plug-in and end the process; for other models, call BasicSR's parse_options."""
        args = read_command_line()
        if not _names_ours(args):
            return original(root_path, is_train)
        _run(args, Path(root_path), is_train)
        raise SystemExit

    return parse_options


def _run(args: argparse.Namespace, root: Path, is_train: bool) -> None:
    """Train or test a model of the plug-in."""
    from lnca_model.config.checks import load_options
    from lnca_model.evaluation.tester import test
    from lnca_model.training.trainer import train

    install_excepthook()
    opt = load_options(args, root, is_train)
    join_ranks(opt, args.launcher)
    if opt['num_gpu'] == 0:
        keep_freed_memory()
    if not is_train:
        test(opt)
        return
    preemption.install_handlers(ignore_repeats=opt['dist'])
    if (opt['logger'].get('wandb') or {}).get('project'):
        basicsr_compat.provide_wandb_ids()
    train(opt, args.opt)


def _names_ours(args: argparse.Namespace) -> bool:
    """Return whether the plug-in handles the model that the option file names.

    It also handles unreadable files and unknown models, to report them. The YAML is composed, not constructed, since
    option files of BasicSR's models may hold tags that create objects.
    """
    from lnca_model.config.checks import is_ours

    from basicsr.utils.registry import MODEL_REGISTRY

    try:
        with open(args.opt, 'rb') as file:
            document = yaml.compose(file, Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return True
    entries = document.value if isinstance(document, yaml.MappingNode) else []
    named = [value.value for key, value in entries if key.value == 'model_type']
    forced = [entry.partition('=')[2] for entry in args.force_yml or () if entry.partition('=')[0] == 'model_type']
    model_type = [None, *named, *forced][-1]
    return model_type not in MODEL_REGISTRY or is_ours(model_type)
