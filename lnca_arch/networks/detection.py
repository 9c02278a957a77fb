"""Detection of a checkpoint's network from the names and shapes of its parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lnca_arch.networks.automaton_network import AutomatonNetwork
from lnca_arch.networks.latent_networks import LatentNAFCA, LatentViTCA
from lnca_arch.networks.pixel_vitca import PixelViTCA

Weights = Mapping[str, Tensor]

# Parameters by which a network is recognized. The order matters: a LatentViTCA has all parameter names of a PixelViTCA.
AUTOENCODER = ('autoencoder.encoder.down1.conv.weight', 'autoencoder.encoder.down2.conv.weight')
NAFCA_RULE = ('automaton.perception_norm.weight', 'automaton.embed.weight', 'automaton.ffn_expand.weight')
VITCA_RULE = ('automaton.embed.weight', 'automaton.qkv.weight', 'automaton.mlp_in.weight', 'automaton.head.weight')
NAMES: dict[type[AutomatonNetwork], tuple[str, ...]] = {
    LatentNAFCA: (*AUTOENCODER, *NAFCA_RULE),
    LatentViTCA: (*AUTOENCODER, *VITCA_RULE),
    PixelViTCA: VITCA_RULE,
}
# Optional parameter → the argument that creates it.
OPTION_OF_PARAMETER = {
    'blend.share.weight': ('blend', True),
    'automaton.neighbours.weight': ('perception', 'depthwise'),
}


class ArchSpec(NamedTuple):
    """A network's class and arguments."""

    kind: type[AutomatonNetwork]
    arguments: dict[str, Any]


def detect(weights: Weights) -> ArchSpec | None:
    """Return the network of a state dict, or None if it is not one of this package's.

    Arguments that the shapes do not determine keep their defaults: ``heads`` of a ViTCA, ``dropout`` of a NAFCA,
    ``update_rate`` and ``steps``.
    """
    for kind, names in NAMES.items():
        if all(name in weights for name in names):
            try:
                sizes = _SIZES[kind](weights)
            except (KeyError, IndexError, ZeroDivisionError):  # parameters are missing or have other shapes
                return None
            if min(sizes.values()) <= 0:
                return None
            options = dict(option for name, option in OPTION_OF_PARAMETER.items() if name in weights)
            return ArchSpec(kind, sizes | options)
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
    # The state is [in | out | hidden], and the head computes out and hidden.
    mutable = _out(weights, 'automaton.head')
    image = _in(weights, 'automaton.embed') - mutable
    return {'image_channels': image, 'hidden_channels': mutable - image, **_vitca(weights)}


_SIZES = {LatentNAFCA: _latent_nafca, LatentViTCA: _latent_vitca, PixelViTCA: _pixel_vitca}
