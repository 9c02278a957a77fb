"""What the plug-in changes in BasicSR's train.py and test.py: options are read safely and checked before anything is
created, a run resumes on any device and from any directory, and it lasts as long as its options say."""

import argparse
import atexit
import copy
import dataclasses
import functools
import logging
import multiprocessing
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lnca_arch import basicsr_compat
from lnca_arch.errors import InputError, check_all, check_known, report_in_one_line
from lnca_data.atomic import PARTIAL, whole_file
from lnca_data.lmdb_store import check_pair
from lnca_model import distributed, interruption, option_schema
from lnca_model.course import Course, ResumableSampler
from lnca_model.experiment_lock import lock
from lnca_model.options import (
    Options,
    check_blocks,
    complete,
    complete_datasets,
    force,
    read_command_line,
    read_options,
)
from lnca_model.phases import phase_at, phases_of
from lnca_model.resources import keep_freed_memory
from lnca_model.restoration_model import RestorationModel
from lnca_model.resumable_model import mark_newest, states_in
from lnca_restore import checkpoint

from basicsr.utils import MessageLogger, check_resume, make_exp_dirs, set_random_seed
from basicsr.utils import options as basicsr_options
from basicsr.utils.registry import DATASET_REGISTRY, MODEL_REGISTRY


def install() -> None:
    """Put the functions below in the place of BasicSR's, also for modules that are imported later."""
    basicsr_options.parse_options = parse_options
    basicsr_compat.replace_in_pipeline('parse_options', parse_options)


def parse_options(root_path: str, is_train: bool = True) -> tuple[Options, argparse.Namespace]:
    """In the place of BasicSR's parse_options, which runs code that options hold; train.py and test.py call it first.
    From here on mistakes are reported in one line each.

    Raises:
        InputError: what the command line or the option file says would fail later.
    """
    report_in_one_line()
    args = read_command_line()
    opt = read_options(args.opt)
    force(opt, args.force_yml)
    try:
        check_form(opt, args.opt, is_train)
    except InputError:
        check_all([partial(check_form, opt, args.opt, is_train), partial(check_sound_datasets, opt, Path(root_path))])
    complete(opt, args, Path(root_path), is_train)
    check_options(opt)
    join_processes(opt, args.launcher)
    if opt['num_gpu'] == 0:
        keep_freed_memory()
    if is_train:
        interruption.listen(patiently=opt['dist'])
        if (opt['logger'].get('wandb') or {}).get('project'):
            basicsr_compat.provide_wandb_ids()
    # These are defined in the file that is run, so they can be replaced only once it runs.
    basicsr_compat.replace_in_pipeline('load_resume_state', load_resume_state)
    basicsr_compat.replace_in_pipeline('make_exp_dirs', make_folders)
    basicsr_compat.replace_in_pipeline('copy_opt_file', copy_option_file)
    basicsr_compat.replace_in_pipeline('MessageLogger', PhaseLogger)
    basicsr_compat.replace_in_pipeline('EnlargedSampler', ResumableSampler)
    import basicsr.train

    basicsr_compat.replace_in_pipeline(
        'create_train_val_dataloader', for_the_whole_run(basicsr.train.create_train_val_dataloader)
    )
    return opt, args


def join_processes(opt: Options, launcher: str) -> None:
    """Make this process one of those that a launcher has started, or the only one, and seed its random numbers."""
    opt['dist'] = launcher != 'none'
    if opt['dist']:
        distributed.begin(launcher, opt['num_gpu'], **opt.get('dist_params') or {})
    elif opt['num_gpu'] > 1:
        print(
            f'{opt["num_gpu"]} GPUs: one is used. For all: torchrun --nproc_per_node={opt["num_gpu"]} basicsr/train.py '
            '-opt FILE --launcher pytorch',
            flush=True,
        )
        opt['num_gpu'] = 1
    opt.update(rank=distributed.rank(), world_size=distributed.count())
    if opt.get('manual_seed') is None:
        opt['manual_seed'] = distributed.agreed(lambda: random.randint(1, 10000))
    set_random_seed(opt['manual_seed'] + opt['rank'])


def make_folders(opt: Options) -> None:
    """BasicSR's make_exp_dirs, after which the folders are there for every process."""
    make_exp_dirs(opt)
    distributed.wait()


def copy_option_file(path: str | Path, folder: str | Path) -> None:
    """In the place of BasicSR's copy_opt_file: the first process alone writes the copy into the folder, and none where
    the file is that copy."""
    copy = Path(folder) / Path(path).name
    if distributed.rank() > 0 or (copy.exists() and copy.samefile(path)):
        return
    when, command = time.strftime('%Y-%m-%d %H:%M:%S'), shlex.join(sys.argv)
    with whole_file(copy) as temporary:
        temporary.write_bytes(f'# {when}: {command}\n'.encode(errors='replace') + Path(path).read_bytes())


