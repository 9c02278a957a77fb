"""The training loop of the plug-in's models."""

import atexit
import logging
import math
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader

from lnca_model import distributed
from lnca_model.checkpointing.checkpointer import Checkpointer
from lnca_model.checkpointing.resume import ResumePoint, find_resume_point
from lnca_model.checkpointing.rng_state import load_rng_state
from lnca_model.evaluation.evaluator import EXIT_BELOW_INPUT, Evaluator, PreemptedError
from lnca_model.models.restoration_model import NonFiniteError, RestorationModel
from lnca_model.training import preemption
from lnca_model.training.divergence_guard import DivergenceGuard
from lnca_model.training.profiler import TrainingProfiler
from lnca_model.training.progress import PhaseLogger, start_log
from lnca_model.training.resumable_sampler import DataPosition, ResumableSampler
from lnca_utils.atomic import atomic_file, write_json
from lnca_utils.errors import LNCAError

import basicsr.train as basicsr_train
from basicsr.data import build_dataloader, build_dataset
from basicsr.data.prefetch_dataloader import CPUPrefetcher, CUDAPrefetcher
from basicsr.models import build_model
from basicsr.utils import AvgTimer, get_root_logger, make_exp_dirs, mkdir_and_rename

Options = dict[str, Any]


def train(opt: Options, option_file: str | Path) -> None:
    """Train a model from the start or from a checkpoint.

    Args:
        opt: options from :func:`lnca_model.config.checks.load_options`.
        option_file: path of the option file, which is copied into the experiment.

    Raises:
        LNCAError: if a file cannot be read or written, or a phase diverges and no rollbacks are left.
        SystemExit: with exit code 75 if the run is preempted, 3 if the restored images score below the corrupted ones.
    """
    torch.backends.cudnn.benchmark = True
    resume = find_resume_point(opt)
    tb_logger = _start_experiment(opt, option_file, resume)
    logger = get_root_logger()

    train_loader, val_loaders, position = build_loaders(opt, resume.state if resume else None)
    profiler = TrainingProfiler(torch.device('cuda' if opt['num_gpu'] else 'cpu'))
    if resume:
        opt['path'].update(pretrain_network_g=str(resume.network), param_key_g='params', resume_state=str(resume.path))
    model: RestorationModel = build_model(opt)
    checkpointer = Checkpointer(model, opt['path'], opt['logger'].get('keep_last_checkpoints'))
    evaluator = Evaluator(model, val_loaders, opt, checkpointer, tb_logger)
    guard = DivergenceGuard(model)
    total = int(opt['train']['total_iter'])
    val_freq = opt['val']['val_freq'] if opt.get('val') else None

    def save(iteration: int) -> None:
        parts: dict[str, Any] = {'evaluator': evaluator, 'guard': guard, 'profiler': profiler}
        state = {name: part.state_dict() for name, part in parts.items()}
        checkpointer.save(iteration, **position.at(iteration), **state)
        profiler.exclude_pause()

    def evaluate(iteration: int) -> None:
        evaluator.evaluate(iteration)
        gains = evaluator.gains.get(evaluator.selection_dataset or '', {})
        if evaluator.selection_metric in gains and not model.is_oracle_eval:
            guard.observe_gain(gains[evaluator.selection_metric])
        profiler.exclude_pause()

    def exit_preempted(iteration: int) -> NoReturn:
        if iteration > checkpointer.last_saved:
            save(iteration)
        distributed.barrier()  # a launcher ends all ranks when the first one exits
        reason = preemption.requested_signal() or 'another process was asked to end'
        logger.warning(f'{reason}: saved iteration {checkpointer.last_saved:,}; --auto_resume goes on from there.')
        raise SystemExit(preemption.EXIT_CODE)

    iteration = position.iteration
    try:
        if resume:
            is_due = val_freq is not None and (iteration % val_freq == 0 or iteration == total)
            _restore(resume, is_due, model, checkpointer, evaluator, guard, profiler)
            if is_due:
                evaluate(iteration)
        logger.info(f'Start training from epoch: {position.epoch}, iter: {iteration}')
        progress = PhaseLogger(opt, model.phases, iteration, tb_logger)
        data_timer, iter_timer = AvgTimer(), AvgTimer()
        start = time.time()
        for epoch, batch in _batches(train_loader, opt, position.epoch) if iteration < total else ():
            data_timer.record()
            if model.is_finite and distributed.any_rank(preemption.requested_signal() is not None, model.device):
                exit_preempted(iteration)
            iteration += 1
            model.update_learning_rate(iteration)
            guard.before_iteration()
            profiler.start()
            model.feed_data(batch)
            try:
                model.optimize_parameters(iteration)
            except NonFiniteError as error:
                if not (model.rolls_back and guard.can_roll_back):
                    raise LNCAError(f'{error}; {_last_good(checkpointer)}') from None
                guard.handle(error.reason)
            else:
                guard.after_iteration()
            profiler.stop()
            iter_timer.record()

            if iteration % opt['logger']['print_freq'] == 0:
                timing = {'time': iter_timer.get_avg_time(), 'data_time': data_timer.get_avg_time()}
                rates = {'lrs': model.get_current_learning_rate()}
                progress({'epoch': epoch, 'iter': iteration, **rates, **timing, **model.get_current_log()})
            if iteration % opt['logger']['save_checkpoint_freq'] == 0:
                logger.info('Saving models and training states.')
                save(iteration)
            if val_freq is not None and iteration % val_freq == 0:
                evaluate(iteration)
            data_timer.start()
            iter_timer.start()
            if iteration == total:
                break

        logger.info(f'End of training after {time.time() - start:,.0f} s.')
        if val_freq is not None:
            evaluate(total)  # first: the network is rolled back if it has diverged
        checkpointer.save_network('latest')
        _report_resources(opt, model, profiler)
        if val_freq is not None:
            evaluator.evaluate_best(total)
    except PreemptedError:
        exit_preempted(iteration)
    if tb_logger:
        tb_logger.close()
    _check_final_gain(evaluator, guard, model)


