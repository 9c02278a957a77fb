"""What the plug-in changes in BasicSR's train.py and test.py: options are read safely and checked before anything is
created, a run resumes on any device and from any directory, and it lasts as long as its options say."""

import argparse
import dataclasses
import functools
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lnca_arch import basicsr_compat
from lnca_arch.errors import InputError, check_known, report_in_one_line
from lnca_data.lmdb_store import check_pair
from lnca_model import interruption
from lnca_model.course import Course, ResumableSampler
from lnca_model.phases import phase_at, phases_of
from lnca_model.resources import keep_freed_memory
from lnca_model.restoration_model import RestorationModel
from lnca_restore import checkpoint

from basicsr.utils import MessageLogger, check_resume
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY

VALUES = ('name', 'model_type', 'num_gpu')
BLOCKS = ('network_g', 'datasets', 'path')
TRAINING_BLOCKS = ('train', 'logger')
TEST_BLOCKS = ('val',)

Options = dict[str, Any]

_basicsr_parse_options = basicsr_options.parse_options


def install() -> None:
    """Put the functions below in the place of BasicSR's, also for modules that are imported later."""
    basicsr_compat.read_yaml_safely()
    basicsr_options.parse_options = parse_options
    basicsr_compat.replace_in_pipeline('parse_options', parse_options)


def parse_options(root_path: str, is_train: bool = True) -> tuple[Options, argparse.Namespace]:
    """BasicSR's parse_options, which train.py and test.py call first, with mistakes reported in one line.

    Raises:
        InputError: the file is missing or not YAML, or what it says would fail later.
    """
    report_in_one_line()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('-opt')
    path = parser.parse_known_args()[0].opt
    if path is not None:
        check_blocks(read_options(path), path, is_train)
    opt, args = _basicsr_parse_options(root_path, is_train)
    find_paths(opt, Path(root_path))
    check_options(opt)
    if opt['num_gpu'] == 0:
        keep_freed_memory()
    if is_train:
        interruption.listen()
        if (opt['logger'].get('wandb') or {}).get('project'):
            basicsr_compat.provide_wandb_ids()
    # These are defined in the file that is run, so they can be replaced only once it runs.
    basicsr_compat.replace_in_pipeline('load_resume_state', load_resume_state)
    basicsr_compat.replace_in_pipeline('MessageLogger', PhaseLogger)
    basicsr_compat.replace_in_pipeline('EnlargedSampler', ResumableSampler)
    import basicsr.train

    basicsr_compat.replace_in_pipeline(
        'create_train_val_dataloader', for_the_whole_run(basicsr.train.create_train_val_dataloader)
    )
    return opt, args


def read_options(path: str | Path) -> Options:
    """Read an option file as plain data.

    Raises:
        InputError: it is missing, not YAML, or carries anything but plain data.
    """
    try:
        with open(path, encoding='utf-8') as file:
            opt = yaml.load(file, Loader=basicsr_compat.SafeLoader)
    except OSError as error:
        raise InputError(f'{path}: cannot read the option file ({error.strerror})') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path}: not a plain YAML file: {" ".join(str(error).split())}') from None
    if not isinstance(opt, dict):
        raise InputError(f'{path}: not an option file: expected NAME: VALUE lines, got {type(opt).__name__}')
    return opt


def check_blocks(opt: Options, path: str | Path, is_train: bool) -> None:
    """Raise InputError unless everything is there that BasicSR reads without asking."""
    blocks = BLOCKS + (TRAINING_BLOCKS if is_train else TEST_BLOCKS)
    missing = [name for name in VALUES + blocks if name not in opt]
    if missing:
        raise InputError(f'{path}: {", ".join(missing)} missing; see options/lnca_photos.yml for a complete file')
    for name in blocks:
        if not isinstance(opt[name], dict):
            raise InputError(f'{path}: {name} must be a block of options, got {opt[name]!r}')
    for name, dataset in opt['datasets'].items():
        if not isinstance(dataset, dict):
            raise InputError(f'{path}: datasets.{name} must be a block of options, got {dataset!r}')
    if is_train and 'train' not in opt['datasets']:
        raise InputError(f'{path}: datasets.train is missing')


def find_paths(opt: Options, root: Path) -> None:
    """Look for relative paths in the current directory, then under ``root``, so that a command works from anywhere."""
    for block in [opt['path'], *opt['datasets'].values()]:
        for key, value in block.items():
            is_input = key.startswith(('dataroot', 'pretrain_network', 'resume_state'))
            if is_input and isinstance(value, str) and not Path(value).exists() and (root / value).exists():
                block[key] = str(root / value)


