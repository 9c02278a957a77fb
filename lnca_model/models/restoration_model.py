"""Training and testing of any network ``net(image) → restored image``."""

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lnca_data.corruptions import build_corruption
from lnca_data.io.lmdb_store import image_sizes
from lnca_model import distributed
from lnca_model.checkpointing.checkpointer import Checkpointer
from lnca_model.checkpointing.rng_state import fork_rng
from lnca_model.distributed.sync_batch_norm import synchronize_batch_norms
from lnca_model.evaluation.scores import Batch
from lnca_model.metrics import check_sizes
from lnca_model.training.optimizers import build_optimizer, build_scheduler, normalize_gradients
from lnca_model.training.phases import Phase, phase_at, phases_of
from lnca_utils import checkpoint
from lnca_utils.errors import ConfigError, LNCAError, one_line
from lnca_utils.option_checks import check_all, check_known, construct, did_you_mean

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY, MODEL_REGISTRY

MAX_CONSECUTIVE_NONFINITE = 10
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


class NonFiniteError(LNCAError):
    """More steps in a row were skipped than train.max_consecutive_nonfinite allows.

    Args:
        reason: what is not finite, and where.
        fix: what to do about it.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f'{reason}; {fix}')
        self.reason = reason


@MODEL_REGISTRY.register()
class RestorationModel(SRModel):
    """Trains ``net(image) → restored image`` on pairs, or on clean images that it corrupts itself.

    It has BasicSR's interface: :meth:`feed_data`, :meth:`optimize_parameters`, :meth:`test`,
    :meth:`get_current_visuals`, :meth:`save` and :meth:`resume_training`. Every network that is compared trains with
    the same corruption, gradient normalisation and handling of NaNs.

    Options:
        datasets.train.corruption: see :func:`build_corruption`, for a dataset without lq.
        train.max_consecutive_nonfinite: number of consecutive optimiser steps that may be skipped because a loss or the
            gradient is NaN or infinite. Default: 10.
        train.sync_batch_norm: of several ranks, whether batch norms normalise by the images of all of them. Otherwise
            by their own, and the running statistics are averaged. Default: true.
        train.normalize_gradients: divide each gradient tensor by its norm.
        train.on_divergence: see :class:`~lnca_model.training.divergence_guard.DivergenceGuard`.
        train.paper_exact: whether to train exactly as the paper does, see there.
        train.NAME_opt: any number of losses, each called as ``loss(restored, gt)``.
        val.precision: ``bfloat16`` for faster matrix products in :meth:`test`. Default: ``float32``.

    Attributes:
        phase: the current phase, None before the first iteration.
        iteration: number of the current iteration.
        iteration_losses: name → the loss summed over the optimiser steps of the last iteration, with their ``total``;
            infinite where a step was skipped.
        first_image_index: index in its dataset of the first image of the batch that :meth:`test` restores.
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
        """Raise ConfigError for what would fail when the model is made or trained."""
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
        """Raise ConfigError unless there will be images to restore."""
        if train_set.get('corruption'):
            build_corruption(train_set['corruption'])
        elif not train_set.get('dataroot_lq'):
            raise ConfigError(
                'datasets.train: with no dataroot_lq a corruption is needed, such as corruption: {type: noise}'
            )

    @classmethod
    def check_network(cls, network: nn.Module, opt: Mapping[str, Any]) -> None:
        """Raise ConfigError for what does not suit the network: a checkpoint, or images of a wrong size."""
        cls.weights_for(network, opt)

    @staticmethod
    def weights_for(network: nn.Module, opt: Mapping[str, Any]) -> checkpoint.Weights:
        """The weights that a network begins with, beside its own; none unless a checkpoint is named.

        Raises:
            ConfigError: the checkpoint is not one, or of another network.
        """
        path = opt['path'].get('pretrain_network_g')
        if not path:
            return {}
        strict = opt['path'].get('strict_load_g', True)
        return checkpoint.read_weights(network, path, strict, opt['path'].get('param_key_g', 'params'))

    @classmethod
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        """Raise ConfigError for what would fail in a phase."""
        stand_in = [nn.Parameter(torch.ones(1))]
        optimizer = build_optimizer(phase.options.get('optim_g'), f'{phase.where}.optim_g', stand_in)
        build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
        for name, loss in cls.build_losses(phase).items():
            least = getattr(loss, 'least_side', 1)
            for height, width in sorted(training_sizes(opt)):
                if min(height, width) < least:
                    raise ConfigError(
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
                raise ConfigError(f'{phase.where}.{key} is unknown. {did_you_mean(key, [f"{k}_opt" for k in known])}')
            losses[name] = construct(options, LOSS_REGISTRY, f'{phase.where}.{key}')
            if getattr(losses[name], 'reduction', 'mean') == 'none':
                raise ConfigError(f'{phase.where}.{key}: training needs a number; use reduction: mean or sum')
        if not losses:
            known = cls.known_losses.get(phase.name, ('pixel',))
            raise ConfigError(f'{phase.where} has no loss; give at least one of {", ".join(f"{k}_opt" for k in known)}')
        return losses

    # --- construction

    def __init__(self, opt: dict[str, Any]) -> None:
        self.phase: Phase | None = None
        self.iteration = 0
        self.iteration_losses: dict[str, float] = {}
        self.first_image_index = 0
        self.skipped = self.skipped_in_a_row = 0
        super().__init__(opt)

    def init_training_settings(self) -> None:
        train_opt = self.opt['train']
        self.network = self.net_g
        if train_opt.get('sync_batch_norm', True):
            synchronize_batch_norms(self.network)
        distributed.broadcast(self.network.state_dict().values())
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
                phase.options['optim_g'], f'{phase.where}.optim_g', self.trainable_module(phase).parameters()
            )
            self.optimizers.append(optimizer)
            self.schedulers.append(
                build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
            )

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to its device, without a wrapper for several ranks: see :mod:`lnca_model.distributed`."""
        return net.to(self.device)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        weights = checkpoint.read_weights(net, load_path, strict, param_key)
        net.load_state_dict(weights, strict=strict)
        get_root_logger().info(
            f'Loaded {len(weights)} of {len(net.state_dict())} tensors of {type(net).__name__} from {load_path}.'
        )

    def trainable_module(self, phase: Phase) -> nn.Module:
        """The part of the network that a phase trains; the rest is frozen, batch norms included."""
        return self.network

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Key in a checkpoint → network: ``params``, and ``params_ema`` if there is a moving average."""
        average = {'params_ema': self.net_g_ema} if hasattr(self, 'net_g_ema') else {}
        return {'params': self.net_g, **average}

    # --- training

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Start an iteration: start the phase that it belongs to, or step the schedule."""
        self.iteration = current_iter
        phase = phase_at(self.phases, current_iter)
        if phase is not self.phase:
            self.start_phase(phase)
        if current_iter > phase.first:
            self.scheduler.step()

    def start_phase(self, phase: Phase) -> None:
        """Start or resume a phase: freeze what it does not train."""
        self.phase = phase
        module = self.trainable_module(phase)
        self.network.eval().requires_grad_(False)
        module.train().requires_grad_(True)
        count = sum(parameter.numel() for parameter in module.parameters())
        get_root_logger().info(
            f'Phase {self.phases.index(phase) + 1} of {len(self.phases)}, {phase.name}: '
            f'iterations {phase.first:,} to {phase.last:,}, {count:,} parameters of {type(module).__name__}.'
        )

    @property
    def optimizer(self) -> Optimizer:
        """The optimiser of the phase."""
        return self.optimizers[self.phases.index(self.phase)]

    @property
    def scheduler(self) -> Any:
        """The schedule of the phase."""
        return self.schedulers[self.phases.index(self.phase)]

    def get_current_learning_rate(self) -> list[float]:
        return [group['lr'] for group in self.optimizer.param_groups]

    def feed_data(self, data: Batch) -> None:
        """Take a batch; one without lq is corrupted here, by the curriculum of the phase."""
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        if 'lq' in data:
            self.lq = data['lq'].to(self.device, non_blocking=True)
        else:
            self.lq = self.corruption(self.gt, progress=self.phase.progress(self.iteration))

    def optimize_parameters(self, current_iter: int) -> None:
        """Take the optimiser steps of an iteration on the batch that was fed last.

        Raises:
            NonFiniteError: more steps in a row were skipped than train.max_consecutive_nonfinite allows.
        """
        self.log_dict = OrderedDict()
        self.iteration_losses = {}
        self._stepped = False
        self._keep_buffers()
        self.train_on_batch()
        if not self.opt['train'].get('sync_batch_norm', True):
            buffers = self.trainable_module(self.phase).buffers()
            distributed.all_reduce_mean(buffer for buffer in buffers if buffer.is_floating_point())
        if self._stepped:
            self.update_ema()

    def _keep_buffers(self) -> None:
        """Remember the running statistics as they are before a step, in case it is skipped."""
        self._buffers = [buffer.clone() for buffer in self.trainable_module(self.phase).buffers()]

    def train_on_batch(self) -> None:
        """Take the optimiser steps on the batch that was fed last."""
        restored = self.net_g(self.lq)
        self.optimizer_step({name: loss(restored, self.gt) for name, loss in self.losses[self.phase.name].items()})

    def optimizer_step(self, losses: dict[str, Tensor]) -> bool:
        """Take a step of the phase's optimiser on the sum of losses, averaged over the ranks.

        The step is skipped, and the network stays as it is, if a loss or the gradient is NaN or infinite.

        Returns:
            Whether the step was taken.

        Raises:
            NonFiniteError: more steps in a row were skipped than train.max_consecutive_nonfinite allows.
        """
        modules, ranks = self.losses[self.phase.name], distributed.world_size()
        # A sum over images is meant over those of all ranks, and the mean over the ranks is taken below.
        summed = [name for name in losses if getattr(modules[name], 'reduction', 'mean') == 'sum']
        losses = {name: loss * ranks if name in summed else loss for name, loss in losses.items()}
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        distributed.all_reduce_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        of_rank = torch.stack([*losses.values(), total]).detach()
        distributed.all_reduce_mean([of_rank])
        # One transfer from the device for all of them.
        values = torch.stack([*of_rank, nn.utils.get_total_norm(gradients)]).tolist()
        for name, value in zip(
            [*(f'loss {name}' for name in losses), 'sum of losses', 'gradient'], values, strict=True
        ):
            if not math.isfinite(value):
                self.iteration_losses['total'] = math.inf
                self._skip(name, value)
                return False
        self.skipped_in_a_row = 0
        if self.opt['train'].get('normalize_gradients', False):
            normalize_gradients(parameters)
        self.optimizer.step()
        self._stepped = True
        self._keep_buffers()
        for name, value in zip([*losses, 'total'], values, strict=False):
            self.iteration_losses[name] = self.iteration_losses.get(name, 0) + value
        for name, value in zip(losses, values, strict=False):
            self.log_dict[f'l_{self.phase.name}_{name}'] = value
        return True

    def _skip(self, name: str, value: float) -> None:
        """Restore the running statistics of a step that is skipped."""
        where = f'the {name} is {value} in iteration {self.iteration} of phase {self.phase.name}'
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.opt['train'].get('max_consecutive_nonfinite', MAX_CONSECUTIVE_NONFINITE):
            raise NonFiniteError(where, f'lower {self.phase.where}.optim_g.lr and go on with --auto_resume')
        # Batch norms have seen what made it so.
        for buffer, before in zip(self.trainable_module(self.phase).buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        get_root_logger().warning(f'Skipped: {where}; {self.skipped_in_a_row} in a row, {self.skipped} in all.')

    @property
    def is_finite(self) -> bool:
        """False while steps are skipped as non-finite; nothing is saved then."""
        return self.skipped_in_a_row == 0

    def update_ema(self) -> None:
        """Update the moving average of the weights, if there is one."""
        if self.ema_decay > 0:
            self.model_ema(self.ema_decay)
            # BasicSR leaves the running statistics of batch norms as they were in the first iteration.
            for average, buffer in zip(self.net_g_ema.buffers(), self.network.buffers(), strict=True):
                average.copy_(buffer)

    # --- snapshots

    @property
    def rolls_back(self) -> bool:
        """Whether the run goes back to a snapshot when a phase diverges."""
        options = self.opt['train']
        return not options.get('paper_exact') and options.get('on_divergence', self.on_divergence) == 'rollback'

    def snapshot(self) -> dict[str, Any]:
        """A copy of the networks and of the state of the phase's optimiser."""
        networks = {key: deepcopy(network.state_dict()) for key, network in self.networks.items()}
        return {**networks, 'optimizer': deepcopy(self.optimizer.state_dict()['state'])}

    def restore_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Go back to a :meth:`snapshot` of this phase. The learning rate stays."""
        for key, network in self.networks.items():
            network.load_state_dict(snapshot[key])
        groups = self.optimizer.state_dict()['param_groups']
        # load_state_dict keeps a reference to the tensors, which the optimiser overwrites.
        self.optimizer.load_state_dict({'state': deepcopy(snapshot['optimizer']), 'param_groups': groups})
        self.skipped_in_a_row = 0

    @property
    def base_rates(self) -> list[float]:
        """The rates from which the phase's schedule falls."""
        return list(self.scheduler.base_lrs)

    def scale_learning_rate(self, factor: float) -> None:
        """Scale the rest of the phase's schedule."""
        self.scheduler.base_lrs = [rate * factor for rate in self.scheduler.base_lrs]
        if hasattr(self.scheduler, 'eta_min'):
            self.scheduler.eta_min *= factor
        for group in self.optimizer.param_groups:
            group['lr'] *= factor
            group['initial_lr'] *= factor

    # --- testing

    @property
    def scored_network(self) -> nn.Module:
        """The moving average of the weights if there is one, else the network."""
        return getattr(self, 'net_g_ema', None) or self.net_g

    @contextmanager
    def eval_mode(self) -> Iterator[nn.Module]:
        """Yield the network that is scored: in evaluation mode, without gradients and in val.precision."""
        net = self.scored_network
        # Not all of the network trains: each module goes back to its own mode.
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
        """Restore the batch that was fed last into ``output``."""
        with self.eval_mode() as network:
            self.output = self.restore(network).float()

    def restore(self, network: nn.Module) -> Tensor:
        """The restored images of the batch that was fed last."""
        if getattr(network, 'update_rate', 1) == 1:
            return network(self.lq)
        # The update masks depend on an image's index alone, so that scores depend neither on the batch, nor on the
        # number of ranks, nor on the iteration.
        restored = []
        with fork_rng():
            for number, image in enumerate(self.lq.split(1), self.first_image_index):
                torch.manual_seed(number)
                restored.append(network(image))
        return torch.cat(restored)

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        images = {'lq': self.lq, 'result': self.output, 'gt': self.gt}
        return OrderedDict((name, image.detach().cpu()) for name, image in images.items() if image is not None)

    def intermediate_images(self) -> dict[str, Tensor]:
        """Some images of the batch that was fed last, after several numbers of steps: title → ``(N, C, H, W)``.

        Empty unless the network has an automaton.
        """
        return {}

    @property
    def score_label(self) -> str:
        """What the log says of the network that is scored."""
        return 'restored by the network'

    @property
    def is_oracle_eval(self) -> bool:
        """Whether :meth:`test` uses the ground truth, to find the limit of a part of the network."""
        return False

    @property
    def is_in_last_phase(self) -> bool:
        """Whether the network that is scored may be the best of the run."""
        return self.is_train and self.phase is not None and self.phase.last == self.phases[-1].last

    # --- saving and resuming

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the network and the training state, as BasicSR does; with −1 the network alone, as ``latest``."""
        checkpointer = Checkpointer(self, self.opt['path'])
        if current_iter == -1:
            checkpointer.save_network('latest')
        else:
            checkpointer.save(current_iter, epoch=epoch)

    def training_state(self) -> dict[str, Any]:
        """What resuming needs beside the network, the same on all ranks: tensors and plain data."""
        return {
            'kinds': self._optimizer_kinds(),
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'skipped': self.skipped,
            'phases': [(phase.name, phase.iters) for phase in self.phases],
        }

    def rank_state(self) -> dict[str, Any]:
        """What resuming needs of each rank, on the CPU."""
        return {}

    def _optimizer_kinds(self) -> list[str]:
        """The classes of the optimisers: the state of one is of no use to another."""
        return [type(optimizer).__name__ for optimizer in self.optimizers]

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Restore a training state, which BasicSR has read from a ``.state`` file.

        Raises:
            ConfigError: the state is of a training that the options do not describe.
        """
        try:
            self.load_training_state(resume_state)
        except LNCAError:  # of another cause, such as a lost peer
            raise
        except Exception as error:  # what is missing, superfluous or of another size can raise anything
            raise ConfigError(
                f'{self.opt["path"].get("resume_state")}: is of a training with other options ({one_line(error)}); go '
                'on with those, or begin a run of another name, with the network under path.pretrain_network_g'
            ) from error

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`training_state` and :meth:`rank_state` returned.

        Raises:
            ValueError, among others: the state is of a training that the options do not describe.
        """
        if 'phases' in state:  # earlier checkpoints lack it
            self._check_phases(state['phases'], state['iter'])
        if (kinds := state.get('kinds', self._optimizer_kinds())) != self._optimizer_kinds():
            raise ValueError(f'its optimisers are {", ".join(kinds)}, not {", ".join(self._optimizer_kinds())}')
        # How far schedules are; their lengths and rates are what the options say now.
        schedulers = [{key: saved[key] for key in ('last_epoch', '_step_count')} for saved in state['schedulers']]
        super().resume_training({'optimizers': state['optimizers'], 'schedulers': schedulers})
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group['lr'] *= rate / group['initial_lr']
                group['initial_lr'] = rate
        self.skipped = state['skipped']
        self.iteration = state['iter']
        # A run that was cut off after its last iteration has only to be scored.
        self.start_phase(phase_at(self.phases, self.iteration))

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
    with contextlib.suppress(LNCAError):
        return image_sizes(root) if root.endswith('.lmdb') else set()
    return set()


def _described_network(opt: Mapping[str, Any]) -> nn.Module:
    """On the meta device, where a network of any size takes no time and no memory."""
    with torch.device('meta'):
        return construct(opt['network_g'], ARCH_REGISTRY, 'network_g')
