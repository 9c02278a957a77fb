"""Training of an automaton with a sample pool (paper section 2.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_model import distributed
from lnca_model.config.model_checks import training_sizes
from lnca_model.models.restoration_model import RestorationModel
from lnca_model.training.phases import Phase
from lnca_model.training.sample_pool import SamplePool
from lnca_utils.errors import ConfigError

from basicsr.utils.registry import MODEL_REGISTRY

POOL_SIZE = 1024
TRAINING_STEPS = (8, 32)
SHOWN_IMAGES, SHOWN_STEPS = 6, (0, 4, 8, 16, 32)


@MODEL_REGISTRY.register()
class AutomatonModel(RestorationModel):
    """Trains an automaton that works on pixels, such as PixelViTCA, with a sample pool.

    An iteration takes two optimizer steps: one on a rollout from fresh seeds, whose final states enter the pool, and
    one on a rollout from states drawn from the pool, whose final states replace them.

    Options, in the block ``train.automaton``:
        iters, optim_g, scheduler: length, optimizer and learning-rate schedule of the phase.
        pool_size: number of states in the pool, divided among the ranks.
        steps: ``[least, most]``: inclusive bounds of the number of steps, which is drawn for every rollout.
        activation_checkpointing: steps to recompute in the backward pass, which saves memory: ``full``, ``alternate``
            or ``none``. Default: chosen by the size of the activations.
        max_gradient_growth: limit of the gradient norm of an image's state, as a multiple of the norm at the last step,
            see :class:`~lnca_arch.acceleration.fused_rollout.GradientGrowthLimit`. Default: no limit.
        reconstruction_opt, ssim_opt: ``loss(restored, gt)``.
        output_overflow_opt, hidden_overflow_opt: ``loss(channels of the final state)``.
    """

    network: AutomatonNetwork
    phase_names: ClassVar[tuple[str, ...]] = ('automaton',)
    on_divergence = 'rollback'
    known_losses: ClassVar[Mapping[str, tuple[str, ...]]] = {
        'automaton': ('reconstruction', 'ssim', 'output_overflow', 'hidden_overflow')
    }

    @classmethod
    @override
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        super().check_phase(phase, opt)
        if phase.name != 'automaton':
            return
        least, most = phase.options.get('steps', TRAINING_STEPS)
        if least > most:
            raise ConfigError(f'{phase.where}.steps must be [least, most], such as [8, 32], got {[least, most]}')

    @classmethod
    @override
    def check_network(cls, network: nn.Module, opt: Mapping[str, Any]) -> None:
        super().check_network(network, opt)
        if not isinstance(network, AutomatonNetwork):
            raise ConfigError(
                f'network_g: {opt["network_g"]["type"]} has no automaton; use model_type: RestorationModel'
            )

    @override
    def init_training_settings(self) -> None:
        super().init_training_settings()
        options = self.opt['train']['automaton']
        self.pool = SamplePool(max(options.get('pool_size', POOL_SIZE) // distributed.world_size(), 1))
        self.steps = options.get('steps', TRAINING_STEPS)
        # All ranks draw the same numbers of steps, so that none waits for another.
        seed = distributed.broadcast_from_rank0(lambda: self.opt.get('manual_seed') or 0)
        self.step_draws = torch.Generator().manual_seed(seed)
        self.network.automaton.activation_checkpointing = options.get('activation_checkpointing')
        if not self.opt['train'].get('paper_exact'):
            self.network.automaton.max_gradient_growth = options.get('max_gradient_growth')

    @override
    def trainable_module(self, phase: Phase) -> nn.Module:
        return self.network.automaton

    @override
    def train_on_batch(self) -> None:
        # The pool stores only the mutable channels. The input channels are computed again, since the encoder may have
        # changed since then.
        in_channels = self.network.automaton.in_channels
        seed, skip = self.seed(self.lq)
        state = self.rollout_and_optimize(seed, skip, self.gt)
        if state is not None:
            self.pool.add(self.gt, self.lq, state[:, in_channels:])
        if not len(self.pool):
            return

        drawn = self.pool.draw(len(self.gt))
        seed, skip = self.seed(drawn.lq)
        state = self.rollout_and_optimize(torch.cat([seed[:, :in_channels], drawn.state], dim=1), skip, drawn.gt)
        if state is not None:
            self.pool.write_back(drawn.indices, state[:, in_channels:])

    def seed(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the state before the first step, and the skip connection if there is one.

        They carry gradients only if the phase trains the whole network.
        """
        with torch.set_grad_enabled(self.trainable_module(self.phase) is self.network):
            return self.network.seed(image)

    def rollout_and_optimize(self, state: Tensor, skip: Tensor | None, gt: Tensor) -> Tensor | None:
        """Run a rollout from a state, and take an optimizer step on the losses of the final state.

        Args:
            state: ``(N, state_channels, H, W)``.
            skip: skip connection of the encoder, if there is one.
            gt: ground truth, ``(N, C, H, W)``.

        Returns:
            The final state, or None if the step was skipped.
        """
        least, most = self.steps
        steps = int(torch.randint(least, most + 1, (), generator=self.step_draws))
        state = self.network.automaton(state, steps, self.network.update_rate)
        is_stepped = self.optimizer_step(self.compute_losses(state, skip, gt))
        largest = state.detach().abs().amax()
        self.log_dict['state_max'] = torch.maximum(largest, self.log_dict.get('state_max', largest))
        return state.detach() if is_stepped else None

    def compute_losses(self, state: Tensor, skip: Tensor | None, gt: Tensor) -> dict[str, Tensor]:
        """Compute the losses of a final state.

        Args:
            state, skip, gt: as in :meth:`rollout_and_optimize`.

        Returns:
            Name → scalar loss.
        """
        automaton, losses = self.network.automaton, self.losses[self.phase.name]
        needs_image = losses.keys() & {'reconstruction', 'ssim'}
        restored = self.network.render(state, skip) if needs_image else None
        inputs = {
            'reconstruction': (restored, gt),
            'ssim': (restored, gt),
            'output_overflow': (automaton.output(state),),
            'hidden_overflow': (automaton.hidden(state),),
        }
        return {name: losses[name](*tensors) for name, tensors in inputs.items() if name in losses}

    @override
    def restore_snapshot(self, snapshot: Mapping[str, Any]) -> None:
        super().restore_snapshot(snapshot)
        self.pool.clear()  # its states may come from the diverged rule, and could make training diverge again

    @override
    def intermediate_images(self) -> dict[str, Tensor]:
        with self.eval_mode() as network:
            assert isinstance(network, AutomatonNetwork)  # check_network
            steps = [*(count for count in SHOWN_STEPS if count < network.steps), network.steps]
            frames = network.intermediate_outputs(self.lq[:SHOWN_IMAGES], steps)
        return {f'{count} steps': images for count, images in zip(steps, frames, strict=True)}

    @override
    def training_state(self) -> dict[str, Any]:
        return {**super().training_state(), 'step_draws': self.step_draws.get_state()}

    @override
    def rank_state(self) -> dict[str, Any]:
        return {**super().rank_state(), 'pool': self.pool.state_dict()}

    @override
    def load_training_state(self, state: Mapping[str, Any]) -> None:
        super().load_training_state(state)
        self.step_draws.set_state(state['step_draws'])
        pools = [rank['pool'] for rank in state['ranks']]
        filled = [pool['tensors'] for pool in pools if pool['tensors']]
        sizes = {tuple(tensors['gt'].shape[-2:]) for tensors in filled}
        if (expected := training_sizes(self.opt)) and not sizes <= expected:
            raise ValueError(f'its pool has tiles of {sizes}, and datasets.train has {expected}')
        channels = {tensors['state'].shape[1] for tensors in filled}
        if not channels <= {mutable := self.network.automaton.mutable_channels}:
            raise ValueError(f'its pool keeps {channels} channels of a state, and steps change {mutable}')
        if len(pools) == distributed.world_size():
            self.pool.load_state_dict(pools[distributed.rank()], self.device)
        else:
            self.pool.load_shard(pools, distributed.rank(), distributed.world_size(), self.device)
