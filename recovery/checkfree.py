"""CheckFree: a lost body stage rebuilt from the stages beside it (arXiv 2506.15461).

    W_i <- (w_below W_below + w_above W_above) / (w_below + w_above),   w = ||grad W||^2

More weight goes to the neighbour that is further from converged. The paper's text squares the
gradient norm; its published code uses the norm itself plus 1e-4, taken after clipping, which
turns into a plain mean as soon as both neighbours clip. We square, as the paper says. Clipping here is
by the global norm, which scales both neighbours alike, so their ratio is that from before it.

The stage then starts with fresh optimizer moments and its learning rate times `LR_FACTOR`, once:
the factor is set on the base rate and never compounds over repeated losses.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

LR_FACTOR = 1.1
"""Learning rate of a rebuilt stage, relative to the schedule's (the paper's value)."""


def gradient_weight(norm: float) -> float:
    """The weight of a neighbour whose last gradient had this norm: its square.

    A norm that is not a finite, non-negative number counts as unknown, that is as zero.
    """
    square = norm * norm
    return square if norm >= 0 and isfinite(square) else 0.0


def shares(weight_below: float, weight_above: float) -> tuple[float, float]:
    """Weights as shares that add up to one; two zero weights are a half each."""
    total = weight_below + weight_above
    if not total > 0 or not isfinite(total):
        return (0.5, 0.5)
    return (weight_below / total, weight_above / total)


def neighbour_average(below: Tensor, above: Tensor, weight_below: float, weight_above: float) -> Tensor:
    """The rebuilt stage: a new flat tensor [n] in the dtype of `below`, computed in float32.

    Neither the lost weights nor anything else of the lost stage enters. Raises ValueError for
    neighbours of different size; `fit_layers` makes a stage of one layer more or less fit.
    """
    if below.shape != above.shape:
        raise ValueError(f"neighbours differ in size: {tuple(below.shape)} and {tuple(above.shape)}")
    _, share_above = shares(weight_below, weight_above)
    # lerp returns equal neighbours unchanged, bit for bit; a sum of two products would not.
    return torch.lerp(below.float(), above.float(), share_above).to(below.dtype)


def fit_layers(weights: Tensor, layers: int, wanted: int) -> Tensor:
    """A stage of `layers` equal layers, flat [layers * n], as one of `wanted` layers: [wanted * n].

    An even split leaves some stages a layer larger than others. Whole layers are repeated or left
    out at even distances, because a part of a layer means nothing. Raises ValueError if the
    tensor is not `layers` equal layers.
    """
    if layers < 1 or wanted < 1 or weights.dim() != 1 or weights.numel() % layers:
        raise ValueError(f"{tuple(weights.shape)} is not {layers} equal layers to make {wanted} of")
    chosen = torch.arange(wanted, device=weights.device) * layers // wanted
    return weights.reshape(layers, -1)[chosen].reshape(-1)
