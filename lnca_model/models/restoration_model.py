"""Training and testing of any network ``net(image) → restored image``."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lnca_data.corruptions import Corruption, build_corruption
from lnca_model import distributed
from lnca_model.checkpointing.checkpointer import Checkpointer
from lnca_model.checkpointing.rng_state import fork_rng
from lnca_model.distributed.sync_batch_norm import synchronize_batch_norms
from lnca_model.evaluation.scores import Batch
from lnca_model.training.optimizers import OPTIMIZERS, build_scheduler, load_optimizer_state, normalize_gradients
from lnca_model.training.phases import Phase, phase_at, phases_of
from lnca_utils import checkpoint
from lnca_utils.errors import ConfigError, LNCAError, one_line
from lnca_utils.option_checks import construct, did_you_mean

from basicsr.models.sr_model import SRModel
from basicsr.utils import get_root_logger
from basicsr.utils.registry import LOSS_REGISTRY, MODEL_REGISTRY

MAX_CONSECUTIVE_NONFINITE = 10
PRECISIONS = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


class NonFiniteError(LNCAError):
    """More consecutive steps were skipped than ``train.max_consecutive_nonfinite`` allows.

    Args:
        reason: what is not finite, and where.
        fix: how to fix it.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f'{reason}; {fix}')
        self.reason = reason


