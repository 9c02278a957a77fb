"""Which network a checkpoint is of: its kind and sizes, read from the names and shapes of its parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lnca_arch.networks.latent_networks import LatentNAFCA, LatentViTCA
from lnca_arch.networks.pixel_vitca import PixelViTCA

Weights = Mapping[str, Tensor]

# Names that every checkpoint of a kind has, and no other.
AUTOENCODER = ('autoencoder.encoder.down1.conv.weight', 'autoencoder.encoder.down2.conv.weight')
NAFCA_RULE = ('automaton.perception_norm.weight', 'automaton.embed.weight', 'automaton.ffn_expand.weight')
VITCA_RULE = ('automaton.embed.weight', 'automaton.qkv.weight', 'automaton.mlp_in.weight', 'automaton.head.weight')
NAMES = {
    LatentNAFCA: (*AUTOENCODER, *NAFCA_RULE),
    LatentViTCA: (*AUTOENCODER, *VITCA_RULE),
    PixelViTCA: VITCA_RULE,
}
# Names that only checkpoints of networks have that were made with an option, and the option.
TRACES = {'blend.share.weight': ('blend', True), 'automaton.neighbours.weight': ('perception', 'depthwise')}


class ArchSpec(NamedTuple):
    """A network's class and the sizes to make it with."""

    kind: type[nn.Module]
    sizes: dict[str, Any]


def detect(weights: Weights) -> ArchSpec | None:
    """The network that a state dict is of, None if it is none of this package's, or has none's shapes.

    What leaves no trace in the shapes keeps its default: a ViTCA's ``heads``, a NAFCA's ``dropout``,
    ``update_rate`` and ``steps``.
    """
    for kind, names in NAMES.items():
        if all(name in weights for name in names):
            try:
                sizes = _SIZES[kind](weights)
            except (KeyError, IndexError, ZeroDivisionError):  # parameters of another name, or without channels
                return None
            if min(sizes.values()) <= 0:
                return None
            return ArchSpec(kind, sizes | {name: value for trace, (name, value) in TRACES.items() if trace in weights})
    return None


def _out(weights: Weights, name: str) -> int:
    return weights[f'{name}.weight'].shape[0]


def _in(weights: Weights, name: str) -> int:
    return weights[f'{name}.weight'].shape[1]


def _autoencoder(weights: Weights) -> dict[str, int]:
    downsamplings = 3 if 'autoencoder.encoder.down3.conv.weight' in weights else 2
    return {
        'image_channels': _in(weights, 'autoencoder.encoder.down1.conv'),
        'latent_channels': _out(weights, f'autoencoder.encoder.down{downsamplings}.conv'),
        'downsamplings': downsamplings,
    }


def _latent_nafca(weights: Weights) -> dict[str, int]:
    sizes, state = _autoencoder(weights), _out(weights, 'automaton.perception_norm')
    return {
        **sizes,
        'hidden_channels': state - 2 * sizes['latent_channels'],
        'embed_channels': _out(weights, 'automaton.embed'),
        'ffn_expand': _out(weights, 'automaton.ffn_expand') // state,
    }


def _vitca(weights: Weights) -> dict[str, int]:
    return {
        'embed_channels': _out(weights, 'automaton.embed'),
        'mlp_channels': _out(weights, 'automaton.mlp_in'),
    }


def _latent_vitca(weights: Weights) -> dict[str, int]:
    sizes = _autoencoder(weights)
    hidden = _in(weights, 'automaton.embed') - 2 * sizes['latent_channels']
    return {**sizes, 'hidden_channels': hidden, **_vitca(weights)}


def _pixel_vitca(weights: Weights) -> dict[str, int]:
    # A state is [in | out | hidden], of which the head gives all but the first.
    changing = _out(weights, 'automaton.head')
    image = _in(weights, 'automaton.embed') - changing
    return {'image_channels': image, 'hidden_channels': changing - image, **_vitca(weights)}


_SIZES = {LatentNAFCA: _latent_nafca, LatentViTCA: _latent_vitca, PixelViTCA: _pixel_vitca}
