"""Who is ordered to hold what, who is ready, who is counted out, and what is lost meanwhile.

The leader asks at every boundary; between boundaries answers and absences are only noted.
Every node keeps one, so that whoever leads next knows since when a stage is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from swarm.events import EventKind, Noted
from swarm.gossip.view import Member, View
from swarm.messages import CellRecord, Ready, Roster
from swarm.pipeline.asking import Asking
from swarm.planning.placement import Asked, Place, Placement, order_of
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed

ORDER_LIMIT_S = 300.0
"""An order that was not answered by then was lost; a large state over a thin link takes minutes."""
PASSED_OVER_MAX = 2
"""Records, but for rounds, without a taker that was ready, after which it is not planned with. One is
decided without it if it gets ready in the middle of a slot, or if one was abandoned for another's sake."""
MOVED_S = 10.0
"""How long a member must have said that it is in another cell: it may have taken this one with it."""
PAUSE_LIMIT_S = 60.0
"""How long a cell waits at one slot for a taker of what a leaver holds to have exactly its state."""
PAUSE_MAX_S = 300.0
"""How long it waits at most for a newcomer that has shown how long it needs."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An order that is not answered yet, and the slot and term that its answer has to name."""

    placement: Placement
    at: float
    of: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Taken:
    """A stage that its taker has: by which order, and when it was ready.

    passed_over: records decided since, but for rounds, that do not name it.
    """

    placement: Placement
    at: float
    since: float
    passed_over: int = 0