@MODEL_REGISTRY.register()
class RestorationModel(SRModel):
    """Trains and tests any network ``net(image) → restored image``.

    It trains on pairs, or on clean images that it corrupts itself. All networks get the same corruption, gradient
    normalisation and handling of NaNs, so that they can be compared. The interface is BasicSR's: :meth:`feed_data`,
    :meth:`optimize_parameters`, :meth:`test`, :meth:`get_current_visuals`, :meth:`save` and :meth:`resume_training`.

    Options:
        datasets.train.corruption: corruption, for datasets without ``lq``, see :func:`build_corruption`.
        train.max_consecutive_nonfinite: number of consecutive optimizer steps that may be skipped because a loss or the
            gradient is NaN or infinite. Default: 10.
        train.sync_batch_norm: with several ranks, whether batch norms use statistics over the images of all ranks. If
            false, each rank uses its own images, and the running statistics are averaged. Default: true.
        train.normalize_gradients: whether to divide each gradient tensor by its norm. Default: false.
        train.on_divergence: see :class:`~lnca_model.training.divergence_guard.DivergenceGuard`.
        train.paper_exact: whether to train exactly as in the paper: no rollbacks, no limit of gradient growth. Default:
            false.
        train.NAME_opt: a loss, called as ``loss(restored, gt)``; there may be several.
        val.precision: ``bfloat16`` for faster matrix products in :meth:`test`. Default: ``float32``.

    Attributes:
        phase: the current phase, None before the first iteration.
        iteration: number of the current iteration, counted from 1; 0 before the first.
        iteration_losses: name → loss, summed over the optimizer steps of the last iteration. ``total`` is the sum of
            all, or infinite if a step was skipped.
        first_image_index: index, in its dataset, of the first image of the batch that :meth:`test` restores.
    """

    #: Blocks of ``train:`` that are phases; empty if ``train:`` itself is the only phase.
    phase_names: ClassVar[tuple[str, ...]] = ()
    #: Phases that may be left out of the option file.
    optional_phases: ClassVar[tuple[str, ...]] = ()
    #: Phase → names of its losses; a phase that is missing here accepts any.
    known_losses: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Default of train.on_divergence: 'warn', since snapshots of a large network take memory.
    on_divergence: ClassVar[str] = 'warn'

    network: nn.Module
    phase: Phase
    corruption: Corruption
    lq: Tensor
    gt: Any  # a tensor, or None for datasets without ground truth
    output: Tensor

    @classmethod
    def check_network(cls, network: nn.Module, opt: Mapping[str, Any]) -> None:
        """Raise ConfigError unless this model can train and test a network.

        Args:
            network: the network, on the meta device.
            opt: the options.
        """

    @classmethod
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        """Raise ConfigError unless this model can train a phase.

        Args:
            phase: the phase, whose optimizer, schedule and losses have passed their checks.
            opt: the options.
        """

    @classmethod
    def build_losses(cls, phase: Phase) -> dict[str, nn.Module]:
        """Create the losses of a phase, one for each block ``NAME_opt``.

        Returns:
            Name → loss.

        Raises:
            ConfigError: if there is no loss, or a loss is unknown, invalid, or does not return a scalar.
        """
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
                raise ConfigError(f'{phase.where}.{key}: not a scalar; use reduction: mean or sum')
        if not losses:
            known = cls.known_losses.get(phase.name, ('pixel',))
            raise ConfigError(f'{phase.where}: no loss; set at least one of {", ".join(f"{k}_opt" for k in known)}')
        return losses

    # --- construction

    def __init__(self, opt: dict[str, Any]) -> None:
        self.phase = None  # type: ignore[assignment]  # until the first iteration
        self.iteration = 0
        self.iteration_losses: dict[str, float] = {}
        self.first_image_index = 0
        self.skipped = self.skipped_in_a_row = 0
        super().__init__(opt)

    @override
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
        if corruption:
            self.corruption = build_corruption(corruption)
        self.phases = phases_of(train_opt, self.phase_names)
        self.losses = {phase.name: self.build_losses(phase) for phase in self.phases}
        for phase in self.phases:
            parameters = list(self.trainable_module(phase).parameters())
            optimizer = construct(phase.options['optim_g'], OPTIMIZERS.items(), f'{phase.where}.optim_g', parameters)
            self.optimizers.append(optimizer)
            self.schedulers.append(
                build_scheduler(phase.options.get('scheduler'), f'{phase.where}.scheduler', optimizer, phase.iters)
            )

    def model_to_device(self, net: nn.Module) -> nn.Module:
        """Move a network to the device, without wrapping it in DistributedDataParallel as BasicSR does.

        :mod:`lnca_model.distributed` averages the gradients instead.
        """
        return net.to(self.device)

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str = 'params') -> None:
        """Load the weights of a network from a checkpoint of tensors and plain data.

        Args:
            net: the network.
            load_path: path of the checkpoint.
            strict: whether names and shapes must match exactly.
            param_key: entry of the checkpoint that holds the weights, see
                :func:`~lnca_utils.checkpoint.extract_state_dict`.

        Raises:
            CheckpointError: if the checkpoint cannot be read or does not match the network.
        """
        weights = checkpoint.read_weights(net, load_path, strict, param_key)
        net.load_state_dict(weights, strict=strict)
        get_root_logger().info(
            f'Loaded {len(weights)} of {len(net.state_dict())} tensors of {type(net).__name__} from {load_path}.'
        )

    def trainable_module(self, phase: Phase) -> nn.Module:
        """Return the part of the network that a phase trains; the rest is frozen, including its batch norms."""
        return self.network

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks by their keys in checkpoints: ``params``, and ``params_ema`` if there is a moving average."""
        average = {'params_ema': self.net_g_ema} if hasattr(self, 'net_g_ema') else {}
        return {'params': self.net_g, **average}

    # --- training

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        """Start an iteration: start a new phase if it is the first one in it, else step the schedule.

        Args:
            current_iter: number of the iteration.
            warmup_iter: unused; for BasicSR's interface.
        """
        self.iteration = current_iter
        phase = phase_at(self.phases, current_iter)
        if phase is not self.phase:
            self.start_phase(phase)
        if current_iter > phase.first:
            self.scheduler.step()

    def start_phase(self, phase: Phase) -> None:
        """Start or resume a phase, and freeze everything but its trainable module."""
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
        """The optimizer of the current phase."""
        return self.optimizers[self.phases.index(self.phase)]

    @property
    def scheduler(self) -> Any:
        """The learning-rate schedule of the current phase."""
        return self.schedulers[self.phases.index(self.phase)]

    def get_current_learning_rate(self) -> list[float]:
        """Return the learning rate of each parameter group of the current phase."""
        return [group['lr'] for group in self.optimizer.param_groups]

    def feed_data(self, data: Batch) -> None:
        """Move a batch to the device; if it has no ``lq``, corrupt ``gt`` by the curriculum of the phase.

        Args:
            data: ``{'gt': (N, C, H, W)}``, ``{'lq': (N, C, H, W)}`` or both, in [0, 1].
        """
        self.gt = data['gt'].to(self.device, non_blocking=True) if 'gt' in data else None
        if 'lq' in data:
            self.lq = data['lq'].to(self.device, non_blocking=True)
        else:
            self.lq = self.corruption(self.gt, progress=self.phase.progress(self.iteration))

    def optimize_parameters(self, current_iter: int) -> None:
        """Take the optimizer steps of an iteration on the batch that was fed last.

        Args:
            current_iter: unused; for BasicSR's interface. :meth:`update_learning_rate` sets the iteration.

        Raises:
            NonFiniteError: if more consecutive steps were skipped than ``train.max_consecutive_nonfinite`` allows.
        """
        self.log_dict: OrderedDict[str, Any] = OrderedDict()
        self.iteration_losses = {}
        self._stepped = False
        self._save_buffers()
        self.train_on_batch()
        if not self.opt['train'].get('sync_batch_norm', True):
            buffers = self.trainable_module(self.phase).buffers()
            distributed.all_reduce_mean(buffer for buffer in buffers if buffer.is_floating_point())
        if self._stepped:
            self.update_ema()

    def _save_buffers(self) -> None:
        """Copy the running statistics, so that a skipped step can restore them."""
        self._buffers = [buffer.clone() for buffer in self.trainable_module(self.phase).buffers()]

    def train_on_batch(self) -> None:
        """Take the optimizer steps on the batch that was fed last."""
        restored = self.net_g(self.lq)
        self.optimizer_step({name: loss(restored, self.gt) for name, loss in self.losses[self.phase.name].items()})

    def optimizer_step(self, losses: dict[str, Tensor]) -> bool:
        """Take an optimizer step on the sum of the losses, with gradients averaged over the ranks.

        If a loss or the gradient is NaN or infinite, the step is skipped and the network does not change.

        Args:
            losses: name → scalar loss.

        Returns:
            Whether the step was taken.

        Raises:
            NonFiniteError: if more consecutive steps were skipped than ``train.max_consecutive_nonfinite`` allows.
        """
        modules, ranks = self.losses[self.phase.name], distributed.world_size()
        # Gradients are averaged over the ranks below, but losses with reduction: sum must add up over the ranks.
        summed = [name for name in losses if getattr(modules[name], 'reduction', 'mean') == 'sum']
        losses = {name: loss * ranks if name in summed else loss for name, loss in losses.items()}
        total: Any = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group['params']]
        distributed.all_reduce_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means = torch.stack([*losses.values(), total]).detach()
        distributed.all_reduce_mean([means])
        # A single transfer from the device.
        values = torch.stack([*means, nn.utils.get_total_norm(gradients)]).tolist()
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
        self._save_buffers()
        for name, value in zip([*losses, 'total'], values, strict=False):
            self.iteration_losses[name] = self.iteration_losses.get(name, 0) + value
        for name, value in zip(losses, values, strict=False):
            self.log_dict[f'l_{self.phase.name}_{name}'] = value
        return True

    def _skip(self, name: str, value: float) -> None:
        """Skip a step: restore the running statistics and log the reason.

        Args:
            name: what is not finite.
            value: its value.

        Raises:
            NonFiniteError: if too many consecutive steps were skipped.
        """
        where = f'the {name} is {value} in iteration {self.iteration} of phase {self.phase.name}'
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.opt['train'].get('max_consecutive_nonfinite', MAX_CONSECUTIVE_NONFINITE):
            raise NonFiniteError(where, f'lower {self.phase.where}.optim_g.lr and resume with --auto_resume')
        # The forward pass has updated the running statistics with this batch.
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
            # model_ema averages parameters only; without this, batch norms would keep their initial statistics.
            for average, buffer in zip(self.net_g_ema.buffers(), self.network.buffers(), strict=True):
                average.copy_(buffer)

    # --- snapshots

    @property
    def rolls_back(self) -> bool:
        """Whether a phase that diverges returns to a snapshot."""
        options = self.opt['train']
        return not options.get('paper_exact') and options.get('on_divergence', self.on_divergence) == 'rollback'

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of the networks and of the state of the phase's optimizer."""
        networks = {key: deepcopy(network.state_dict()) for key, network in self.networks.items()}
        return {**networks, 'optimizer': deepcopy(self.optimizer.state_dict()['state'])}

    def restore_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Restore a :meth:`snapshot` of the current phase. The learning rate does not change."""
        for key, network in self.networks.items():
            network.load_state_dict(snapshot[key])
        groups = self.optimizer.state_dict()['param_groups']
        # Copy the tensors: the optimizer updates loaded tensors in place.
        load_optimizer_state(self.optimizer, {'state': deepcopy(snapshot['optimizer']), 'param_groups': groups})
        self.skipped_in_a_row = 0

    @property
    def base_rates(self) -> list[float]:
        """The initial learning rate of each parameter group of the current phase."""
        return list(self.scheduler.base_lrs)

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the current and all later learning rates of the phase by a factor."""
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
        """Yield :attr:`scored_network` in evaluation mode, without gradients and in ``val.precision``."""
        net = self.scored_network
        # Frozen modules are in evaluation mode already, and stay there.
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
        """Return the restored images, ``(N, C, H, W)``, of the batch that was fed last."""
        if getattr(network, 'update_rate', 1) == 1:
            return network(self.lq)
        # Seed the update masks of each image with its index, so that scores do not depend on the batch size, the number
        # of ranks or the iteration.
        restored = []
        with fork_rng():
            for number, image in enumerate(self.lq.split(1), self.first_image_index):
                torch.manual_seed(number)
                restored.append(network(image))
        return torch.cat(restored)

    def get_current_visuals(self) -> OrderedDict[str, Tensor]:
        """Return ``lq``, ``result`` and, if known, ``gt`` of the batch that was tested last, on the CPU."""
        images = {'lq': self.lq, 'result': self.output, 'gt': self.gt}
        return OrderedDict((name, image.detach().cpu()) for name, image in images.items() if image is not None)

    def intermediate_images(self) -> dict[str, Tensor]:
        """Return some images of the batch that was fed last, after several numbers of steps of the automaton.

        Returns:
            Title → images ``(N, C, H, W)``; empty if there is no automaton.
        """
        return {}

    @property
    def score_label(self) -> str:
        """Description of the scored images in logs and in ``scores.csv``."""
        return 'restored by the network'

    @property
    def is_oracle_eval(self) -> bool:
        """Whether :meth:`test` uses the ground truth, to measure an upper bound of the scores."""
        return False

    @property
    def is_in_last_phase(self) -> bool:
        """Whether the current phase is the last one of a training, in which the best network is chosen."""
        return self.is_train and self.phase is not None and self.phase.last == self.phases[-1].last

    # --- saving and resuming

    def save(self, epoch: int, current_iter: int) -> None:
        """Save the network and the training state; for BasicSR's interface.

        Args:
            epoch: number of the epoch.
            current_iter: number of the iteration; −1 saves the network only, as ``latest``.

        Raises:
            CheckpointError: if a file cannot be written.
        """
        checkpointer = Checkpointer(self, self.opt['path'])
        if current_iter == -1:
            checkpointer.save_network('latest')
        else:
            checkpointer.save(current_iter, epoch=epoch)

    def training_state(self) -> dict[str, Any]:
        """Return the training state that is equal on all ranks, without the network, as tensors and plain data."""
        return {
            'optim_g': [dict(phase.options['optim_g']) for phase in self.phases],
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers],
            'schedulers': [scheduler.state_dict() for scheduler in self.schedulers],
            'skipped': self.skipped,
            'phases': [(phase.name, phase.iters) for phase in self.phases],
        }

    def rank_state(self) -> dict[str, Any]:
        """Return the training state that differs between ranks, on the CPU, as tensors and plain data."""
        return {}

    def resume_training(self, resume_state: Mapping[str, Any]) -> None:
        """Restore a training state that was read from a ``.state`` file.

        Raises:
            ConfigError: if the state does not fit the options.
        """
        try:
            self.load_training_state(resume_state)
        except LNCAError:  # another cause, such as a lost peer
            raise
        except Exception as error:  # missing, superfluous or misshapen entries can raise anything
            raise ConfigError(
                f'{self.opt["path"].get("resume_state")}: is of a training with other options ({one_line(error)}); '
                'resume with those, or start a run of another name with the network under path.pretrain_network_g'
            ) from error

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`training_state` and :meth:`rank_state` returned.

        The lengths of unfinished phases, the schedules and the hyperparameters of the optimizers may have changed; the
        options take precedence over the state.

        Args:
            state: the training state.

        Raises:
            Exception: of any type, if the state does not fit the options.
        """
        self._check_phases(state['phases'], state['iter'])
        self._compare_optimizers(state['optim_g'])
        for optimizer, saved in zip(self.optimizers, state['optimizers'], strict=True):
            load_optimizer_state(optimizer, saved)
        for scheduler, saved in zip(self.schedulers, state['schedulers'], strict=True):
            scheduler.load_state_dict({key: saved[key] for key in ('last_epoch', '_step_count')})
        self.skipped = state['skipped']
        self.iteration = state['iter']
        # Start the phase here, for runs that were interrupted after the last iteration and only have to be scored.
        self.start_phase(phase_at(self.phases, self.iteration))

    def _check_phases(self, before: Sequence[tuple[str, int]], done: int) -> None:
        """Raise ValueError if an option change affects phases or iterations that are done.

        Args:
            before: names and numbers of iterations of the phases of the checkpoint.
            done: number of finished iterations.
        """
        names, names_before = [phase.name for phase in self.phases], [name for name, _ in before]
        if names != names_before:
            raise ValueError(f'its phases are {", ".join(names_before)}, not {", ".join(names)}')
        for phase, (name, iters) in zip(self.phases, before, strict=True):
            done_of_phase = min(done, iters)
            is_over = done > iters  # a phase may still become longer right after its last iteration
            if phase.iters < done_of_phase or (is_over and phase.iters != iters):
                raise ValueError(
                    f'of the {iters:,} iterations of its phase {name}, {done_of_phase:,} are done, and '
                    f'{phase.where}.iters is {phase.iters:,}'
                )
            done -= done_of_phase

    def _compare_optimizers(self, before: Sequence[Mapping[str, Any]]) -> None:
        """Log changes of the optimizer options.

        Args:
            before: ``optim_g`` of each phase of the checkpoint.

        Raises:
            ValueError: if a type has changed, since optimizers of another type cannot use the state.
        """
        now = [phase.options['optim_g'] for phase in self.phases]
        types_before, types = ([options['type'] for options in each] for each in (before, now))
        if types != types_before:
            raise ValueError(f'its optimizers are {", ".join(types_before)}, not {", ".join(types)}')
        for phase, old, new in zip(self.phases, before, now, strict=True):
            changes = [
                f'{name} from {old.get(name, "the default")} to {new.get(name, "the default")}'
                for name in sorted(old.keys() | new.keys())
                if old.get(name) != new.get(name)
            ]
            if changes:
                get_root_logger().info(f'{phase.where}.optim_g: changed {", ".join(changes)}.')
