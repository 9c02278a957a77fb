"""Folding of the weight and bias of layer norms into the linear map that follows."""

import torch.nn.functional as F
from torch import Tensor, nn

# Weight (out, in) and bias (out).
Linear = tuple[Tensor, Tensor]


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the linear map whose result after :func:`normalize` is that of ``weight`` and ``bias`` after ``norm``."""
    folded_bias = weight @ norm.bias
    return weight * norm.weight, folded_bias if bias is None else bias + folded_bias


def linear(x: Tensor, linear_map: Linear) -> Tensor:
    """Apply a linear map to ``(..., in)``."""
    weight, bias = linear_map
    # Not F.linear's bias: on a CPU it is copied to every row before the product, while a separate sum is fused with the
    # next operation.
    return F.linear(x, weight) + bias


def normalize(x: Tensor, eps: float) -> Tensor:
    """Apply a layer norm without weight and bias to ``(..., C)``."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)
