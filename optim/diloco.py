"""DiLoCo (arXiv 2311.08105): workers train alone for H iterations, then average how far they came.

A round: delta_m = anchor - weights_m for every worker m; anchor' = outer(anchor, mean delta_m);
every worker goes on from anchor'. Inner moments stay with their worker, untouched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def outer_gradient(anchor: Tensor, weights: Tensor) -> Tensor:
    """How far a worker came since its anchor, uphill: anchor - weights, flat [n]."""
    return anchor - weights


def mean(deltas: Sequence[Tensor]) -> Tensor:
    """Mean of equally shaped tensors, added in the given order in float32.

    Floating point addition depends on its order: callers sort, so that whoever computes the
    mean gets the same bits. ValueError if there is nothing to average.
    """
    if not deltas:
        raise ValueError("the mean of no outer gradients")
    total = deltas[0].to(torch.float32, copy=True)
    for delta in deltas[1:]:
        total.add_(delta)
    return total.div_(len(deltas))