class Appointments:
    """Orders and absences of one cell."""

    def __init__(self, me: NodeId, place: Place) -> None:
        self.me = me
        self._place = place
        self._view = View()
        self._pending: dict[tuple[NodeId, int], Pending] = {}
        self._ready: dict[tuple[NodeId, int], Taken] = {}
        self._absent: set[tuple[NodeId, int]] = set()
        self._rehearsed: dict[tuple[NodeId, int], float] = {}
        self._seen: dict[NodeId, tuple[int, str]] = {}
        """Incarnation under which a member last said that it is in this cell, and the cell's name then."""
        self._moved: dict[NodeId, float] = {}
        """Since when a member that said so says that it is in another cell."""
        self._forgot: set[NodeId] = set()
        self._asking = Asking()
        self._lost: dict[int, float] = {}
        self.leaving: set[NodeId] = set()

    # -- who counts -------------------------------------------------------------------------

    def live(self, node: NodeId) -> bool:
        """Alive, not even suspected, and not back without its memory."""
        return self._reachable(node) and node not in self._forgot

    def _reachable(self, node: NodeId) -> bool:
        return node == self.me or self._view.status(node) == "alive"

    def gone(self, node: str, stage: int) -> bool:
        """Whether a holder will not come back with what it held."""
        node = NodeId(node)
        if (node, stage) in self._absent or node in self._forgot:
            return True
        return node != self.me and self._view.status(node) in ("dead", "left")

    def fit(self, node: str, stage: int) -> bool:
        """Fit to work on a stage now."""
        return self.live(NodeId(node)) and (node, stage) not in self._absent

    def fit_rows(self, roster: Roster) -> Roster:
        """The holders of each stage that work now."""
        return tuple(tuple(n for n in row if self.fit(n, s)) for s, row in enumerate(roster))

    def observe(self, view: View, record: CellRecord, now: float) -> None:
        """The view changed: orders to the dead and to other cells' are void; what nobody holds is lost."""
        self._view = view
        self._asking.observe(view, now)
        self._notice_strangers(record, now)
        ours = {k: v for k, v in self._pending.items() if not self._elsewhere(k[0], record.cell)}
        self._pending = {k: v for k, v in ours.items() if self._reachable(k[0])}
        self._ready = {k: v for k, v in self._ready.items() if self._reachable(k[0])}
        self._rehearsed = {k: v for k, v in self._rehearsed.items() if self._reachable(k[0])}
        self.leaving = {n for n in self.leaving if self.live(n)}
        self._note_losses(record, now)

    def _notice_strangers(self, record: CellRecord, now: float) -> None:
        """Who is back before anybody missed it, or has gone on in another cell, lives and is no member.

        It says so itself: in a later life than the one in which it was one, or after it said that
        it was. Whoever has not said yet that it is in this cell may only just have been placed.
        """
        for node in {NodeId(n) for row in record.roster for n in row} - {self.me}:
            member = self._view.members.get(node)
            if member is None:
                continue
            incarnation, cell = self._seen.get(node, (member.record.incarnation, ""))
            if member.facts.cell == record.cell:
                self._seen[node] = member.record.incarnation, record.cell
                self._forgot.discard(node)
                self._moved.pop(node, None)
            elif member.record.incarnation > incarnation or self._gone_on(node, member, cell, record, now):
                self._forgot.add(node)

    def _gone_on(self, node: NodeId, member: Member, cell: str, record: CellRecord, now: float) -> bool:
        """Whether a member has said for long that it is in another cell than this one."""
        moved = member.facts.cell and cell == record.cell
        return bool(moved) and now >= self._moved.setdefault(node, now) + MOVED_S

    def _elsewhere(self, node: NodeId, cell: str) -> bool:
        """Whether a node says that it is in another cell: its refusal may have been lost."""
        member = self._view.members.get(node)
        return member is not None and member.facts.cell not in ("", cell)

    def absent(self, node: NodeId, stages: Sequence[int], record: CellRecord, now: float) -> None:
        """A member does not hold these stages, or none of its own; nor does a taker that had got ready."""
        held = {(node, stage) for stage in stages or range(len(record.roster))}
        for key in held & self._ready.keys():
            del self._ready[key]
            self._asking.refused(node, now)
        self._absent |= held
        self._note_losses(record, now)

    def _note_losses(self, record: CellRecord, now: float) -> None:
        for stage, row in enumerate(record.roster):
            if all(self.gone(node, stage) for node in row):
                self._lost.setdefault(stage, now)
            elif any(self.fit(node, stage) for node in row):
                self._lost.pop(stage, None)
                self._asking.found(stage)

    # -- between slots ----------------------------------------------------------------------

    def next_roster(self, roster: Roster) -> Roster:
        """The roster of the next slot: without who is gone or replaced, with who is ready.

        A stage whose every holder is only suspected keeps them: it is skipped, not given away. One that
        was rebuilt while its holder was away has that holder again, if it is back before any record.
        """
        of_use = {k: t.placement for k, t in self._ready.items() if not self._superseded(t.placement, roster)}
        replaced = {(placed.replaces, placed.stage) for placed in of_use.values()}
        replaced |= {(placed.taker, s) for placed in of_use.values() for s in placed.gives_up}
        rows: list[tuple[str, ...]] = []
        for stage, holders in enumerate(roster):
            stay = [n for n in holders if not self.gone(n, stage) and (n, stage) not in replaced]
            new = [n for n, s in of_use if s == stage and self._reachable(n) and n not in stay]
            fit = [n for n in (*stay, *new) if self.fit(n, stage) or n in new]
            staying = [n for n in fit if n not in self.leaving]
            rows.append(tuple(sorted(staying or fit or stay)))
        return tuple(rows)

    def _superseded(self, placement: Placement, roster: Roster) -> bool:
        """Whether a stage that was rebuilt as another state than its holders' has a holder again."""
        others = (n for n in roster[placement.stage] if n != placement.taker)
        return not placement.same_state and any(self.fit(n, placement.stage) for n in others)

    def order(
        self, record: CellRecord, signed: Signed, term: int, roster: Roster, now: float
    ) -> list[Effect]:
        """Orders for what the placement wants and nobody is at work on yet."""
        self._expire(now)
        under_way = {stage for _, stage in (*self._pending, *self._ready)}
        asked = self._asked((n for n, _ in self._pending), now)
        wanted = record.model_copy(update={"roster": roster})
        effects: list[Effect] = []
        for placed in self._place(self._view, wanted, asked):
            if placed.stage in under_way:
                continue
            placement = self._rehearsed_first(placed)
            under_way.add(placement.stage)
            self._pending[placement.taker, placement.stage] = Pending(placement, now, (record.slot, term))
            order = order_of(placement, record, signed, term)
            effects.append(Send(placement.taker, Message(order)))
        return effects

    def _rehearsed_first(self, placement: Placement) -> Placement:
        """What is not urgent is tried while the cell goes on, before it waits for it."""
        if not placement.rehearse:
            return placement
        if (placement.taker, placement.stage) in self._rehearsed:
            return replace(placement, rehearse=False)
        return replace(placement, same_state=False)

    def placeable(self, record: CellRecord, now: float, since: float) -> set[int]:
        """Stages of a roster that could be had, were they ordered now. since: when its rows fell empty."""
        empty = {stage: since for stage, row in enumerate(record.roster) if not row}
        return {p.stage for p in self._place(self._view, record, self._asked((), now, empty | self._lost))}

    def _asked(self, busy: Iterable[NodeId], now: float, lost: Mapping[int, float] | None = None) -> Asked:
        lost_s = {stage: now - since for stage, since in (self._lost if lost is None else lost).items()}
        return replace(self._asking.asked(busy, self.leaving, now), lost_s=lost_s)

    def _expire(self, now: float) -> None:
        for key, order in list(self._pending.items()):
            if now - order.at >= (self._pause_s(key) if order.placement.same_state else ORDER_LIMIT_S):
                self._refuse(key, now)

    def _refuse(self, key: tuple[NodeId, int], now: float) -> None:
        order = self._pending.pop(key)
        placement, paused_s = order.placement, now - order.at if order.placement.same_state else 0.0
        self._rehearsed.pop(key, None)
        self._asking.refused(key[0], now, paused_s=paused_s)
        if placement.stage in self._lost:
            self._asking.failed(placement.stage, placement.how)

    def waits_until(self) -> float | None:
        """Until when the cell pauses for takers that need exactly this slot's state, if it must."""
        urgent = [(key, order.at) for key, order in self._pending.items() if order.placement.same_state]
        return min((at + self._pause_s(key) for key, at in urgent), default=None)

    def _pause_s(self, key: tuple[NodeId, int]) -> float:
        """How long the cell waits for this taker: hardly longer than it needed when nobody waited."""
        needed_s = self._rehearsed.get(key)
        return PAUSE_LIMIT_S if needed_s is None else _pause_for(needed_s)

    # -- answers ----------------------------------------------------------------------------

    def answered(self, peer: NodeId, body: Ready, record: CellRecord, now: float) -> list[Effect]:
        """A taker has the stage, or could not get it. Answers to earlier orders count for nothing."""
        key = (peer, body.stage)
        order = self._pending.get(key)
        if order is None or body.cell != record.cell or (body.slot, body.term) != order.of:
            return []
        placement, since = order.placement, order.at
        if not body.ok:
            self._refuse(key, now)
            return [Noted("dropped", {"what": f"order for stage {body.stage}", "why": body.reason})]
        if placement.rehearse:
            return self._rehearsal_over(key, now - since, now)
        del self._pending[key]
        if placement.same_state and body.slot != record.slot:
            return []
        self._ready[key] = Taken(placement, now, since)
        self._absent.discard(key)
        self._forgot.discard(key[0])
        self._seen.pop(key[0], None)
        self._moved.pop(key[0], None)
        if body.stage in self._lost:
            return []
        fields = {"stage": body.stage, "how": placement.how, "seconds": round(now - since, 3)}
        return [Noted("placed", fields | {"node": peer[:12], "reason": placement.reason})]

    def _rehearsal_over(self, key: tuple[NodeId, int], needed_s: float, now: float) -> list[Effect]:
        """A newcomer could fetch the stage's state in this time; if it is short, the cell will wait."""
        if _pause_for(needed_s) > PAUSE_MAX_S:
            self._refuse(key, now)
            why = f"fetching took {needed_s:.0f} s, too long for a cell to wait"
            return [Noted("dropped", {"what": f"newcomer for stage {key[1]}", "why": why})]
        del self._pending[key]
        self._rehearsed[key] = needed_s
        return []

    @property
    def newcomers(self) -> tuple[NodeId, ...]:
        """Takers that no record names yet."""
        return tuple(sorted({node for node, _ in self._ready}))

    # -- records ----------------------------------------------------------------------------

    def recoveries(self, record: CellRecord, now: float) -> list[Effect]:
        """One event for each lost stage that this record gives a holder again."""
        notes: list[Effect] = []
        for stage, since in sorted(self._lost.items()):
            row = record.roster[stage]
            taken = next((t for (n, s), t in self._ready.items() if s == stage and n in row), None)
            if taken is None and all(self.gone(node, stage) for node in row):
                continue
            how, at = (taken.placement.how, taken.at) if taken else ("unknown", now)
            reason = (
                taken.placement.reason
                if taken
                else "an earlier leader ordered it, and only it knew from where"
            )
            fields = {"stage": stage, "how": how, "seconds": round(at - since, 3), "reason": reason}
            kind: EventKind = "recovered"
            notes.append(Noted(kind, {"cell": record.cell, **fields}))
        return notes

    def decided(self, record: CellRecord, now: float) -> None:
        """A record was decided: what it says needs no note any more."""
        named = {(NodeId(n), s) for s, row in enumerate(record.roster) for n in row}
        for node, _ in self._ready.keys() & named:
            self._asking.took(node)
        for key, taken in self._ready.items():
            if key not in named and taken.placement.same_state:
                # It took the state and was left out: its link or device is too slow for this cell.
                self._asking.refused(key[0], now, paused_s=taken.at - taken.since)
                self._rehearsed.pop(key, None)
        self._rehearsed = {k: v for k, v in self._rehearsed.items() if k not in named}
        ready = {
            # A round keeps the roster as it was: it passes nobody over.
            key: replace(taken, passed_over=taken.passed_over + (record.act != "round"))
            for key, taken in self._ready.items()
            if key not in named and _still_wanted(taken.placement, record)
        }
        for key in [key for key, taken in ready.items() if taken.passed_over >= PASSED_OVER_MAX]:
            # It was ready, and nothing came through it: it may have gone again, unheard.
            self._asking.refused(key[0], now, paused_s=0.0)
            del ready[key]
        self._ready = ready
        self._absent &= named
        self._pending = {k: v for k, v in self._pending.items() if _still_wanted(v.placement, record)}
        self._note_losses(record, now)


def _still_wanted(placement: Placement, record: CellRecord) -> bool:
    """Whether what was ordered before this record can be of use after it.

    What was rebuilt is nobody else's state: once a record, perhaps of another leadership, gives
    the stage a holder, there is one state of it, and a taker has to have exactly that.
    """
    return placement.rehearse or not (placement.same_state or record.roster[placement.stage])


def _pause_for(needed_s: float) -> float:
    """Half as long again as a fetch took, and a little for small ones."""
    return 5.0 + 1.5 * needed_s
