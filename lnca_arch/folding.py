"""Layer norms whose weight and bias have gone into the linear map that follows."""

import torch.nn.functional as F
from torch import Tensor, nn

# Weight (out, in) and bias (out).
Linear = tuple[Tensor, Tensor]


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Linear:
    """The linear map that does after :func:`normalize` what ``weight`` and ``bias`` do after ``norm``."""
    folded = weight @ norm.bias
    return weight * norm.weight, folded if bias is None else bias + folded


def normalize(x: Tensor, eps: float) -> Tensor:
    """A layer norm of ``(..., C)`` without weight and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)
