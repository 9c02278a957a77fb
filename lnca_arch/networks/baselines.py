"""NAFNet and Restormer, the networks that the automata are compared with.

They are spandrel's, with the official arguments and parameter names, so that official checkpoints load unchanged.
NAFNet (Chen et al., 2022; MIT) takes images of any size and pads them with zeros.
"""

import logging
import warnings
from typing import Any

from torch import Tensor, nn

from lnca_arch.networks.automaton_network import pad_to_multiple
from lnca_utils.errors import InstallationError

with warnings.catch_warnings():
    # Other networks of spandrel use torch.jit.script, which is deprecated.
    warnings.simplefilter('ignore', FutureWarning)
    from spandrel.architectures.NAFNet import NAFNet

    try:
        from spandrel_extra_arches.architectures.Restormer import Restormer as _Restormer
    except ModuleNotFoundError:
        _Restormer = None

__all__ = ['NAFNet', 'Restormer']


class Restormer(_Restormer or nn.Module):  # type: ignore[misc]
    """Restormer (Zamir et al., 2022) for images ``(N, 3, H, W)`` of any size.

    It needs the extra ``restormer-noncommercial``, since its licence allows non-commercial use only.

    Args:
        options: arguments of the official implementation: dim, num_blocks, num_refinement_blocks, heads,
            ffn_expansion_factor, bias, LayerNorm_type, ... The defaults are those of its paper.

    Raises:
        InstallationError: if the extra is not installed.
    """

    STRIDE = 8
    licence_notice = "Restormer's licence allows non-commercial use only: https://github.com/swz30/Restormer"

    def __init__(self, **options: Any) -> None:
        if _Restormer is None:
            raise InstallationError(
                'Restormer is an extra, since its licence forbids commercial use; for other use: '
                'pip install -e ".[restormer-noncommercial]"'
            )
        super().__init__(**options)
        # Checks of option files build networks on the meta device; these need no notice.
        if self.output.weight.device.type != 'meta':
            logging.getLogger('lnca').warning(self.licence_notice)

    def forward(self, image: Tensor) -> Tensor:
        """Restore images ``(N, 3, H, W)`` in [0, 1]."""
        height, width = image.shape[-2:]
        return super().forward(pad_to_multiple(image, self.STRIDE))[..., :height, :width]