def _last_good(checkpointer: Checkpointer) -> str:
    """Return a part of a message that names the last checkpoint."""
    last = checkpointer.last_saved
    return f'the last good checkpoint is of iteration {last:,}' if last else 'there is no checkpoint'


# --- starting and resuming


def _start_experiment(opt: Options, option_file: str | Path, resume: ResumePoint | None) -> Any:
    """Create the folders, the log and the copy of the option file; return the TensorBoard writer, on rank 0."""
    if resume is None:
        make_exp_dirs(opt)
        distributed.barrier()
        if opt['logger'].get('use_tb_logger') and 'debug' not in opt['name'] and distributed.rank() == 0:
            mkdir_and_rename(str(Path(opt['root_path']) / 'tb_logger' / opt['name']))
    _copy_option_file(Path(option_file), Path(opt['path']['experiments_root']))
    logger = start_log(opt, 'train')
    for line in resume.damaged if resume else ():
        logger.warning(line)
    return basicsr_train.init_tb_loggers(opt) if distributed.rank() == 0 else None


def _copy_option_file(file: Path, folder: Path) -> None:
    """Copy an option file into a folder and prepend the command as a comment; skip it if it is that copy."""
    copy = folder / file.name
    if distributed.rank() > 0 or (copy.exists() and copy.samefile(file)):
        return
    when, command = time.strftime('%Y-%m-%d %H:%M:%S'), shlex.join(sys.argv)
    with atomic_file(copy) as temporary:
        temporary.write_bytes(f'# {when}: {command}\n'.encode(errors='replace') + file.read_bytes())


