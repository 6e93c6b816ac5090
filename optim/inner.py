"""AdamW on one flat tensor (arXiv 1711.05101), as a function and the state it moves.

A stage is one tensor, so one call updates all its parameters, and the state to hand to a
newcomer is three tensors and a count. `torch.optim.AdamW` computes the same numbers; it is
not used because its import alone costs a second of every node's start.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass(slots=True)
class AdamState:
    """Running moments of the gradient, flat [n], and how many steps made them."""

    mean: Tensor
    square: Tensor
    steps: int = 0

    @classmethod
    def fresh(cls, like: Tensor) -> AdamState:
        """Zero moments for a flat parameter."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))


def adamw_(
    parameters: Tensor,
    gradient: Tensor,
    state: AdamState,
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eps: float = 1e-8,
) -> None:
    """One step, in place on `parameters` and `state`; all tensors are flat [n].

    Element by element in a fixed order of operations, so equal inputs give equal bits:
    m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
    p = (1 - lr wd) p - lr (m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps).
    """
    state.steps += 1
    state.mean.lerp_(gradient, 1 - betas[0])
    state.square.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    mean_correction = 1 - betas[0] ** state.steps
    square_correction = 1 - betas[1] ** state.steps
    denominator = state.square.sqrt().div_(sqrt(square_correction)).add_(eps)
    parameters.mul_(1 - lr * weight_decay)
    parameters.addcdiv_(state.mean, denominator, value=-lr / mean_correction)
