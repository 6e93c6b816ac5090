"""What a leader needs to know to change who holds what, as one value with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from swarm.gossip.view import View
from swarm.messages import CellRecord, Restore
from transport.machine import NodeId
from transport.wire import Signed

How = Literal["holder", "other_cell", "plus_copy", "checkfree", "checkpoint", "seed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`taker` shall hold `stage`, with state from `donors` by `how`.

    same_state: other holders go on, so the cell waits at this slot until the taker has
        exactly their state. replaces: the node that gives the stage up to the taker.
    gives_up: stages of the taker that others hold too, which it drops for this one.
    neighbours: the stages that CheckFree rebuilds from.
    rehearse: it is not urgent, so before the cell waits the taker shows how long it needs.
    """

    taker: NodeId
    stage: int
    how: How
    donors: tuple[NodeId, ...]
    same_state: bool
    reason: str
    replaces: NodeId | None = None
    gives_up: tuple[int, ...] = ()
    neighbours: tuple[int, ...] = ()
    rehearse: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What a leader knows of whom it might ask, beyond what they say of themselves.

    busy: nodes not to be asked now. leaving: members on their way out. failed: (stage, source) ->
    how many orders came to nothing since the stage was lost. passed_over: standbys that no cell
    has taken for so long that the one they would be better in does not exist. lost_s: seconds
    since a stage lost its last holder.
    """

    busy: frozenset[NodeId] = frozenset()
    leaving: frozenset[NodeId] = frozenset()
    failed: Mapping[tuple[int, How], int] = field(default_factory=dict)
    passed_over: frozenset[NodeId] = frozenset()
    lost_s: Mapping[int, float] = field(default_factory=dict)


Place = Callable[[View, CellRecord, Asked], tuple[Placement, ...]]
"""(view, last record, what asking has shown) -> what to order now."""


def order_of(placement: Placement, record: CellRecord, signed: Signed, term: int) -> Restore:
    """What the taker is told. signed: the record, after which it takes the stage."""
    return Restore(
        cell=record.cell,
        slot=record.slot,
        term=term,
        stage=placement.stage,
        how=placement.how,
        donors=placement.donors,
        same_state=placement.same_state,
        rehearsal=placement.rehearse,
        neighbours=placement.neighbours,
        decided=signed,
        reason=placement.reason[:200],
    )