def check_form(opt: Options, path: str | Path, is_train: bool) -> None:
    """Raise InputError, a line for each mistake, for what is missing or unknown in an option file, or has a wrong type
    or range. Models and datasets that are not the plug-in's are left to BasicSR."""
    check_blocks(opt, path, is_train)
    check_known(opt['model_type'], MODEL_REGISTRY.keys(), 'model_type:')
    if issubclass(MODEL_REGISTRY.get(opt['model_type']), RestorationModel):
        option_schema.check(opt)


def check_sound_datasets(opt: Options, root: Path) -> None:
    """Raise InputError, a line for each mistake, for what is wrong with datasets of which :func:`check_form` has
    nothing to say, so that it is named together with the mistakes in other blocks.

    Args:
        opt: of which it has something to say.
        root: see :func:`lnca_model.options.find_paths`.
    """
    datasets = copy.deepcopy(option_schema.sound_datasets(opt))
    complete_datasets({**opt, 'path': {}, 'datasets': datasets}, root)
    check_all(partial(_check_dataset, name, dataset) for name, dataset in datasets.items())


def check_options(opt: Options) -> None:
    """Raise InputError, a line for each mistake, for what would fail later, when folders have been made and time has
    been spent.

    Args:
        opt: of which :func:`check_form` had nothing to say.
    """
    model = MODEL_REGISTRY.get(opt['model_type'])
    checks: list[Callable[[], object]] = [
        partial(_check_dataset, name, dataset) for name, dataset in opt['datasets'].items()
    ]
    if issubclass(model, RestorationModel):
        checks.append(lambda: model.check_options(opt))
    checks.append(partial(_check_gpus, opt['num_gpu']))
    if opt['is_train']:
        checks.append(partial(_check_loading, opt))
    check_all(checks)


def _check_gpus(wanted: int) -> None:
    there = torch.cuda.device_count()
    if wanted > there:
        raise InputError(
            f'num_gpu: {wanted} are wanted, and there are {there}; auto takes what there is, 0 trains without'
        )


def _check_loading(opt: Options) -> None:
    """Raise InputError for what BasicSR's loaders and loop would fail at."""
    train = opt['datasets']['train']
    for name in opt['datasets']:
        if name != 'train' and name.split('_')[0] != 'val':
            raise InputError(
                f'datasets.{name}: only datasets named val_… are scored in training; those with at_end: true once, '
                'after it'
            )
    if train.get('persistent_workers') and not train.get('num_worker_per_gpu'):
        raise InputError('datasets.train.persistent_workers: there are none; set num_worker_per_gpu, or leave it out')
    if train.get('prefetch_mode') == 'cuda' and not (train.get('pin_memory') and opt['num_gpu']):
        raise InputError('datasets.train.prefetch_mode: cuda needs a GPU and pin_memory: true')
    if opt.get('val') and 'val_freq' not in opt['val']:
        raise InputError('val.val_freq is missing: validate every so many iterations')


def _check_dataset(name: str, options: Options) -> None:
    check_known(options.get('type'), DATASET_REGISTRY.keys(), f'datasets.{name}: type')
    check = getattr(DATASET_REGISTRY.get(options['type']), 'check_options', None)
    if check is not None:
        check(options)
        return
    if options['type'] == 'PairedImageDataset':
        for key in ('dataroot_gt', 'dataroot_lq', 'io_backend'):
            if not options.get(key):
                raise InputError(f'datasets.{name}.{key} is missing; PairedImageDataset needs it')
        if 'scale' not in options:
            raise InputError(f'datasets.{name}: PairedImageDataset needs a scale; set scale: 1, beside model_type')
    if {'dataroot_gt', 'dataroot_lq'} <= options.keys() and (options.get('io_backend') or {}).get('type') == 'lmdb':
        check_pair(options['dataroot_gt'], options['dataroot_lq'])


