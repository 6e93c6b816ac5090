"""What a leader needs to know to change who holds what, as one value with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from swarm.gossip.view import View
from swarm.messages import CellRecord
from transport.machine import NodeId

How = Literal["holder", "other_cell", "plus_copy", "checkfree", "checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`taker` shall hold `stage`, with state from `donors` by `how`.

    same_state: other holders go on, so the cell waits at this slot until the taker has
        exactly their state. replaces: the node that gives the stage up to the taker.
    gives_up: stages of the taker that others hold too, which it drops for this one.
    neighbours: the stages that CheckFree rebuilds from.
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


Place = Callable[[View, CellRecord, frozenset[NodeId], frozenset[NodeId]], tuple[Placement, ...]]
"""(view, last record, nodes not to be asked, members that are leaving) -> what to order now."""