def _restore(
    resume: ResumePoint,
    is_due: bool,
    model: RestorationModel,
    checkpointer: Checkpointer,
    evaluator: Evaluator,
    guard: DivergenceGuard,
    profiler: TrainingProfiler,
) -> None:
    """Restore all parts of the run, and the random number generators last.

    Raises:
        LNCAError: if the checkpoint does not fit the options.
    """
    state = resume.state
    model.resume_training(state)
    evaluator.load_state_dict(state['evaluator'], state['iter'], is_due)
    guard.load_state_dict(state['guard'])
    profiler.load_state_dict(state['profiler'])
    checkpointer.last_saved = state['iter']
    # If there are more ranks than before, the additional ones keep their seeds.
    if distributed.rank() < len(state['ranks']):
        load_rng_state(state['ranks'][distributed.rank()]['rng'])
    get_root_logger().info(f'Resuming training from epoch: {state["epoch"]}, iter: {state["iter"]}.')


# --- data


def build_loaders(opt: Options, state: Mapping[str, Any] | None = None) -> tuple[DataLoader, list[Any], DataPosition]:
    """Build the loaders of the training and the validation sets.

    Args:
        opt: the options.
        state: training state to resume from, None for a new run.

    Returns:
        The training loader; the validation loaders, those with ``final_test: true`` last; and the position in the
        training data.

    Raises:
        LNCAError: if there are too few training images for a batch.
    """
    train_opt, ranks = opt['datasets']['train'], opt['world_size']
    start = {key: (state or {}).get(key, 0) for key in ('iter', 'epoch', 'seen')}
    train_set = build_dataset(train_opt)
    ratio = train_opt.get('dataset_enlarge_ratio', 1)
    # A resumed run keeps its data order, even if manual_seed is not set or has changed.
    seed = (state or {}).get('data_seed', opt['manual_seed'])
    sampler = ResumableSampler(train_set, ranks, opt['rank'], ratio, seed)
    seen = min(start['seen'] // ranks, len(sampler))
    sampler.start = (start['epoch'], seen)
    train_loader = _build_loader(train_set, train_opt, opt, sampler)
    if not len(train_loader):
        raise LNCAError(
            f'datasets.train: {len(train_set)} images are fewer than a batch; lower batch_size_per_gpu or set '
            'dataset_enlarge_ratio'
        )
    train_loader.worker_init_fn = partial(_start_worker, train_loader.worker_init_fn)
    atexit.register(_end_workers)
    # A loader draws a random number when it starts; with its own generator, it does not affect the training.
    train_loader.generator = torch.Generator().manual_seed(torch.initial_seed())
    position = DataPosition(
        iteration=start['iter'],
        epoch=start['epoch'],
        seen=start['seen'],
        batches_left=(len(sampler) - seen) // train_loader.batch_size,
        batches_per_epoch=len(train_loader),
        batch_size=train_loader.batch_size * ranks,
        seed=seed,
    )
    total = int(opt['train']['total_iter'])
    get_root_logger().info(
        f'{len(train_set):,} training images, {position.batches_per_epoch:,} iterations an epoch, {total:,} '
        f'iterations, {math.ceil(total / position.batches_per_epoch):,} epochs.'
    )
    val_loaders: list[Any] = []
    for name, dataset_opt in opt['datasets'].items():
        if name != 'train':
            val_set = build_dataset(dataset_opt)
            val_loaders.append(_build_loader(val_set, dataset_opt, opt, None))
            get_root_logger().info(f'{len(val_set):,} images in {dataset_opt["name"]}.')
    val_loaders.sort(key=lambda loader: loader.dataset.opt.get('final_test', False))
    return train_loader, val_loaders, position


def _build_loader(dataset: Any, dataset_opt: Options, opt: Options, sampler: Any) -> Any:
    return build_dataloader(
        dataset, dataset_opt, num_gpu=opt['num_gpu'], dist=opt['dist'], sampler=sampler, seed=opt['manual_seed']
    )


def _batches(loader: Any, opt: Options, first_epoch: int) -> Iterator[tuple[int, Any]]:
    """Yield ``(epoch, batch)`` forever."""
    if opt['datasets']['train'].get('prefetch_mode') == 'cuda':
        prefetcher = CUDAPrefetcher(loader, opt)
    else:
        prefetcher = CPUPrefetcher(loader)
    epoch = first_epoch
    while True:
        loader.sampler.set_epoch(epoch)
        prefetcher.reset()
        batch = prefetcher.next()
        while batch is not None:
            yield epoch, batch
            batch = prefetcher.next()
        epoch += 1


def _start_worker(start: Callable[[int], None] | None, number: int) -> None:
    """Initialise a worker; it ignores signals, since a preempted training needs its workers until it has saved."""
    preemption.ignore_signals()
    if start:
        start(number)


def _end_workers() -> None:
    """Kill the workers that are left after an error; they ignore the SIGTERM that Python sends at exit."""
    # Without this, PyTorch's handler would report each worker as killed.
    if hasattr(signal, 'SIGCHLD'):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in multiprocessing.active_children():
        worker.kill()


# --- the end


def _report_resources(opt: Options, model: RestorationModel, profiler: TrainingProfiler) -> None:
    """Log time and peak memory of the training, and write them to ``training.json``."""
    if distributed.rank() > 0:
        return
    figures = {
        'iterations': model.iteration,
        'seconds': profiler.seconds,
        'peak_memory_bytes': profiler.peak_bytes,
        'parameters': sum(parameter.numel() for parameter in model.network.parameters()),
    }
    get_root_logger().info(
        f'Trained {model.iteration:,} iterations in {profiler.seconds:,.1f} s, without data loading, validation and '
        f'checkpoints; peak memory {profiler.peak_bytes / 1e9:.2f} GB.'
    )
    write_json(Path(opt['path']['log']) / 'training.json', figures)


def _check_final_gain(evaluator: Evaluator, guard: DivergenceGuard, model: RestorationModel) -> None:
    """Compare the scores of the best network's restored images with those of the corrupted images.

    If the restored images are worse by the selection metric, but not by every metric, a warning is logged.

    Raises:
        SystemExit: with :data:`EXIT_BELOW_INPUT` if they are worse by every metric.
    """
    name, gains = evaluator.final_gains
    worse = {metric: gain for metric, gain in gains.items() if not gain >= 0}
    is_worse = bool(worse) and len(worse) == len(gains)
    if distributed.rank() == 0 and (is_worse or evaluator.selection_metric in worse):
        scores = ', '.join(f'{metric} {gain:+.1%}' for metric, gain in gains.items())
        level = logging.ERROR if is_worse else logging.WARNING
        get_root_logger().log(
            level,
            f'{name}: the restored images score below the corrupted ones ({scores}); '
            f'{_likely_cause(evaluator, guard, model)}',
        )
    distributed.barrier()  # a launcher ends all ranks when the first one exits
    if is_worse:
        raise SystemExit(EXIT_BELOW_INPUT)


def _likely_cause(evaluator: Evaluator, guard: DivergenceGuard, model: RestorationModel) -> str:
    """Return why the restored images may score below the corrupted ones, and how to fix it."""
    if guard.diverged_at:
        places = ', '.join(f'{phase} in iteration {iteration:,}' for phase, iteration in guard.diverged_at)
        hint = '' if model.rolls_back else ', or set train.on_divergence: rollback without train.paper_exact'
        return f'the training diverged ({places}): lower optim_g.lr of that phase{hint}'
    name, metric = evaluator.selection_dataset, evaluator.selection_metric
    ceiling = evaluator.ceiling_gains.get(name or '', {}).get(metric, 0)
    if ceiling < 0 and getattr(model.network, 'blend', None) is None:
        return (
            f'even the autoencoder alone, given the latents of the clean images, scores {metric} {ceiling:+.1%} on '
            f'{name}: it loses more detail than the corruption removes. Train it for longer (train.autoencoder.iters), '
            'or set network_g.blend: true and add train.joint, as options/lnca_plus_*.yml do'
        )
    return 'train for longer, or at another learning rate'
