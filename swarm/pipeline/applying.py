"""Decided records on their way into the stages: in order, each with the tensors it decided on.

A record says by digest what was averaged; the tensors come from the reducers, before or after it,
and from nobody else. Those that never come must not stop a node for ever: after a deadline the holder goes
on without them, and either its stage stands still with all the other holders or it is given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from swarm.gossip.view import View
from swarm.messages import Averaged, CellRecord, Close
from swarm.pipeline.averaging import Hold
from swarm.pipeline.follower import Apply, Ignored
from swarm.pipeline.records import stages_of
from transport.machine import Effect, NodeId
from transport.patience import Patience

SLOTS_AHEAD = 2
"""How far after the last decided slot a result may be: one Commit may still be on its way here."""
WAIT_MAX_S = 30.0
ADOPTED_SLOTS = 4
"""Slots within which a roster must name a restored stage's new holder, else it lets it go."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What a record decided on and this node never got. behind: nobody else has it either."""

    record: CellRecord
    given_up: tuple[int, ...]
    behind: tuple[int, ...]


class Applying:
    """The queue of decided records of one node, and the results that wait for theirs."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.until: float | None = None
        self._queue: deque[Apply] = deque()
        self._holds: dict[tuple[int, int], dict[NodeId, Hold]] = {}
        self._close: Close | None = None
        self._waits = Patience(initial_s=20.0, floor_s=5.0)
        self._since = 0.0
        self._without: set[tuple[int, int]] = set()
        self._adopted: dict[int, int] = {}

    @property
    def idle(self) -> bool:
        """Nothing decided waits to be applied."""
        return not self._queue

    @property
    def first(self) -> Apply:
        """The oldest record that is not applied yet."""
        return self._queue[0]

    def decided(self, apply: Apply, now: float) -> None:
        """A record was decided."""
        if not self._queue:
            self._since = now
        self._queue.append(apply)

    def closed(self, close: Close) -> None:
        """A slot is closed: from now on its reducers are known, and what others sent is nothing."""
        self._close = close
        for (slot, stage), row in self._holds.items():
            if slot == close.slot:
                reducers = close.roster[stage][:1]
                self._holds[slot, stage] = {node: hold for node, hold in row.items() if node in reducers}

    def averaged(self, peer: NodeId, body: Averaged, payload: Any, last: CellRecord) -> Sequence[Effect]:
        """A result, if it is of a reducer of this node. last: the newest decided record."""
        if body.cell != last.cell or peer not in self._reducers(body.slot, body.stage, last):
            return [Ignored(peer, body.kind, "of no reducer of a slot at hand")]
        attempt = (body.term, body.round_attempt)
        return [Hold(body.slot, body.stage, body.total, (payload,), body.anchor, peer, attempt)]

    def _reducers(self, slot: int, stage: int, last: CellRecord) -> tuple[str, ...]:
        """Who may have averaged a stage: whom the record or the Close names, or before both any holder."""
        decided = next((apply.record for apply in self._queue if apply.record.slot == slot), None)
        close = self._close if self._close is not None and self._close.slot == slot else None
        if decided is None and not last.slot < slot <= last.slot + SLOTS_AHEAD:
            return ()
        roster = (decided or close or last).roster
        row = roster[stage] if stage < len(roster) else ()
        if self.me not in row:
            return ()
        return row[:1] if decided or close else row

    def hold(self, hold: Hold) -> None:
        """Keep a result: of each reducer, slot and stage the newest."""
        row = self._holds.setdefault((hold.slot, hold.stage), {})
        older = row.get(hold.reducer)
        if older is None or older.attempt <= hold.attempt:
            row[hold.reducer] = hold

    def choose(self, stages: Collection[int], now: float) -> dict[int, Hold] | None:
        """Results that the oldest record decided on, by held stage; None while one is missing."""
        record = self.first.record
        needed = self._needed(record, stages)
        chosen = {stage: hold for stage in needed if (hold := self._find(record, stage)) is not None}
        if len(chosen) < len(needed):
            self.until = self.until or now + min(WAIT_MAX_S, self._waits.limit_s())
            return None
        if needed:
            self._waits.add(now - self._since)
        self.until = None
        return chosen

    def _needed(self, record: CellRecord, stages: Collection[int]) -> list[int]:
        return [
            stage
            for stage in stages_of(record.roster, self.me)
            if stage < len(record.sums)
            and record.sums[stage].digest
            and stage in stages
            and (record.slot, stage) not in self._without
        ]

    def _find(self, record: CellRecord, stage: int) -> Hold | None:
        """What the record says, whatever the slot: a new cell may decide what its old one had averaged."""
        decided = record.sums[stage]
        held = (hold for key, row in self._holds.items() if key[1] == stage for hold in row.values())
        return next((hold for hold in held if hold.total == decided), None)

    def discard(self, holds: Sequence[Hold]) -> None:
        """These were not what they said they were."""
        for bad in holds:
            row = self._holds.get((bad.slot, bad.stage), {})
            if row.get(bad.reducer) is bad:
                del row[bad.reducer]

    def overdue(self, stages: Collection[int], view: View, now: float) -> Missing | None:
        """What to do about results that did not come in time.

        Where another holder already is at this record the stage is given up, for its state can be
        had there. Where none is, all of them miss the same step and stay alike without it.
        """
        if self.until is None or now < self.until or not self._queue:
            return None
        self.until = None
        record = self.first.record
        missing = [s for s in self._needed(record, stages) if self._find(record, s) is None]
        self._without |= {(record.slot, stage) for stage in missing}
        ahead = tuple(stage for stage in missing if self._others_have(record, stage, view))
        return Missing(record, ahead, tuple(s for s in missing if s not in ahead))

    def _others_have(self, record: CellRecord, stage: int, view: View) -> bool:
        at = (record.iteration, record.round)
        row = [node for node in record.roster[stage] if node != self.me]
        others = (m.facts for m in view.holders(record.cell, stage) if m.node in row)
        return any((facts.iteration, facts.round) >= at for facts in others)

    def finished(self, now: float) -> Apply:
        """The oldest record is applied; what it decided on, and what it did not, is forgotten."""
        applied, self._since = self._queue.popleft(), now
        slot = applied.record.slot
        # What a cell had averaged when it fell apart may be decided by the one that it becomes.
        kept = slot - 1 if applied.record.act == "found" else slot
        self._holds = {key: held for key, held in self._holds.items() if key[0] > kept}
        self._without = {key for key in self._without if key[0] > slot}
        return applied

    def begin(self, slot: int) -> None:
        """A slot is planned: earlier attempts at it are void."""
        self._close = None
        self._holds = {key: held for key, held in self._holds.items() if key[0] > slot}

    def adopt(self, stage: int, slot: int) -> None:
        """A stage was restored here at a slot; no roster names this node for it yet."""
        self._adopted[stage] = slot

    def unnamed(self, record: CellRecord, stages: Collection[int]) -> list[int]:
        """Held stages that an applied record gives to others.

        A restored one may still be named. Who is in no row at all hears of no slots to count.
        """
        mine = stages_of(record.roster, self.me)
        self._adopted = {k: slot for k, slot in self._adopted.items() if k not in mine}
        if record.act == "found":
            return []
        return [
            s for s in stages if s not in mine and not (s in self._adopted and self._may_be_named(s, record))
        ]

    def _may_be_named(self, stage: int, record: CellRecord) -> bool:
        hears = bool(stages_of(record.roster, self.me))
        return not hears or record.slot <= self._adopted[stage] + ADOPTED_SLOTS
