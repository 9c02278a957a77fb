"""What every compared network trains with."""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lnca_arch.errors import InputError, check_all, check_known, construct, nearest
from lnca_data.corruption import build_corruption
from lnca_data.lmdb_store import image_sizes
from lnca_model import distributed, interruption
from lnca_model.batch_norm import synchronize_batch_norms
from lnca_model.course import Course
from lnca_model.divergence import MAX_ROLLBACKS, DivergenceGuard
from lnca_model.metrics import check_sizes
from lnca_model.optimization import build_optimizer, build_scheduler, normalize_gradients
from lnca_model.phases import Phase, phase_at, phases_of
from lnca_model.scored_model import ScoredModel
from lnca_model.validation import Batch
from lnca_restore import checkpoint

from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

SKIP_NON_FINITE = 10


@MODEL_REGISTRY.register()
class RestorationModel(ScoredModel):
    """Trains ``net(image) → restored image`` on pairs, or on clean images that it corrupts itself.

    For every compared network alike: corruption of the batch on the device with a curriculum, gradient normalisation,
    and no step where there is a NaN.

    Options, beside those of :class:`ScoredModel` and :class:`ResumableModel`:
        datasets.train.corruption: see :func:`build_corruption`, for a dataset without lq.
        train.skip_non_finite: how many steps of the optimiser in a row may be left out because a loss or the gradient
            is NaN or infinite; 10 unless told otherwise.
        train.sync_batch_norm: of several processes, whether batch norms normalise by the images of all of them; true
            unless told otherwise. Else by their own, and what they keep for inference is averaged.
        train.normalize_gradients: divide each gradient tensor by its norm.
        train.on_divergence: what to do when a phase diverges, see :class:`DivergenceGuard`. ``rollback``: go back to a
            snapshot of 50 to 100 iterations before and go on at half the learning rate, at most five times a phase.
            ``warn``: log it.
        train.paper_exact: whether to train exactly as the paper does: ``on_divergence`` is ``warn``, and automata
            train with exact gradients, whatever the option file says.
        train.NAME_opt: any number of losses, each called as ``loss(restored, gt)``.
    """

    #: Blocks of ``train:`` that are phases; none if ``train:`` itself is the only one.
    phase_names: ClassVar[tuple[str, ...]] = ()
    #: Of these, the ones that a run does without if their block is not there.
    optional_phases: ClassVar[tuple[str, ...]] = ()
    #: Phase → the losses it can have; a phase that is not named takes any.
    known_losses: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: train.on_divergence where the option file does not set it. Snapshots of a large network take memory.
    on_divergence: ClassVar[str] = 'warn'

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
            yield partial(check_sizes, options, _scored_sizes(opt), f'val.metrics.{name}')
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
        cls.weights_for(network, opt)

    @staticmethod
    def weights_for(network: nn.Module, opt: Mapping[str, Any]) -> checkpoint.Weights:
        """The weights that a network begins with, beside its own; none unless a checkpoint is named.

        Raises:
            InputError: the checkpoint is not one, or of another network.
        """
        path = opt['path'].get('pretrain_network_g')
        if not path:
            return {}
        strict = opt['path'].get('strict_load_g', True)
        return checkpoint.read_weights(network, path, strict, opt['path'].get('param_key_g', 'params'))

    @classmethod
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        """Raise InputError for what would fail in a phase."""
        stand_in = [nn.Parameter(torch.ones(1))]
        optimizer = build_optimizer(phase.options.get('optim_g'), f'{phase.where}.optim_g', stand_in)
        build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
        for name, loss in cls.build_losses(phase).items():
            least = getattr(loss, 'least_side', 1)
            for height, width in sorted(training_sizes(opt)):
                if min(height, width) < least:
                    raise InputError(
                        f'{phase.where}.{name}_opt: {type(loss).__name__} needs images of at least {least}×{least} '
                        f'pixels, and there are some of {height}×{width} in datasets.train'
                    )

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
        self.skipped = self.skipped_in_a_row = 0
        self.guard = DivergenceGuard()
        self._diverged: str | None = None  # why to roll back before the next iteration, or to warn
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
        if course:
            self.course = Course(**course)

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """On its device, and not wrapped, also if there are several processes: see :mod:`lnca_model.distributed`."""
        return net.to(self.device)

    def module_of(self, phase: Phase) -> nn.Module:
        """The part of the network that a phase trains; the rest is frozen, batch norms included."""
        return self.network

    # --- training

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Called by BasicSR before every iteration: enter the phase that it belongs to and set the rate."""
        self.begin_iteration(current_iter)
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
        self.guard.start_phase(self._snapshot(phase.first - 1) if self.rolls_back else {})
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
        self._stepped = False
        self._iteration_losses: dict[str, float] = {}
        self._keep_buffers()
        self.train_on_batch()
        if not self.opt['train'].get('sync_batch_norm', True):
            distributed.average(b for b in self.module_of(self.phase).buffers() if b.is_floating_point())
        if self._stepped:
            self.update_ema()
        self._diverged = self.guard.observe(self._iteration_losses) or self._diverged
        if self._diverged:
            self._handle_divergence()
        elif self.rolls_back and self.is_sound and self.guard.is_snapshot_due(current_iter - self.phase.first + 1):
            self.guard.add_snapshot(self._snapshot(current_iter))
        self.resources.stop()

    def _keep_buffers(self) -> None:
        """As they are before a step, for one that is skipped."""
        self._buffers = [buffer.clone() for buffer in self.module_of(self.phase).buffers()]

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
        modules, processes = self.losses[self.phase.name], distributed.count()
        # A sum over images is meant over those of all processes, and it is the mean that is taken of them below.
        summed = [name for name in losses if getattr(modules[name], 'reduction', 'mean') == 'sum']
        losses = {name: loss * processes if name in summed else loss for name, loss in losses.items()}
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        distributed.average_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
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
                self._iteration_losses['total'] = math.inf
                self._skip(name, value)
                return False
        self.skipped_in_a_row = 0
        if self.opt['train'].get('normalize_gradients', False):
            normalize_gradients(parameters)
        self.optimizer.step()
        self._stepped = True
        self._keep_buffers()
        for name, value in zip([*losses, 'total'], values, strict=False):
            self._iteration_losses[name] = self._iteration_losses.get(name, 0) + value
        for name, value in zip(losses, values, strict=False):
            self.log_dict[f'l_{self.phase.name}_{name}'] = value
        return True

    def _skip(self, name: str, value: float) -> None:
        """Go on without a step of the optimiser, or not."""
        where = f'the {name} is {value} in iteration {self.iteration} of phase {self.phase.name}'
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.opt['train'].get('skip_non_finite', SKIP_NON_FINITE):
            if self.rolls_back and self.guard.can_roll_back:
                self._diverged = f'the {name} is {value}, {self.skipped_in_a_row} times in a row'
                return
            raise InputError(
                f'{where}; {self._last_good()}: lower {self.phase.where}.optim_g.lr and go on with --auto_resume'
            )
        # Batch norms have seen what made it so.
        for buffer, before in zip(self.module_of(self.phase).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        get_root_logger().warning(f'Skipped: {where}; {self.skipped_in_a_row} in a row, {self.skipped} in all.')

    # --- divergence

    @property
    def rolls_back(self) -> bool:
        """Whether the model goes back to a snapshot when a phase diverges."""
        options = self.opt['train']
        return not options.get('paper_exact') and options.get('on_divergence', self.on_divergence) == 'rollback'

    def _handle_divergence(self) -> None:
        """Go back to a snapshot, or warn.

        Raises:
            InputError: the phase has gone back :data:`MAX_ROLLBACKS` times already.
        """
        self.guard.diverged_at.append((self.phase.name, self.iteration))
        where = f'{self.phase.where}: diverged in iteration {self.iteration:,}: {self._diverged}'
        self._diverged = None
        if not self.rolls_back:
            self.guard.forget_losses()
            get_root_logger().warning(
                f'{where}; nothing was done about it. Set train.on_divergence: rollback, '
                f'without train.paper_exact, or lower {self.phase.where}.optim_g.lr.'
            )
            return
        if not self.guard.can_roll_back:
            raise InputError(
                f'{where}, after {self.guard.rollbacks} rollbacks; lower {self.phase.where}.optim_g.lr and train again'
            )
        restored = self.roll_back()
        rates = ', '.join(f'{rate:.3g}' for rate in self.get_current_learning_rate())
        get_root_logger().warning(
            f'{where}; went back to the weights of iteration {restored:,} and halved the learning rate to {rates} '
            f'(rollback {self.guard.rollbacks} of at most {MAX_ROLLBACKS}).'
        )

    def _note_gain(self, name: str, gain: float) -> None:
        """Where the network that trains chooses itself by this dataset, see whether it has diverged."""
        super()._note_gain(name, gain)
        if self.is_train and name in self._validated_names()[:1] and self.guard.observe_gain(gain):
            self._diverged = (
                f'the restored images of {name} score {-gain:.3g} below the corrupted ones by '
                f'{self._selection_metric()}, and scored above them before'
            )

    def _cause_of_loss(self) -> str:
        if self.guard.diverged_at:
            places = ', '.join(f'{phase} in iteration {iteration:,}' for phase, iteration in self.guard.diverged_at)
            return (
                f'the training diverged: {places}; lower optim_g.lr of that phase, or set train.on_divergence: rollback'
            )
        return super()._cause_of_loss()

    def _snapshot(self, iteration: int) -> dict[str, Any]:
        """The network after an iteration, and the state of its optimiser."""
        networks = {'network': self.network, **({'ema': self.net_g_ema} if self.ema_decay > 0 else {})}
        return {
            'iteration': iteration,
            **{name: deepcopy(network.state_dict()) for name, network in networks.items()},
            'optimizer': deepcopy(self.optimizer.state_dict()['state']),
        }

    def roll_back(self) -> int:
        """Go back to a snapshot, at half the learning rate; return the snapshot's iteration."""
        snapshot = self.guard.roll_back()
        self.network.load_state_dict(snapshot['network'])
        if self.ema_decay > 0:
            self.net_g_ema.load_state_dict(snapshot['ema'])
        groups = self.optimizer.state_dict()['param_groups']
        # load_state_dict keeps a reference to the tensors, which the optimiser overwrites.
        self.optimizer.load_state_dict({'state': deepcopy(snapshot['optimizer']), 'param_groups': groups})
        self._scale_learning_rate(0.5)
        self.skipped_in_a_row = 0
        return snapshot['iteration']

    def _scale_learning_rate(self, factor: float) -> None:
        """Scale the rest of the phase's schedule."""
        scheduler = self.schedulers[self.phases.index(self.phase)]
        scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
        for group in self.optimizer.param_groups:
            group['lr'] *= factor
            group['initial_lr'] *= factor

    def _last_good(self) -> str:
        return f'the last good checkpoint is of iteration {self._saved:,}' if self._saved else 'there is no checkpoint'

    @property
    def is_sound(self) -> bool:
        return self.skipped_in_a_row == 0

    def update_ema(self) -> None:
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)
            # BasicSR leaves the running statistics of batch norms as they were in the first iteration.
            for average, buffer in zip(self.net_g_ema.buffers(), self.network.buffers(), strict=True):
                average.copy_(buffer)

    # --- resuming

    def training_state(self) -> dict[str, Any]:
        phases = [(phase.name, phase.iters) for phase in self.phases]
        state = {'skipped': self.skipped, 'phases': phases, 'guard': self.guard.state_dict()}
        return {**super().training_state(), **state}

    def take_back(self, resume_state: dict[str, Any]) -> None:
        if 'phases' in resume_state:  # earlier checkpoints lack it
            self._check_phases(resume_state['phases'], resume_state['iter'])
        super().take_back(resume_state)
        self.skipped = resume_state['skipped']
        # A run that was cut off after its last iteration has only to be scored.
        self.enter(phase_at(self.phases, self.iteration))
        if 'guard' in resume_state:  # earlier checkpoints lack it
            self.guard.load_state_dict(resume_state['guard'])
            self._scale_learning_rate(0.5**self.guard.rollbacks)

    def _check_phases(self, before: Sequence[tuple[str, int]], done: int) -> None:
        """Raise ValueError unless what is done of a training belongs to the same phases now.

        Args:
            before: names of its phases, and their iterations.
            done: iterations of the training.
        """
        names, names_before = [phase.name for phase in self.phases], [name for name, _ in before]
        if names != names_before:
            raise ValueError(f'its phases are {", ".join(names_before)}, not {", ".join(names)}')
        for phase, (name, iters) in zip(self.phases, before, strict=True):
            done_of_phase = min(done, iters)
            over = done > iters  # one that the training stands at the end of may become longer
            if phase.iters < done_of_phase or (over and phase.iters != iters):
                raise ValueError(
                    f'of the {iters:,} iterations of its phase {name}, {done_of_phase:,} are done, and '
                    f'{phase.where}.iters is {phase.iters:,}'
                )
            done -= done_of_phase


def _scored_sizes(opt: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Heights and widths of the images that are scored, as far as they are known beforehand."""
    scored = (dataset for name, dataset in opt['datasets'].items() if name != 'train')
    return set().union(*(_stored_sizes(dataset) for dataset in scored))


def training_sizes(opt: Mapping[str, Any]) -> set[tuple[int, int]]:
    """Heights and widths of the images in a training batch, as far as they are known beforehand."""
    options = opt['datasets'].get('train', {})
    if options.get('gt_size'):
        return {(options['gt_size'], options['gt_size'])}
    return _stored_sizes(options)


def _stored_sizes(dataset: Mapping[str, Any]) -> set[tuple[int, int]]:
    root = str(dataset.get('dataroot_gt'))
    # What is wrong with an LMDB is said of its dataset.
    with contextlib.suppress(InputError):
        return image_sizes(root) if root.endswith('.lmdb') else set()
    return set()


def _described_network(opt: Mapping[str, Any]) -> nn.Module:
    """On the meta device, where a network of any size takes no time and no memory."""
    with torch.device('meta'):
        return construct(opt['network_g'], ARCH_REGISTRY, 'network_g')