def check_options(opt: Options) -> None:
    """Raise InputError for what would fail later, when folders have been made and time has been spent.

    Models and datasets that are not the plug-in's are left to BasicSR.
    """
    check_known(opt['model_type'], MODEL_REGISTRY.keys(), 'model_type:')
    for name, dataset in opt['datasets'].items():
        check_known(dataset.get('type'), DATASET_REGISTRY.keys(), f'datasets.{name}: type')
        _check_dataset(dataset)
    model = MODEL_REGISTRY.get(opt['model_type'])
    if issubclass(model, RestorationModel):
        model.check_options(opt)


def _check_dataset(options: Options) -> None:
    check = getattr(DATASET_REGISTRY.get(options['type']), 'check_options', None)
    if check is not None:
        check(options)
    elif (options.get('io_backend') or {}).get('type') == 'lmdb':
        check_pair(options['dataroot_gt'], options['dataroot_lq'])


def load_resume_state(opt: Options) -> Options | None:
    """The training state to go on from, or None: the newest of the experiment under ``--auto_resume`` that is not
    damaged, else ``path.resume_state``. Sets ``path.pretrain_network_g`` to the network of the same iteration.

    BasicSR looks in the current directory, loads the state onto a GPU even if there is none, and runs what it holds.

    Raises:
        InputError: the state that was named is damaged, or all that there are.
    """
    found = sorted(Path(opt['path']['training_states']).glob('[0-9]*.state'), key=lambda path: -int(path.stem))
    named = opt['path'].get('resume_state')
    candidates = found if opt['auto_resume'] and found else [Path(named)] if named else []
    damaged: list[str] = []
    for path in candidates:
        try:
            # On the CPU: the optimisers move their state to their parameters' device themselves.
            state = checkpoint.load(path)
            opt['path']['resume_state'] = str(path)
            check_resume(opt, state['iter'])
            checkpoint.load(opt['path']['pretrain_network_g'])
        except InputError as error:
            damaged.append(str(error))
            continue
        state['notes'] = damaged
        opt['datasets']['train']['resumed'] = {key: state.get(key, 0) for key in ('iter', 'epoch', 'seen')}
        return state
    if damaged:
        raise InputError(f'no checkpoint can be resumed from: {"; ".join(damaged)}')
    return None


def for_the_whole_run(create: Callable) -> Callable:
    """BasicSR counts the last, incomplete batch of an epoch as an iteration and then drops it, so that a run ends short
    of its ``total_iter``; and a resumed run begins its epoch anew. Have its function that makes the loaders return as
    many epochs as are needed, the first of which goes on where the checkpoint was.

    Raises:
        InputError: when called, if there are fewer images than a batch.
    """
    if hasattr(create, '__wrapped__'):
        return create

    @functools.wraps(create)
    def create_train_val_dataloader(opt: Options, logger: logging.Logger) -> tuple:
        train_loader, train_sampler, val_loaders, _, total_iters = create(opt, logger)
        if not len(train_loader):
            raise InputError(
                f'datasets.train: {len(train_loader.dataset)} images are fewer than a batch; '
                'lower batch_size_per_gpu or set dataset_enlarge_ratio'
            )
        train, processes = opt['datasets']['train'], opt['world_size']
        resumed = train.pop('resumed', {'iter': 0, 'epoch': 0, 'seen': 0})
        seen = min(resumed['seen'] // processes, len(train_sampler))
        train_sampler.resumed = (resumed['epoch'], seen)
        course = Course(
            done=resumed['iter'],
            epoch=resumed['epoch'],
            seen=resumed['seen'],
            left=(len(train_sampler) - seen) // train_loader.batch_size,
            per_epoch=len(train_loader),
            batch=train_loader.batch_size * processes,
        )
        train['course'] = dataclasses.asdict(course)
        # And one more: BasicSR is at the end when it meets an iteration beyond the last.
        epochs = course.at(max(total_iters, course.done))['epoch'] + 1
        return train_loader, train_sampler, val_loaders, epochs, total_iters

    return create_train_val_dataloader


class PhaseLogger(MessageLogger):
    """BasicSR's MessageLogger, with the time left in the phase that runs, since phases differ in speed, and with the
    learning rate in TensorBoard too."""

    def __init__(self, opt: Options, start_iter: int = 1, tb_logger: Any = None) -> None:
        super().__init__(opt, start_iter, tb_logger)
        self._phases = phases_of(opt['train'], getattr(MODEL_REGISTRY.get(opt['model_type']), 'phase_names', ()))
        self._previous = (start_iter, self.start_time)

    def __call__(self, log_vars: dict[str, Any]) -> None:
        iteration, rate = log_vars['iter'], log_vars['lrs'][0]
        phase = phase_at(self._phases, iteration)
        if self.max_iters != phase.last:
            self.max_iters = phase.last
            self.start_iter, self.start_time = self._previous
        super().__call__(log_vars)
        self._previous = (iteration, time.time())
        if self.tb_logger and 'debug' not in self.exp_name:
            self.tb_logger.add_scalar('learning_rate', rate, iteration)
            self.tb_logger.add_scalar('phase', self._phases.index(phase) + 1, iteration)
