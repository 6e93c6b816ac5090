"""Machine part: forwards of a slot that this node has not begun, because its own plan is on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swarm.messages import CellRecord, Forward, Plan, Roster
from swarm.pipeline.checks import neighbour
from swarm.pipeline.records import in_reach, roster_nodes
from transport.machine import NodeId

SLOTS_AHEAD = 2
"""How far after the last decided record: others may have one commit that is still on its way here."""
BEFORE_ANY_PLAN = 16
"""Forwards that are kept before a first plan has said how many this node may hold."""
UNNAMED_MAX = 4
"""Of nodes that no roster known here names: the plan to come may, if they are newcomers."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One forward, and which node sent it."""

    peer: NodeId
    body: Forward
    payload: Any


class Early:
    """What waits for its plan: no more than the plan would have let in, one attempt of each microbatch."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, str, int, int], Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def keep(self, entry: Waiting, last: CellRecord | None, planned: Roster, held_max: int) -> str:
        """Keep it for its slot. Returns why not, or an empty text.

        last: the newest decided record. planned: the roster of the plan at hand, if any.
        held_max: microbatches that this node may hold in a slot, 0 before the first plan.
        """
        body, peer = entry.body, entry.peer
        if last is None or body.cell != last.cell or peer != neighbour(body):
            return "of no slot to come"
        if not last.slot < body.slot <= last.slot + SLOTS_AHEAD or not in_reach(body.term, last.term):
            return "of no slot to come"
        place = (body.slot, body.path[0][0], body.microbatch, body.position)
        older = self._waiting.get(place)
        if older is not None:
            newer = (body.term, body.attempt) > (older.body.term, older.body.attempt)
            if not newer or older.peer != peer:
                return "of a place that is taken"
        elif len(self._waiting) >= (held_max or BEFORE_ANY_PLAN):
            return "with too many for a later slot before it"
        elif not self._named(peer, last, planned) and self._unnamed(last, planned) >= UNNAMED_MAX:
            return "of no member of the cell"
        self._waiting[place] = entry
        return ""

    @staticmethod
    def _named(peer: NodeId, last: CellRecord, planned: Roster) -> bool:
        return peer in roster_nodes(last.roster) or peer in roster_nodes(planned)

    def _unnamed(self, last: CellRecord, planned: Roster) -> int:
        return sum(not self._named(entry.peer, last, planned) for entry in self._waiting.values())

    def take(self, plan: Plan) -> list[Waiting]:
        """What is of this plan. What is of earlier ones, or of another cell, is forgotten."""
        now = (plan.slot, plan.term)
        ours = {place: entry for place, entry in self._waiting.items() if entry.body.cell == plan.cell}
        self._waiting = {p: entry for p, entry in ours.items() if (entry.body.slot, entry.body.term) > now}
        return [entry for entry in ours.values() if (entry.body.slot, entry.body.term) == now]
