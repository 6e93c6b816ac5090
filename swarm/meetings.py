"""What cells say to each other in outer rounds, and the copies that neighbours of the ends keep."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from swarm.messages import CellName, Count, Digest, StageIndex
from transport.wire import Body, Lane


class OuterDelta(Body):
    """A cell's delegate -> the round's owner: anchor minus weights, one flat float32 tensor.

    `anchor` is how many outer rounds made the anchor; only equal anchors are averaged. `iteration`
    is how many the cell has done: once it does the next, it waits for this round no more.
    """

    kind: ClassVar[str] = "outer_delta"
    lane: ClassVar[Lane] = "bulk"

    cell: CellName
    stage: StageIndex
    iteration: Count
    anchor: Count
    anchor_digest: Digest


class OuterMean(Body):
    """Owner -> delegates: the mean of the members' outer gradients. Members are cell names.

    `iterations` are those of the outer gradients averaged, in the order of the members: who has
    sent a newer one since is no member of this mean.
    """

    kind: ClassVar[str] = "outer_mean"
    lane: ClassVar[Lane] = "bulk"

    stage: StageIndex
    anchor: Count
    anchor_digest: Digest
    members: Annotated[tuple[CellName, ...], Field(min_length=1, max_length=4096)]
    iterations: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4096)]


class OuterAnchor(Body):
    """A delegate -> one of another cell that came and could not be averaged: anchor and momentum.

    Two flat float32 tensors. They are those that the sender's round made, or has if it made none. The
    receiver's cell moves its weights by the difference of the anchors, so that its own outer gradient
    is kept for the next round. `iteration` is that of the outer gradient which this answers.
    """

    kind: ClassVar[str] = "outer_anchor"
    lane: ClassVar[Lane] = "bulk"

    cell: CellName
    stage: StageIndex
    iteration: Count
    anchor: Count


class EndsCopy(Body):
    """Data node -> neighbours of the ends: CheckFree+ copy of stage 0's weights, flat."""

    kind: ClassVar[str] = "ends_copy"
    lane: ClassVar[Lane] = "bulk"

    cell: CellName
    iteration: Count


MEETING_KINDS: tuple[type[Body], ...] = (OuterDelta, OuterMean, OuterAnchor, EndsCopy)
"""Spoken on the work link."""
