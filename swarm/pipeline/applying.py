"""Decided records on their way into the stages: in order, each with the tensors it decided on.

A record names its averaged gradients by digest; the tensors come from the reducers, before or
after it. Those that never come must not stop a node for ever: after a deadline the holder goes
on without them, and either its stage stands still with all the other holders or it is given up.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from swarm.gossip.view import View
from swarm.messages import CellRecord
from swarm.pipeline.averaging import Hold
from swarm.pipeline.follower import Apply
from swarm.pipeline.ledger import HISTORY
from swarm.pipeline.records import stages_of
from transport.machine import NodeId
from transport.patience import Patience

HOLDS_MAX = 6
"""Results kept for one stage and slot: attempts of the averaging, at most one of them decided."""
SLOTS_AHEAD = 2
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
        self.dropped: Counter[str] = Counter()
        self._queue: deque[Apply] = deque()
        self._holds: dict[tuple[int, int], list[Hold]] = {}
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

    def hold(self, hold: Hold, slot: int) -> None:
        """Keep a result of a slot close to the last decided one, `slot`."""
        if not slot - HISTORY <= hold.slot <= slot + SLOTS_AHEAD:
            self.dropped["averaged: far from any slot at hand"] += 1
            return
        held = self._holds.setdefault((hold.slot, hold.stage), [])
        held.append(hold)
        del held[:-HOLDS_MAX]

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
        """By digest, whatever the slot: a new cell may decide what its old one had averaged."""
        digest = record.sums[stage].digest
        held = (hold for key, row in self._holds.items() if key[1] == stage for hold in row)
        return next((hold for hold in held if hold.total.digest == digest), None)

    def discard(self, holds: Sequence[Hold]) -> None:
        """These were not what they said they were."""
        for row in self._holds.values():
            row[:] = [hold for hold in row if not any(hold is bad for bad in holds)]

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
