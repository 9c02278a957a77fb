"""Folding of the weight and bias of layer norms into the linear map that follows."""

import torch.nn.functional as F
from torch import Tensor, nn

# Weight (out, in) and bias (out).
Linear = tuple[Tensor, Tensor]


def fold_norm(norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Linear:
    """Fold the weight and bias of a layer norm into the linear map that follows it.

    Returns:
        The linear map that, applied after :func:`normalize`, computes what ``weight`` and ``bias`` do after ``norm``.
    """
    folded_bias = weight @ norm.bias
    return weight * norm.weight, folded_bias if bias is None else bias + folded_bias


def linear(x: Tensor, linear_map: Linear) -> Tensor:
    """Apply a linear map to ``(..., in)``."""
    weight, bias = linear_map
    # The bias is added separately: on a CPU, F.linear copies it to every row before the product, while a separate
    # addition is fused with the next operation.
    return F.linear(x, weight) + bias


def normalize(x: Tensor, eps: float) -> Tensor:
    """Apply a layer norm without weight and bias to ``(..., C)``."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)
