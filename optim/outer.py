"""Outer optimizers: how an anchor moves along the mean outer gradient. Free functions.

`delta` is an outer gradient, anchor minus weights: it points uphill, like any gradient.
Both return new tensors, so that a round which fails before its commit has changed nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor


def nesterov(anchor: Tensor, momentum: Tensor, delta: Tensor, lr: float, mu: float) -> tuple[Tensor, Tensor]:
    """Nesterov in the form of torch's SGD, DiLoCo's choice (arXiv 2311.08105).

    b' = mu b + delta; anchor' = anchor - lr (delta + mu b'). Returns (anchor', b').
    """
    momentum = momentum * mu + delta
    return anchor - (delta + momentum * mu) * lr, momentum


def heavy_ball(
    anchor: Tensor, momentum: Tensor, delta: Tensor, lr: float, mu: float
) -> tuple[Tensor, Tensor]:
    """Polyak's momentum, without the look-ahead: m' = mu m - lr delta; anchor' = anchor + m'.

    The form NoLoCo builds on (arXiv 2506.10911). Returns (anchor', m').
    """
    momentum = momentum * mu - delta * lr
    return anchor + momentum, momentum


OUTER_OPTIMIZERS: Mapping[str, Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]]] = (
    MappingProxyType({"nesterov": nesterov, "heavy_ball": heavy_ball})
)
"""By the names that a job file uses: (anchor, momentum, delta, lr, mu) to (anchor', momentum')."""
