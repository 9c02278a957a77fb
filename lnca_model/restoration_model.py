"""What every compared network trains with."""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from lnca_arch.errors import InputError, check_all, check_known, construct, nearest
from lnca_data.atomic import whole_file, write_json
from lnca_data.corruption import build_corruption
from lnca_data.sheet import write_sheet
from lnca_model import distributed, interruption
from lnca_model.batch_norm import synchronize_batch_norms
from lnca_model.course import Course
from lnca_model.optimization import build_optimizer, build_scheduler, normalize_gradients
from lnca_model.phases import Phase, phase_at, phases_of
from lnca_model.random_state import random_state, random_state_kept, restore_random_state
from lnca_model.resources import Resources
from lnca_model.validation import Batch, Validation, append_scores, equal_batches, forget_scores, to_bgr
from lnca_restore import checkpoint

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger, imwrite
from basicsr.utils.dist_util import master_only
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

DEFAULT_VALIDATION_BATCH = 64
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
SELECTION_METRIC = 'ssim'
SKIP_NON_FINITE = 10


@MODEL_REGISTRY.register()
class RestorationModel(SRModel):
    """Trains ``net(image) → restored image`` on pairs, or on clean images that it corrupts itself.

    To BasicSR's SRModel it adds, for every compared network alike: corruption of the batch on the device with a
    curriculum, gradient normalisation, no step where there is a NaN, checkpoints that are whole or not there and from
    which a run goes on exactly, validation in batches with the corrupted image's score beside the restored one's, and
    the network that was best on validation.

    Options beyond SRModel's:
        datasets.train.corruption: see :func:`build_corruption`, for a dataset without lq.
        datasets.val_NAME.at_end: score this dataset once, after training, with the best network.
        train.skip_non_finite: how many steps of the optimiser in a row may be left out because a loss or the gradient
            is NaN or infinite; 10 unless told otherwise.
        logger.keep_checkpoints: how many checkpoints to keep, the newest; all if left out.
        train.sync_batch_norm: of several processes, whether batch norms normalise by the images of all of them; true
            unless told otherwise. Else by their own, and what they keep for inference is averaged.
        train.normalize_gradients: divide each gradient tensor by its norm.
        train.NAME_opt: any number of losses, each called as ``loss(restored, gt)``.
        val.batch_size: tiles restored at once.
        val.precision: ``float32``, or ``bfloat16`` for products when images are restored: faster where the machine can.
        val.selection_metric: a name under val.metrics; the best network is the best by it on the first val dataset.
    """

    #: Blocks of ``train:`` that are phases; none if ``train:`` itself is the only one.
    phase_names: ClassVar[tuple[str, ...]] = ()
    #: Of these, the ones that a run does without if their block is not there.
    optional_phases: ClassVar[tuple[str, ...]] = ()
    #: Phase → the losses it can have; a phase that is not named takes any.
    known_losses: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @classmethod
    def check_options(cls, opt: Mapping[str, Any]) -> None:
        """Raise InputError for what would fail when the model is made or trained."""
        check_all(cls.checks(opt))

    @classmethod
    def checks(cls, opt: Mapping[str, Any]) -> Iterator[Callable[[], object]]:
        """What can be wrong, one by one."""
        yield lambda: cls.check_network(_described_network(opt), opt)
        for name, options in ((opt.get('val') or {}).get('metrics') or {}).items():
            yield partial(check_known, options.get('type'), METRIC_REGISTRY.keys(), f'val.metrics.{name}: type')
        if opt['is_train']:
            validation = opt.get('val') or {}
            if chosen := validation.get('selection_metric'):
                yield partial(check_known, chosen, validation.get('metrics') or {}, 'val.selection_metric:')
            for phase in phases_of(opt['train'], cls.phase_names):
                yield partial(cls.check_phase, phase, opt)
            yield lambda: cls.check_corruption(opt['datasets'].get('train', {}))

    @classmethod
    def check_corruption(cls, train_set: Mapping[str, Any]) -> None:
        """Raise InputError unless there will be images to restore."""
        if train_set.get('corruption'):
            build_corruption(train_set['corruption'])
        elif not train_set.get('dataroot_lq'):
            raise InputError(
                'datasets.train: with no dataroot_lq a corruption is needed, such as corruption: {type: noise}'
            )

    @classmethod
    def check_network(cls, network: nn.Module, opt: Mapping[str, Any]) -> None:
        """Raise InputError for what does not suit the network: a checkpoint, or images of a wrong size."""
        path = opt['path'].get('pretrain_network_g')
        if path:
            strict = opt['path'].get('strict_load_g', True)
            checkpoint.read_weights(network, path, strict, opt['path'].get('param_key_g', 'params'))

    @classmethod
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        """Raise InputError for what would fail in a phase."""
        stand_in = [nn.Parameter(torch.ones(1))]
        optimizer = build_optimizer(phase.options.get('optim_g'), f'{phase.where}.optim_g', stand_in)
        build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
        cls.build_losses(phase)

    @classmethod
    def build_losses(cls, phase: Phase) -> dict[str, nn.Module]:
        """The losses of a phase: NAME → the loss of its block ``NAME_opt``."""
        losses = {}
        for key, options in phase.options.items():
            if not key.endswith('_opt') or not options:
                continue
            name = key.removesuffix('_opt')
            known = cls.known_losses.get(phase.name)
            if known is not None and name not in known:
                raise InputError(f'{phase.where}.{key} is unknown. {nearest(key, [f"{k}_opt" for k in known])}')
            losses[name] = construct(options, LOSS_REGISTRY, f'{phase.where}.{key}')
            if getattr(losses[name], 'reduction', 'mean') == 'none':
                raise InputError(f'{phase.where}.{key}: training needs a number; use reduction: mean or sum')
        if not losses:
            known = cls.known_losses.get(phase.name, ('pixel',))
            raise InputError(f'{phase.where} has no loss; give at least one of {", ".join(f"{k}_opt" for k in known)}')
        return losses

    # --- making and loading

    def __init__(self, opt: dict[str, Any]) -> None:
        self.phase: Phase | None = None
        self._due: tuple[int, int] | None = None
        self._random: dict[str, Any] | None = None
        self._ending = False
        self.skipped = self.skipped_in_a_row = 0
        self.resources = Resources(torch.device('cuda' if opt['num_gpu'] else 'cpu'))
        super().__init__(opt)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.network = self.net_g
        if train_opt.get('sync_batch_norm', True):
            synchronize_batch_norms(self.network)
        distributed.share(self.network.state_dict().values())
        self.ema_decay = train_opt.get('ema_decay', 0)
        if self.ema_decay > 0:
            self.net_g_ema = deepcopy(self.network).eval()
            if self.opt['path'].get('pretrain_network_g'):
                strict = self.opt['path'].get('strict_load_g', True)
                self.load_network(self.net_g_ema, self.opt['path']['pretrain_network_g'], strict, 'params_ema')
        corruption = self.opt['datasets']['train'].get('corruption')
        self.corruption = build_corruption(corruption) if corruption else None
        self.phases = phases_of(train_opt, self.phase_names)
        self.losses = {phase.name: self.build_losses(phase) for phase in self.phases}
        for phase in self.phases:
            optimizer = build_optimizer(
                phase.options['optim_g'], f'{phase.where}.optim_g', self.module_of(phase).parameters()
            )
            self.optimizers.append(optimizer)
            self.schedulers.append(
                build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
            )
        course = self.opt['datasets']['train'].get('course')
        self.course = Course(**course) if course else None
        self.iteration = 0
        self.best: dict[str, float] = {}
        self.validated: dict[str, int] = {}  # dataset → the iteration of its last validation

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """On its device, and not wrapped, also if there are several processes: see :mod:`lnca_model.distributed`."""
        return net.to(self.device)

    def module_of(self, phase: Phase) -> nn.Module:
        """The part of the network that a phase trains; the rest is frozen, batch norms included."""
        return self.network

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        weights = checkpoint.read_weights(net, load_path, strict, param_key)
        net.load_state_dict(weights, strict=strict)
        get_root_logger().info(
            f'Loaded {len(weights)} of {len(net.state_dict())} tensors of {type(net).__name__} from {load_path}.'
        )

    # --- training

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Called by BasicSR before every iteration: enter the phase that it belongs to and set the rate."""
        if self._ending:
            self._end()
        self.write_due_checkpoint()
        if self._random:  # as late as this: loaders draw a number when they begin
            restore_random_state(self._random)
            self._random = None
        self.resources.start()
        self.iteration = current_iter
        phase = phase_at(self.phases, current_iter)
        if phase is not self.phase:
            self.enter(phase)
        if current_iter > phase.first:
            self.schedulers[self.phases.index(phase)].step()

    def enter(self, phase: Phase) -> None:
        """Begin a phase, or go on with it: freeze what it does not train."""
        self.phase = phase
        module = self.module_of(phase)
        self.network.eval().requires_grad_(False)
        module.train().requires_grad_(True)
        count = sum(parameter.numel() for parameter in module.parameters())
        get_root_logger().info(
            f'Phase {self.phases.index(phase) + 1} of {len(self.phases)}, {phase.name}: '
            f'iterations {phase.first:,} to {phase.last:,}, {count:,} parameters of {type(module).__name__}.'
        )

    @property
    def optimizer(self) -> Optimizer:
        return self.optimizers[self.phases.index(self.phase)]

    def get_current_learning_rate(self) -> list[float]:
        return [group['lr'] for group in self.optimizer.param_groups]

    def feed_data(self, data: Batch) -> None:
        """Take a batch; one without lq is corrupted here, as hard as the phase is far."""
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        if 'lq' in data:
            self.lq = data['lq'].to(self.device, non_blocking=True)
        else:
            self.lq = self.corruption(self.gt, progress=self.phase.progress(self.iteration))

    def optimize_parameters(self, current_iter: int) -> None:
        self.log_dict = OrderedDict()
        self._buffers = [buffer.clone() for buffer in self.module_of(self.phase).buffers()]
        self.train_on_batch()
        if not self.opt['train'].get('sync_batch_norm', True):
            distributed.average(b for b in self.module_of(self.phase).buffers() if b.is_floating_point())
        self.update_ema()
        self.resources.stop()

    def train_on_batch(self) -> None:
        """The steps of the optimiser on the batch that was fed last."""
        restored = self.net_g(self.lq)
        self.descend({name: loss(restored, self.gt) for name, loss in self.losses[self.phase.name].items()})

    def descend(self, losses: dict[str, Tensor]) -> bool:
        """One step of the phase's optimiser down the sum of losses, the mean of all processes; whether there was one.
        There is none, and the network stays as it is, if a loss or the gradient is NaN or infinite.

        Raises:
            InputError: that was so more often in a row than train.skip_non_finite allows.
        """
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        distributed.average(gradients)
        # All end after the same iteration if one is asked to.
        asked = total.new_tensor(float(interruption.asked() is not None))
        of_process = torch.stack([*losses.values(), total, asked]).detach()
        distributed.average([of_process])
        # One transfer from the device for all of them.
        values = torch.stack([*of_process, nn.utils.get_total_norm(gradients)]).tolist()
        self._ending |= values.pop(-2) > 0
        for name, value in zip(
            [*(f'loss {name}' for name in losses), 'sum of losses', 'gradient'], values, strict=True
        ):
            if not math.isfinite(value):
                self._skip(name, value)
                return False
        self.skipped_in_a_row = 0
        if self.opt['train'].get('normalize_gradients', False):
            normalize_gradients(parameters)
        self.optimizer.step()
        for name, value in zip(losses, values, strict=False):
            self.log_dict[f'l_{self.phase.name}_{name}'] = value
        return True

    def _skip(self, name: str, value: float) -> None:
        """Go on without a step of the optimiser, or not."""
        where = f'the {name} is {value} in iteration {self.iteration} of phase {self.phase.name}'
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.opt['train'].get('skip_non_finite', SKIP_NON_FINITE):
            raise InputError(
                f'{where}; the checkpoints so far are good: lower {self.phase.where}.optim_g.lr and go on with '
                '--auto_resume'
            )
        # Batch norms have seen what made it so.
        for buffer, before in zip(self.module_of(self.phase).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        get_root_logger().warning(f'Skipped: {where}; {self.skipped_in_a_row} in a row, {self.skipped} in all.')

    def update_ema(self) -> None:
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)
            # BasicSR leaves the running statistics of batch norms as they were in the first iteration.
            for average, buffer in zip(self.net_g_ema.buffers(), self.network.buffers(), strict=True):
                average.copy_(buffer)

    # --- saving and resuming

    @master_only
    def save_network(self, net: Any, net_label: str, current_iter: int | str, param_key: Any = 'params') -> None:
        """BasicSR's layout under BasicSR's name, written whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        nets, keys = (value if isinstance(value, list) else [value] for value in (net, param_key))
        content = {
            key: {name: tensor.cpu() for name, tensor in net.state_dict().items()}
            for net, key in zip(nets, keys, strict=True)
        }
        name = f'{net_label}_{"latest" if current_iter == -1 else current_iter}.pth'
        checkpoint.save(content, Path(self.opt['path']['models']) / name)

    def save_training_state(self, epoch: int, current_iter: int) -> None:
        if current_iter == -1:
            return
        processes = distributed.gathered(self.process_state())
        if distributed.rank() == 0:
            state = {'epoch': epoch, 'iter': current_iter, **self.training_state(), 'processes': processes}
            checkpoint.save(state, Path(self.opt['path']['training_states']) / f'{current_iter}.state')

    def process_state(self) -> dict[str, Any]:
        """What a resumed run needs of each process, on the CPU."""
        return {'random': random_state()}

    def training_state(self) -> dict[str, Any]:
        """What a resumed run needs beside the network and that."""
        return {
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'best': self.best,
            'validated': self.validated,
            'resources': self.resources.state_dict(),
            'skipped': self.skipped,
            **({'seen': self.course.at(self.iteration)['seen']} if self.course else {}),
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        for note in resume_state.get('notes', []):
            get_root_logger().warning(note)
        # How far schedules are; their lengths and rates are what the options say now.
        schedulers = [
            {key: saved[key] for key in ('last_epoch', '_step_count')} for saved in resume_state['schedulers']
        ]
        super().resume_training(resume_state | {'schedulers': schedulers})
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group['lr'] *= rate / group['initial_lr']
                group['initial_lr'] = rate
        self.best = resume_state['best']
        self.resources.load_state_dict(resume_state['resources'])
        self.validated = resume_state['validated']
        self.skipped = resume_state['skipped']
        # Where there are more processes than there were, the others' go on from their seeds.
        if distributed.rank() < len(resume_state['processes']):
            self._random = resume_state['processes'][distributed.rank()]['random']
        if distributed.rank() == 0:
            at_end = {dataset['name'] for dataset in self.opt['datasets'].values() if dataset.get('at_end')}
            forget_scores(Path(self.opt['path']['log']) / 'scores.csv', after=resume_state['iter'], of=at_end)
        # A run that was cut off after its last iteration has only to be scored.
        self.iteration = resume_state['iter']
        self.enter(phase_at(self.phases, self.iteration))

    def save(self, epoch: int, current_iter: int) -> None:
        """Called by BasicSR every ``save_checkpoint_freq`` iterations, before it validates, and after the last with −1:
        then what training took is logged, and written to ``training.json``.

        The checkpoint of an iteration is written when the next begins, and with it what the validation chose.
        """
        if current_iter != -1:
            self._due = (epoch, current_iter)
            return
        self.write_due_checkpoint()
        super().save(epoch, current_iter)
        self._report_resources()

    def write_due_checkpoint(self) -> None:
        """Write the checkpoint that :meth:`save` was asked for last, unless it has been; then remove those that
        logger.keep_checkpoints does not keep."""
        if self._due is None:
            return
        due, self._due = self._due, None
        super().save(*due)
        self._remove_old_checkpoints()
        self.resources.interlude()

    @master_only
    def _remove_old_checkpoints(self) -> None:
        kept = self.opt['logger'].get('keep_checkpoints')
        if not kept:
            return
        paths = self.opt['path']
        # By when they were written: a run that went back to an earlier one overtakes what it had left behind.
        states = sorted(states_in(paths['training_states']), key=lambda path: path.stat().st_mtime_ns)
        for iteration in (int(path.stem) for path in states[:-kept]):
            # The state first: no state is without its network, should this be cut off.
            for path in (f'{paths["training_states"]}/{iteration}.state', f'{paths["models"]}/net_g_{iteration}.pth'):
                Path(path).unlink(missing_ok=True)

    def _end(self) -> None:
        """End the process after the iteration that is done, its checkpoint written, as a signal has asked for."""
        if self.iteration > self.course.done:
            self.save(self.course.at(self.iteration)['epoch'], self.iteration)
        self.write_due_checkpoint()
        distributed.wait()  # a launcher ends all when one has ended
        asked = interruption.asked() or 'another process was asked to end'
        get_root_logger().warning(f'{asked}: saved iteration {self.iteration:,}; --auto_resume goes on from there.')
        raise SystemExit(interruption.EXIT_CODE)

    @master_only
    def _report_resources(self) -> None:
        seconds, peak = self.resources.seconds, self.resources.peak_bytes
        figures = {
            'iterations': self.iteration,
            'seconds': seconds,
            'peak_memory_bytes': peak,
            'parameters': sum(parameter.numel() for parameter in self.network.parameters()),
        }
        get_root_logger().info(
            f'Trained {self.iteration:,} iterations in {seconds:,.1f} s, without waiting for data, validation and '
            f'checkpoints; peak memory {peak / 1e9:.2f} GB.'
        )
        write_json(Path(self.opt['path']['log']) / 'training.json', figures)

    # --- validation

    @property
    def scored_network(self) -> nn.Module:
        """The moving average if there is one."""
        return getattr(self, 'net_g_ema', None) or self.net_g

    @contextmanager
    def in_evaluation(self) -> Iterator[nn.Module]:
        """The network that is scored, in evaluation mode, without gradients and in val.precision."""
        net = self.scored_network
        # Not all of the network trains: each part goes back to the mode that it was in.
        training = [module for module in net.modules() if module.training]
        net.eval()
        precision = PRECISIONS[(self.opt.get('val') or {}).get('precision', 'float32')]
        reduced = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
        try:
            with torch.no_grad(), reduced:
                yield net
        finally:
            for module in training:
                module.training = True

    def test(self) -> None:
        with self.in_evaluation() as network:
            self.output = self.restore(network).float()

    def restore(self, network: nn.Module) -> Tensor:
        """The restored images of the batch that was fed last."""
        return network(self.lq)

    def trace(self, network: nn.Module) -> dict[str, Tensor]:
        """Some images of the batch that was fed last, on their way: title → ``(N, C, H, W)``; none unless the network
        has an automaton."""
        return {}

    def validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool = False) -> None:
        """Called by BasicSR every ``val_freq`` iterations, and after training with a number beyond the last."""
        if self.is_train:
            total = self.opt['train']['total_iter']
            at_end = dataloader.dataset.opt.get('at_end', False)
            if at_end and current_iter <= total:
                return
            name = dataloader.dataset.opt['name']
            if not at_end and current_iter > total and self.validated.get(name) == total:
                return
            current_iter = min(current_iter, total)
            self.validated[name] = current_iter
            if at_end:
                self._use_best_network()
        with random_state_kept():
            super().validation(dataloader, current_iter, tb_logger, save_img)
        self.resources.interlude()

    def _use_best_network(self) -> None:
        path = Path(self.opt['path']['models']) / 'net_g_best.pth'
        if distributed.rank() == 0 and self.best and path.is_file():
            self.load_network(self.scored_network, str(path), param_key='params_ema')
        distributed.share(self.scored_network.state_dict().values())

    def dist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        self.nondist_validation(dataloader, current_iter, tb_logger, save_img)

    def nondist_validation(self, dataloader: Any, current_iter: int | str, tb_logger: Any, save_img: bool) -> None:
        """Called by BasicSR with a loader of batch size 1. Each process restores and scores its share."""
        dataset_options = dataloader.dataset.opt
        name = dataset_options['name']
        share = distributed.share_of(len(dataloader.dataset))
        validation = Validation(self.opt['val'].get('metrics') or {}, len(dataloader.dataset), share.start)
        images = DataLoader(Subset(dataloader.dataset, share)) if len(share) < len(dataloader.dataset) else dataloader
        batches = equal_batches(images, self.opt['val'].get('batch_size', DEFAULT_VALIDATION_BATCH))
        others = distributed.rank() > 0
        with tqdm(total=len(share), unit='image', desc=name, leave=False, disable=others) as progress:
            for batch in batches:
                self.feed_data(batch)
                self.test()
                restored = to_bgr(self.output)
                if self.gt is not None:
                    validation.add(to_bgr(self.lq), restored, to_bgr(self.gt))
                if save_img:
                    for image, key in zip(restored, batch['lq_path'], strict=True):
                        self._save_image(image, Path(key).stem, name, current_iter)
                progress.update(len(restored))
        validation.put_together()
        if distributed.rank() == 0:
            self._write_pictures(name, current_iter, validation, tb_logger)
        self._report(dataset_options, current_iter, validation, tb_logger)

    def _write_pictures(self, name: str, current_iter: int | str, validation: Validation, tb_logger: Any) -> None:
        folder = Path(self.opt['path']['visualization']) / name
        pictures = {'sheet': folder / f'sheet_{current_iter}.png'}
        validation.write_sheet(pictures['sheet'])
        with self.in_evaluation() as network:
            trace = self.trace(network) if self.is_train else {}
        if trace:
            folder.mkdir(parents=True, exist_ok=True)
            pictures['trace'] = folder / f'trace_{current_iter}.png'
            write_sheet(pictures['trace'], {title: to_bgr(images)[..., ::-1] for title, images in trace.items()})
        for kind, path in pictures.items():
            if tb_logger and path.is_file():
                tb_logger.add_image(f'{kind}/{name}', cv2.imread(str(path))[..., ::-1], current_iter, dataformats='HWC')

    def _save_image(self, image: Any, name: str, dataset_name: str, current_iter: int | str) -> None:
        folder = Path(self.opt['path']['visualization'])
        if self.is_train:
            path = folder / name / f'{name}_{current_iter}.png'
        else:
            path = folder / dataset_name / f'{name}_{self.opt["val"].get("suffix") or self.opt["name"]}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            imwrite(image, str(temporary))

    def _report(
        self, dataset_options: Mapping[str, Any], current_iter: int | str, validation: Validation, tb_logger: Any
    ) -> None:
        """Log the scores, write them to ``scores.csv``, and keep the network if it is the best so far."""
        name, corrupted = dataset_options['name'], validation.scores('corrupted')
        lines = [f'Validation {name}, {self.scored_as()}']
        rows = []
        for metric, value in validation.scores('restored').items():
            gain = value - corrupted[metric]
            lines.append(f'\t # {metric}: {value:.4f}\tcorrupted: {corrupted[metric]:.4f}\tgain: {gain:+.4f}')
            rows.append((current_iter, self.scored_as(), name, metric, value, corrupted[metric], gain))
            if tb_logger:
                for suffix, scalar in (('', value), ('_corrupted', corrupted[metric]), ('_gain', gain)):
                    tb_logger.add_scalar(f'metrics/{name}/{metric}{suffix}', scalar, current_iter)
        if rows and self._selects_by(dataset_options):
            lines.append(self._keep_if_best(validation.scores('restored'), current_iter))
        get_root_logger().info('\n'.join(lines))
        if distributed.rank() == 0:
            append_scores(Path(self.opt['path']['log']) / 'scores.csv', rows)

    def scored_as(self) -> str:
        """What the log says of the network that was scored."""
        return 'restored by the network'

    def _selects_by(self, dataset_options: Mapping[str, Any]) -> bool:
        """Whether a dataset chooses the best network: the first one that is validated, in the last phase."""
        if not self.is_train or self.phase is not self.phases[-1]:
            return False
        candidates = [
            options['name']
            for key, options in self.opt['datasets'].items()
            if key.startswith('val') and not options.get('at_end')
        ]
        return candidates[:1] == [dataset_options['name']] and self._selection_metric() in self.opt['val']['metrics']

    def _selection_metric(self) -> str:
        return self.opt['val'].get('selection_metric', SELECTION_METRIC)

    def _keep_if_best(self, restored: Mapping[str, float], current_iter: int) -> str:
        metric = self._selection_metric()
        higher = self.opt['val']['metrics'][metric].get('better', 'higher') == 'higher'
        value, best = restored[metric], self.best.get('value')
        if best is None or (value > best if higher else value < best):
            self.best = {'value': value, 'iter': current_iter}
            self.save_networks('best')
        return f'\t best {metric}: {self.best["value"]:.4f} in iteration {self.best["iter"]:,}, kept as net_g_best.pth'

    def save_networks(self, current_iter: int | str) -> None:
        """Save the network, and its moving average if there is one, as ``net_g_CURRENT_ITER.pth``."""
        if hasattr(self, 'net_g_ema'):
            self.save_network([self.net_g, self.net_g_ema], 'net_g', current_iter, ['params', 'params_ema'])
        else:
            self.save_network(self.net_g, 'net_g', current_iter)


def states_in(folder: Path | str) -> list[Path]:
    """The training states in a folder: ``ITERATION.state``; other names are somebody's own."""
    return [path for path in Path(folder).glob('*.state') if re.fullmatch('[0-9]+', path.stem)]


def _described_network(opt: Mapping[str, Any]) -> nn.Module:
    """On the meta device, where a network of any size takes no time and no memory."""
    with torch.device('meta'):
        return construct(opt['network_g'], ARCH_REGISTRY, 'network_g')
