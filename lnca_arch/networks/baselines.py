"""The networks that the automata are compared with, from spandrel, which keeps the parameters' official names: official
checkpoints load unchanged. Their options are the official ones, too.

NAFNet (Chen et al., 2022; MIT) is spandrel's own: any H and W, padded with zeros to what its encoders divide by.
"""

import logging
import warnings
from typing import Any

from torch import Tensor, nn

from lnca_arch.networks.automaton_network import pad_to_multiple
from lnca_utils.errors import InstallationError

with warnings.catch_warnings():
    # Others of their networks use torch.jit.script.
    warnings.simplefilter('ignore', FutureWarning)
    from spandrel.architectures.NAFNet import NAFNet

    try:
        from spandrel_extra_arches.architectures.Restormer import Restormer as _Restormer
    except ModuleNotFoundError:
        _Restormer = None

__all__ = ['NAFNet', 'Restormer']


class Restormer(_Restormer or nn.Module):
    """Restormer (Zamir et al., 2022): ``(N, 3, H, W)`` → the same shape, any H and W. Licensed for non-commercial use
    only, hence an extra of this package.

    Args:
        options: dim, num_blocks, num_refinement_blocks, heads, ffn_expansion_factor, bias, LayerNorm_type, ...; all by
            keyword, the defaults being those of the paper.

    Raises:
        InstallationError: the extra is not installed.
    """

    STRIDE = 8
    licence_notice = "Restormer's licence allows non-commercial use only: https://github.com/swz30/Restormer"

    def __init__(self, **options: Any) -> None:
        if _Restormer is None:
            raise InstallationError(
                'Restormer comes as an extra, since its licence forbids commercial use; if yours is not: '
                'pip install -e ".[restormer-noncommercial]"'
            )
        super().__init__(**options)
        # Options are checked with a network on the meta device: nothing is used yet.
        if self.output.weight.device.type != 'meta':
            logging.getLogger('basicsr').warning(self.licence_notice)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return super().forward(pad_to_multiple(image, self.STRIDE))[..., :height, :width]
