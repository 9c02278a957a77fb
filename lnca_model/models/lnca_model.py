"""Training of the latent automata in the two phases of the paper (section 3.2), and optionally a third."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from lnca_arch.networks.latent_networks import LatentNetwork
from lnca_model.config.model_checks import pretrained_weights, training_sizes
from lnca_model.models.automaton_model import AutomatonModel
from lnca_model.training.phases import Phase
from lnca_utils.errors import ConfigError

from basicsr.utils.registry import MODEL_REGISTRY

SWAP_NOISE = 0.5


@MODEL_REGISTRY.register()
class LNCAModel(AutomatonModel):
    """Trains LatentNAFCA or LatentViTCA: first the autoencoder, then the automaton in its frozen latent space.

    With a block ``train.joint``, a third phase, which the paper lacks, trains both together.

    Options, in the block ``train.autoencoder``:
        iters, optim_g, scheduler: length, optimizer and learning-rate schedule of the phase.
        reconstruction_opt: ``loss(reconstructions, images)`` of clean, corrupted and negative images (equation 3).
        distance_opt: ``loss(latent of clean, of corrupted, of negative)`` (equation 4).
        task_opt: ``loss(reconstruction of corrupted, corrupted, clean)`` (equation 5).
        equivalence_opt: ``loss(decoded from clean latent and corrupted skip, decoded from corrupted latent and clean
            skip, clean, corrupted)`` (equation 6), in a second optimizer step.
        swap_noise_std: standard deviation of ε in equation 6. Default: 0.5.

    Options, in the block ``train.automaton``, in addition to those of :class:`AutomatonModel`:
        latent_opt: ``loss(output channels, latent of gt)`` (equation 8).

    Options, in the block ``train.joint``, which uses ``pool_size`` and ``steps`` of ``train.automaton``:
        iters, optim_g, scheduler: as in ``train.autoencoder``.
        reconstruction_opt, ssim_opt, output_overflow_opt, hidden_overflow_opt: as in ``train.automaton``.

    In the joint phase, batch norms use their running statistics, as in inference. A network's ``blend`` is trained in
    this phase only.
    """

    network: LatentNetwork
    phase_names: ClassVar[tuple[str, ...]] = ('autoencoder', 'automaton', 'joint')
    optional_phases = ('joint',)
    known_losses: ClassVar[Mapping[str, tuple[str, ...]]] = {
        'autoencoder': ('reconstruction', 'distance', 'task', 'equivalence'),
        'automaton': ('reconstruction', 'ssim', 'latent', 'output_overflow', 'hidden_overflow'),
        'joint': ('reconstruction', 'ssim', 'output_overflow', 'hidden_overflow'),
    }

    @classmethod
    @override
    def check_phase(cls, phase: Phase, opt: Mapping[str, Any]) -> None:
        super().check_phase(phase, opt)
        if phase.name != 'autoencoder':
            return
        if phase.iters == 0 and not (opt['path'].get('pretrain_network_g') or opt['path'].get('resume_state')):
            raise ConfigError(
                f'{phase.where}.iters is 0, so the autoencoder stays untrained; name a trained network under '
                'path.pretrain_network_g'
            )
        if (
            phase.iters
            and phase.options.get('distance_opt')
            and opt['datasets']['train'].get('batch_size_per_gpu') == 1
        ):
            raise ConfigError(
                'datasets.train.batch_size_per_gpu: 1 leaves no other image as the negatives of distance_opt; use at '
                'least 2, or leave distance_opt out'
            )

    @classmethod
    @override
    def check_network(cls, network: nn.Module, opt: Mapping[str, Any]) -> None:
        super().check_network(network, opt)
        if not isinstance(network, LatentNetwork):
            raise ConfigError(
                f'network_g: {opt["network_g"]["type"]} has no autoencoder; use LatentNAFCA or LatentViTCA, or '
                'model_type: AutomatonModel'
            )
        if network.blend is not None and opt['is_train']:
            joint = opt['train'].get('joint') or {}
            is_pretrained = any(name.startswith('blend.') for name in pretrained_weights(network, opt))
            if not joint.get('iters') and not is_pretrained:
                raise ConfigError(
                    'network_g.blend: only the phase train.joint trains it; add that as in '
                    'options/lnca_plus_photos.yml, name a network with a trained blend under path.pretrain_network_g, '
                    'or leave blend out'
                )
        for height, width in training_sizes(opt):
            if height % network.stride or width % network.stride:
                raise ConfigError(
                    f'datasets.train: tiles of {height}×{width} do not divide by {network.stride}, the stride of the '
                    'autoencoder; pack the dataset with another --tile-size, or change network_g.downsamplings'
                )

    @override
    def trainable_module(self, phase: Phase) -> nn.Module:
        parts = {'autoencoder': self.network.autoencoder, 'automaton': self.network.automaton}
        return parts.get(phase.name, self.network)

    @override
    def start_phase(self, phase: Phase) -> None:
        super().start_phase(phase)
        if phase.name == 'joint':
            for module in self.network.autoencoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    @override
    def train_on_batch(self) -> None:
        if self.phase.name != 'autoencoder':
            super().train_on_batch()
            return
        for losses in (self.reconstruction_losses, self.equivalence_losses):
            if computed := losses(self.gt, self.lq):
                self.optimizer_step(computed)

    def reconstruction_losses(self, anchor: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """Compute the losses of the first optimizer step of an autoencoder iteration.

        Args:
            anchor: the clean images, ``(N, C, H, W)``.
            positive: the same images corrupted.

        Returns:
            Name → scalar loss; empty if there is none.
        """
        losses, autoencoder = self.losses['autoencoder'], self.network.autoencoder
        if losses.keys() <= {'equivalence'}:
            return {}
        images = [anchor, positive]
        if len(anchor) > 1:
            images.append(anchor[derangement(len(anchor)).to(anchor.device)])
        latent, skip = autoencoder.encode(torch.cat(images))
        reconstruction = autoencoder.decode(latent, skip)
        inputs = {
            'reconstruction': (reconstruction, torch.cat(images)),
            'distance': latent.chunk(3),
            'task': (reconstruction[len(anchor) : 2 * len(anchor)], positive, anchor),
        }
        return {name: losses[name](*tensors) for name, tensors in inputs.items() if name in losses}

    def equivalence_losses(self, anchor: Tensor, positive: Tensor) -> dict[str, Tensor]:
        """Compute the loss of the second optimizer step of an autoencoder iteration.

        Each latent is decoded with the skip connection of the other image. Arguments and result are those of
        :meth:`reconstruction_losses`.
        """
        losses, autoencoder = self.losses['autoencoder'], self.network.autoencoder
        if 'equivalence' not in losses:
            return {}
        latent, skip = autoencoder.encode(torch.cat([anchor, positive]))
        latent_anchor, latent_positive = latent.chunk(2)
        deviation = self.opt['train']['autoencoder'].get('swap_noise_std', SWAP_NOISE)
        latent_anchor = latent_anchor + deviation * torch.randn_like(latent_anchor)
        swapped = autoencoder.decode(torch.cat([latent_anchor, latent_positive]), skip.roll(len(anchor), dims=0))
        return {'equivalence': losses['equivalence'](*swapped.chunk(2), anchor, positive)}

    @override
    def compute_losses(self, state: Tensor, skip: Tensor | None, gt: Tensor) -> dict[str, Tensor]:
        losses = super().compute_losses(state, skip, gt)
        latent_loss = self.losses[self.phase.name].get('latent')
        if latent_loss:
            with torch.no_grad():
                latent, _ = self.network.autoencoder.encode(gt)
            losses['latent'] = latent_loss(self.network.automaton.output(state), latent)
        return losses

    def restore(self, network: nn.Module) -> Tensor:
        """Return the restored images; in the autoencoder phase, those that a perfect automaton would give.

        The latter are decoded from the latents of the clean images and the skip connections of the corrupted ones. They
        are not blended with the input, since the blend is untrained in this phase.
        """
        if not self.is_oracle_eval:
            return super().restore(network)
        assert isinstance(network, LatentNetwork)  # check_network
        latent, _ = network.autoencoder.encode(self.gt)
        _, skip = network.autoencoder.encode(self.lq)
        return network.autoencoder.decode(latent, skip)

    @override
    def intermediate_images(self) -> dict[str, Tensor]:
        return {} if self.is_oracle_eval else super().intermediate_images()

    @property
    @override
    def is_oracle_eval(self) -> bool:
        return self.is_train and self.phase is not None and self.phase.name == 'autoencoder'

    @property
    @override
    def score_label(self) -> str:
        return 'ceiling of the autoencoder' if self.is_oracle_eval else super().score_label


def derangement(count: int) -> Tensor:
    """Draw a derangement, a permutation without fixed points, uniformly at random.

    Args:
        count: number of elements, at least 2.

    Returns:
        ``(count,)`` indices.

    Raises:
        ValueError: if ``count`` is below 2.
    """
    if count < 2:
        raise ValueError(f'{count} elements have no derangement')
    identity = torch.arange(count)
    # On average this takes e ≈ 2.7 tries.
    while True:
        permutation = torch.randperm(count)
        if not (permutation == identity).any():
            return permutation
