"""The seam between the plug-in and BasicSR's commands.

``basicsr/train.py`` and ``basicsr/test.py`` call :func:`train_pipeline` and :func:`test_pipeline`. The commands of a
BasicSR checkout call BasicSR's parse_options, which :func:`install` replaces there. Either way the plug-in trains and
tests its own models, and BasicSR all others, untouched.

A checkout imports this module while it is being imported itself, so what needs all of BasicSR is imported later.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lnca_arch import basicsr_compat
from lnca_arch.errors import report_in_one_line
from lnca_model.config.yaml_options import read_command_line
from lnca_model.distributed import join_ranks
from lnca_model.training import preemption
from lnca_model.training.profiler import keep_freed_memory

from basicsr.utils import options as basicsr_options


def train_pipeline(root_path: str) -> None:
    """Train as the command line says; replaces BasicSR's train_pipeline."""
    args = read_command_line()
    if _trains_ours(args):
        _train(args, Path(root_path))
    else:
        from basicsr.train import train_pipeline as basicsr_train_pipeline

        basicsr_train_pipeline(root_path)


def test_pipeline(root_path: str) -> None:
    """Test as the command line says; replaces BasicSR's test_pipeline."""
    args = read_command_line()
    if _trains_ours(args):
        _test(args, Path(root_path))
    else:
        from basicsr.test import test_pipeline as basicsr_test_pipeline

        basicsr_test_pipeline(root_path)


def install() -> None:
    """Replace parse_options in a BasicSR checkout, whose commands import it after this."""
    original = basicsr_options.parse_options
    if not hasattr(original, '__wrapped__'):
        basicsr_options.parse_options = _hooked(original)


def _hooked(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def parse_options(root_path: str, is_train: bool = True) -> Any:
        """For a model of the plug-in run it and end the process, else return what BasicSR's parse_options returns."""
        args = read_command_line()
        if not _trains_ours(args):
            return original(root_path, is_train)
        (_train if is_train else _test)(args, Path(root_path))
        raise SystemExit

    return parse_options


def _train(args: argparse.Namespace, root: Path) -> None:
    from lnca_model.config.checks import load_options
    from lnca_model.training.trainer import train

    report_in_one_line()
    opt = load_options(args, root, is_train=True)
    join_ranks(opt, args.launcher)
    if opt['num_gpu'] == 0:
        keep_freed_memory()
    preemption.install_handlers(ignore_repeats=opt['dist'])
    if (opt['logger'].get('wandb') or {}).get('project'):
        basicsr_compat.provide_wandb_ids()
    train(opt, args.opt)


def _test(args: argparse.Namespace, root: Path) -> None:
    from lnca_model.config.checks import load_options
    from lnca_model.evaluation.tester import test

    report_in_one_line()
    opt = load_options(args, root, is_train=False)
    join_ranks(opt, args.launcher)
    if opt['num_gpu'] == 0:
        keep_freed_memory()
    test(opt)


def _trains_ours(args: argparse.Namespace) -> bool:
    """Whether the option file names a model of the plug-in, or none: then it is the plug-in that says so.

    The file is read no further than its nodes, since BasicSR's other models may have tags in it that build objects.
    """
    from lnca_model.config.checks import is_ours

    try:
        with open(args.opt, 'rb') as file:
            document = yaml.compose(file, Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return True
    entries = document.value if isinstance(document, yaml.MappingNode) else []
    named = [value.value for key, value in entries if key.value == 'model_type']
    forced = [entry.partition('=')[2] for entry in args.force_yml or () if entry.partition('=')[0] == 'model_type']
    model_type = [None, *named, *forced][-1]
    return model_type is None or is_ours(model_type)
