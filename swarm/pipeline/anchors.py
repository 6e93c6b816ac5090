"""What outer rounds make of a stage's anchor: means of outer gradients, moves, and anchors of other cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from optim.diloco import mean
from optim.outer import OUTER_OPTIMIZERS
from swarm.job import OuterSection
from swarm.meetings import OuterAnchor
from swarm.pipeline.stage import Stage
from swarm.pipeline.work import Average, Settle, ShipAnchor, ShipFlat
from transport.wire import Message

Read = Callable[[tuple[Any, ...]], tuple[Tensor, ...] | None]
"""Tensors, or messages that carry them -> their tensors; None if one cannot be read."""
Moved = tuple[tuple[Tensor, ...], int, str]
"""(anchor and momentum, by how many rounds, reason); without tensors the stage was not averaged."""


def average(effect: Average, read: Read) -> tuple[Average, Tensor | None]:
    """(whose outer gradients can be read and are finite, their mean [n], or None if none can).

    n: parameters of the stage, flat float32. The mean is that of DiLoCo (arXiv 2311.08105).
    """
    named = zip(effect.members, effect.parts, strict=True)
    flat = [(cell, tensors[0]) for cell, part in named if (tensors := read((part,)))]
    good = [(cell, tensor) for cell, tensor in flat if bool(torch.isfinite(tensor).all())]
    parts = tuple(tensor for _, tensor in good)
    return Average(effect.stage, tuple(cell for cell, _ in good), parts), mean(parts) if good else None


def moved(effect: Settle, stage: Stage | None, read: Read, outer: OuterSection) -> Moved:
    """Where a round takes the anchor of a stage: anchor and momentum, [n] each, float32 on the CPU.

    By a mean with the job's outer optimizer, which see, or to those of another cell. Not by a mean that
    was made for another anchor than the present one, which would apply it twice, and not to the anchor
    that is there already, which would call a round what moved nothing. The reason says so.
    """
    payload = effect.adopted if effect.adopted is not None else effect.mean
    if payload is None or stage is None:
        return (), 0, effect.reason
    tensors = read((payload,))
    if tensors is None or not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return (), 0, "not averaged: another cell sent what cannot be read"
    if effect.adopted is not None:
        count = cast(OuterAnchor, cast(Message, effect.adopted).body).anchor
        if count == stage.anchor_count and torch.equal(tensors[0], stage.anchor.cpu()):
            return (), 0, "not averaged: the anchor that came for it is the same"
        return tensors, count, effect.reason
    if effect.anchor != stage.anchor_count:
        return (), 0, "not averaged: the anchor has moved meanwhile"
    move = OUTER_OPTIMIZERS[outer.optimizer]
    anchor, momentum = stage.anchor.cpu(), stage.outer_momentum.cpu()
    return move(anchor, momentum, tensors[0], outer.lr, outer.momentum), effect.anchor + 1, effect.reason


def shipped(
    to: ShipAnchor, cell: str, stage: Stage, made: tuple[Tensor, ...] = (), count: int = 0
) -> ShipFlat:
    """Anchor and momentum for a delegate with others: those that a round made, or the present ones."""
    count = count if made else stage.anchor_count
    body = OuterAnchor(cell=cell, stage=to.stage, iteration=to.iteration, anchor=count)
    return ShipFlat(to.peer, body, made or (stage.anchor.clone(), stage.outer_momentum.clone()))
