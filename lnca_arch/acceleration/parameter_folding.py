"""Layer norms whose weight and bias have gone into the linear map that follows."""

import torch.nn.functional as F
from torch import Tensor, nn

# Weight (out, in) and bias (out).
Linear = tuple[Tensor, Tensor]


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Linear:
    """The linear map that does after :func:`normalize` what ``weight`` and ``bias`` do after ``norm``."""
    folded = weight @ norm.bias
    return weight * norm.weight, folded if bias is None else bias + folded


def linear(x: Tensor, linear_map: Linear) -> Tensor:
    """A linear map of ``(..., in)``."""
    weight, bias = linear_map
    # Not F.linear's own bias: a processor copies that into every row before it multiplies, whereas a sum of its own is
    # compiled into what comes after it.
    return F.linear(x, weight) + bias


def normalize(x: Tensor, eps: float) -> Tensor:
    """A layer norm of ``(..., C)`` without weight and bias."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)