def load_resume_state(opt: Options) -> Options | None:
    """The training state to go on from, or None: under ``--auto_resume`` the newest of the experiment that is not
    damaged, else ``path.resume_state``. Sets ``path.pretrain_network_g`` to the network of the same iteration.

    BasicSR looks in the current directory, loads the state onto a GPU even if there is none, and runs what it holds.

    Raises:
        InputError: the state that was named is damaged, or all that there are; or another run of this name is going on.
    """
    distributed.agreed(lambda: lock(opt['path']['experiments_root']))
    if distributed.rank() == 0:
        _remove_partial(opt)
    found = states_in(opt['path']['training_states'])[::-1]
    named = opt['path'].get('resume_state')
    candidates = found if opt['auto_resume'] and found else [Path(named)] if named else []
    path, damaged = distributed.agreed(lambda: _first_whole(candidates, opt))
    if path is None:
        return None
    if distributed.rank() == 0 and path.resolve().parent == Path(opt['path']['training_states']).resolve():
        mark_newest(path)  # what was gone back to, also if this run comes to write none
    # On the CPU: the optimisers move their state to their parameters' device themselves.
    state = checkpoint.load(path)
    opt['path']['resume_state'] = str(path)
    check_resume(opt, state['iter'])
    opt['path']['param_key_g'] = 'params'  # not the moving average, which is beside it
    if state['iter'] > opt['train']['total_iter']:
        raise InputError(
            f'{path}: is of iteration {state["iter"]:,}, beyond train.total_iter of {opt["train"]["total_iter"]:,}; '
            'set that higher, or give the run another name'
        )
    state['notes'] = damaged
    opt['datasets']['train']['resumed'] = {key: state.get(key, 0) for key in ('iter', 'epoch', 'seen')}
    return state


def _remove_partial(opt: Options) -> None:
    """Remove the files that a run was writing when it was killed."""
    for folder in ('models', 'training_states'):
        for file in Path(opt['path'][folder]).glob(PARTIAL):
            file.unlink(missing_ok=True)


def _first_whole(states: Iterable[Path], opt: Options) -> tuple[Path | None, list[str]]:
    """The first training state that can be read, and its network too; and what is wrong with those before it."""
    damaged: list[str] = []
    for path in states:
        try:
            state = checkpoint.load(path)
            if not {'iter', 'epoch', 'optimizers', 'schedulers'} <= state.keys():
                raise InputError(f'{path}: not a training state; a network is named under path.pretrain_network_g')
            checkpoint.load(Path(opt['path']['models']) / f'net_g_{state["iter"]}.pth')
        except InputError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    if damaged:
        raise InputError(f'no checkpoint can be resumed from: {"; ".join(damaged)}')
    return None, []


@dataclasses.dataclass
class Validating:
    """What train.py validates with, for a model that has to before train.py calls it."""

    loaders: Sequence[DataLoader]
    tb_logger: Any = None

    def __deepcopy__(self, memo: object) -> 'Validating':
        """Itself: BasicSR makes the model with a copy of the options."""
        return self


def for_the_whole_run(create: Callable) -> Callable:
    """BasicSR counts the last, incomplete batch of an epoch as an iteration and then drops it, so that a run ends short
    of its ``total_iter``; and a resumed run begins its epoch anew. Have its function that makes the loaders return as
    many epochs as are needed, the first of which goes on where the checkpoint was. Sets ``validating``.

    Raises:
        InputError: when called, if there are fewer images than a batch.
    """
    if hasattr(create, '__wrapped__'):
        return create

    @functools.wraps(create)
    def create_train_val_dataloader(opt: Options, logger: logging.Logger) -> tuple:
        train_loader, train_sampler, val_loaders, _, total_iters = create(opt, logger)
        # What is scored with the best network comes after what chooses that.
        val_loaders.sort(key=lambda loader: loader.dataset.opt.get('at_end', False))
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
        opt['validating'] = Validating(val_loaders)
        train_loader.worker_init_fn = partial(_begin_worker, train_loader.worker_init_fn)
        atexit.register(_end_workers)
        # A loader that begins draws a number, and would draw it from those of the training.
        train_loader.generator = torch.Generator().manual_seed(torch.initial_seed())
        # And one more: BasicSR is at the end when it meets an iteration beyond the last.
        epochs = course.at(max(total_iters, course.done))['epoch'] + 1
        return train_loader, train_sampler, val_loaders, epochs, total_iters

    return create_train_val_dataloader


def _begin_worker(begin: Callable[[int], None] | None, number: int) -> None:
    """A signal to all processes of a run asks the training to end, which needs its workers until it has: they end when
    it does."""
    interruption.ignore()
    if begin:
        begin(number)


def _end_workers() -> None:
    """Python ends what is left of them with a signal that they ignore, and then waits for them. Some are left where an
    error ends the run: its trace holds their loader."""
    # PyTorch's handler would report each as killed.
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


class PhaseLogger(MessageLogger):
    """BasicSR's MessageLogger, with the time left in the phase that runs, since phases differ in speed, and with the
    learning rate in TensorBoard too."""

    def __init__(self, opt: Options, start_iter: int = 1, tb_logger: Any = None) -> None:
        super().__init__(opt, start_iter, tb_logger)
        opt['validating'].tb_logger = tb_logger
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
