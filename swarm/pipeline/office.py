"""How a member of a cell comes to lead it, learns what was decided, and ceases to lead.

`Leader` adds what a leader does. Whoever leads was promised its term by a majority of the last
record's roster, or founded what is left of a cell under a name that was never used before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from swarm.events import Noted
from swarm.gossip.view import Member, View
from swarm.job import Job
from swarm.messages import CellRecord, Commit, Stale
from swarm.pipeline.appointments import Appointments
from swarm.pipeline.election import Election, succession
from swarm.pipeline.ledger import Ledger
from swarm.pipeline.records import (
    CheckRecord,
    Sign,
    in_reach,
    is_finished,
    read_record,
    record_digest,
    roster_nodes,
    sign_record,
    stages_of,
)
from swarm.planning.placement import Place
from transport.machine import Effect, NodeId, Send
from transport.patience import Patience
from transport.wire import Body, Message, Signed

Phase = Literal[
    "following", "querying", "founding", "pausing", "running", "closing", "resting", "proposing", "done"
]
QUERY_MAX_S = 3.0
"""How long a candidate waits for promises: small messages, answered at once by whoever is there."""
LACKING = "what is left of the cell lacks stages that nobody can give it"
STEP_DOWN_S = 1.0
"""Times its place in the succession: how long a deposed leader waits to hear of the new one."""


@dataclass(frozen=True, slots=True)
class Learn(Effect):
    """A peer showed a decided record that is newer than ours; our follower must see it."""

    peer: NodeId
    commit: Commit


@dataclass(frozen=True, slots=True)
class Dissolve(Effect):
    """Leave the cell: no majority is left, and those who are cannot go on alone."""

    reason: str


class Office(ABC):
    """One member's standing in its cell: following, standing as a candidate, or leading."""

    def __init__(
        self, me: NodeId, job: Job, decided: Signed, *, sign: Sign, check: CheckRecord, place: Place
    ) -> None:
        self.me, self.job = me, job
        self._sign, self._check = sign, check
        self.phase: Phase = "following"
        self.view = View()
        self.election = Election(me)
        self.appointments = Appointments(me, place)
        self.ledger = Ledger()
        self._slot_time = Patience(initial_s=90.0, floor_s=4.0)
        self._close_time = Patience(initial_s=30.0, floor_s=3.0)
        self._steps = Patience(initial_s=0.0, floor_s=0.0)
        self._stepped_at: float | None = None
        self._until: float | None = None
        self._begun, self._passed_on = 0.0, 0
        self._carried: CellRecord | None = None
        self._adopt(decided, read_record(decided))

    @property
    def term(self) -> int:
        """The highest term seen."""
        return self.election.term

    # -- what the node tells it -------------------------------------------------------------

    def observe(self, view: View, now: float) -> Sequence[Effect]:
        """The node's view changed."""
        self.view = view
        self.appointments.observe(view, self.record, now)
        if self.phase == "following":
            return self._candidacy(now)
        return self._somebody_missing(now)

    def advance(self, signed: Signed, record: CellRecord, now: float) -> Sequence[Effect]:
        """This node applied a decided record."""
        member = bool(stages_of(record.roster, self.me))
        leads = self.phase in ("founding", "proposing") and record.term <= self.term and member
        self._adopt(signed, record)
        self.appointments.decided(record, now)
        self.election.decided(record)
        if record.act == "step":
            if self._stepped_at is not None:
                self._steps.add(now - self._stepped_at)
            self._stepped_at = now
        if leads:
            return self._carry_on(now) if record.act == "found" else self._boundary(now)
        overtaken = self.phase == "querying"
        self.phase, self._until = "following", None
        return self._candidacy(now, overtaken=overtaken)

    def heard(self, peer: NodeId, term: int, now: float) -> None:
        """The follower answered to a leadership: `peer` leads in `term`."""
        if peer == self.me:
            return
        self.phase, self._until = "following", None
        self.election.heard(peer, term)
        self._until = now + self._patience()

    def _adopt(self, signed: Signed, record: CellRecord) -> None:
        self.signed, self.record, self.digest = signed, record, record_digest(signed)
        self.ledger.keep(record.slot, signed)

    # -- becoming leader, and ceasing to be -----------------------------------------------------

    def _patience(self) -> float:
        """A leader is silent while an iteration lasts; followers see from one step to the next how long."""
        ranking = succession(self.record, self.appointments.live)
        rank = ranking.index(self.me) if self.me in ranking else len(ranking)
        # From step to step first: there are pauses in it, which the leader's own slots do not have.
        slot_s = self._steps.limit_s() if self._steps.measured else self._slot_limit_s()
        return (1 + rank) * max(10.0, 2 * slot_s + self._close_limit_s())

    def _slot_limit_s(self) -> float:
        """How long an iteration may take: who never led knows it as a member, from step to step."""
        if self._slot_time.measured or not self._steps.measured:
            return self._slot_time.limit_s()
        return max(self._slot_time.floor_s, self._steps.limit_s())

    def _close_limit_s(self) -> float:
        """How long averaging may take: a part of an iteration, as long as nothing better is known."""
        if self._close_time.measured or not self._steps.measured:
            return self._close_time.limit_s()
        return max(self._close_time.floor_s, min(self._close_time.initial_s, self._steps.limit_s()))

    def _candidacy(self, now: float, *, silent: bool = False, overtaken: bool = False) -> Sequence[Effect]:
        """Stand, or wait for whoever is to lead.

        overtaken: this node stood and learned a newer record. The leader of that one has given way to
        this candidacy, or will once this node's follower refuses its word, as it does if this node
        stood with the higher ballot. So it stands again though others may come before it.
        """
        ranking = succession(self.record, self.appointments.live)
        if is_finished(self.record, self.job) or self.me not in ranking:
            return []
        if silent:
            return self._query(now, "the leader is silent")
        if ranking[0] == self.me and not self.election.in_office(ranking):
            return self._query(now, "first in line")
        stood_higher = (self.record.term, self.record.leader) < (self.term, self.me)
        if overtaken and (stood_higher or not self.election.in_office(ranking)):
            return self._query(now, self.election.why)
        if self._until is None:
            self._until = now + self._patience()
        return self._pass_on(ranking)

    def _pass_on(self, ranking: list[NodeId]) -> Sequence[Effect]:
        """Tell the others of the last record, once, if whoever led is gone and another is to lead.

        It may have reached this node alone, and by the one before it each waits for the other.
        """
        office = self.election.office
        led = office is not None and self.view.status(office) in ("dead", "left")
        if not led or self._passed_on == self.record.slot:
            return []
        self._passed_on = self.record.slot
        commit = Message(self._commit_of(self.signed))
        return [Send(node, commit) for node in ranking if node != self.me]

    def _query(self, now: float, reason: str) -> Sequence[Effect]:
        self.phase = "querying"
        self._until = now + min(QUERY_MAX_S, self._close_limit_s() / 3)
        query = self.election.stand(self.record, reason)
        return to(roster_nodes(self.record.roster), query)

    def _promised(self, now: float) -> Sequence[Effect]:
        if not self.election.won(self.record):
            return self._alone(now)
        effects = self._catch_up_promised()
        fields = {"cell": self.record.cell, "term": self.term, "reason": self.election.why}
        effects.append(Noted("leading", fields))
        self._begun, self.election.office = now, self.me
        unfinished = self.election.unfinished(self.record, self.digest)
        if unfinished is not None:
            return [*effects, *self._propose(unfinished, now)]
        return [*effects, *self._boundary(now)]

    def _catch_up_promised(self) -> list[Effect]:
        promises = self.election.promises.items()
        return [effect for node, promise in promises for effect in self._catch_up(node, promise.slot)]

    def _no_majority(self, now: float) -> Sequence[Effect]:
        """Too few promised in time. When the others are gone for good, those left are a new cell."""
        if self._may_answer(self.election.silent(self.record)):
            return self._query(now, self.election.why)
        found = self.election.remainder(self.record, self.digest)
        return self._found(found, now) if self._can_live(found, now) else self._dissolve(found, now)

    def _alone(self, now: float) -> Sequence[Effect]:
        """Whoever may still answer has, and it is no majority: nothing is left to wait for.

        Those who cannot live by themselves wait all the same: to dissolve is not urgent.
        """
        if self._may_answer(self.election.silent(self.record)) or self.election.won(self.record):
            return []
        found = self.election.remainder(self.record, self.digest)
        return self._found(found, now) if self._can_live(found, now) else []

    def _may_answer(self, nodes: Sequence[NodeId]) -> bool:
        """Whether somebody of these is not buried yet. A suspect may have a majority with it elsewhere."""
        return any(self.view.status(node) not in ("dead", "left") for node in nodes)

    def _found(self, found: CellRecord, now: float) -> Sequence[Effect]:
        """Go on under a new name, with what may be decided; who has no voice founds for others and goes."""
        missing = self.election.silent(self.record)
        unfinished = self.election.unfinished(self.record, self.digest)
        self._carried = read_record(unfinished) if unfinished else None
        reason = f"{len(missing)} members of the last roster are gone, no majority is left"
        noted = Noted("cell", {"old": self.record.cell, "new": found.cell, "reason": reason})
        commit = self._commit_of(sign_record(found, self._sign))
        effects = [noted, *self._catch_up_promised(), *to(roster_nodes(found.roster), commit)]
        if not stages_of(found.roster, self.me):
            return [*effects, *self._give_up("a newcomer without a voice is not part of what is left")]
        self.phase, self._begun, self._until = "founding", now, None
        return effects

    def _can_live(self, found: CellRecord, now: float) -> bool:
        """Whether every stage is held, or can be had from somewhere."""
        rebuilt = self.appointments.placeable(found, now, self.election.lacking_since(now))
        return all(row or stage in rebuilt for stage, row in enumerate(found.roster))

    def _dissolve(self, found: CellRecord, now: float) -> Sequence[Effect]:
        """What is left cannot train. Where others do, with every stage, its members are of use there.

        Others are at least as many as they: what is held here is lost for good, and one member
        that only says it holds something is no reason. Nor are others that lack a stage as well:
        they may give up what they hold for those here at the same moment.
        """
        mine = roster_nodes(found.roster)
        others = [m for m in self._whole_cells() if m.node not in mine]
        if len(others) < len(mine):
            return self._query(now, self.election.why)
        return self._give_up()

    def _whole_cells(self) -> list[Member]:
        """Live members that hold something of a cell in which every stage is held."""
        found: list[Member] = []
        for cell in self.view.cells():
            members = [m for m in self.view.cell(cell) if m.facts.stages]
            if len({stage for m in members for stage in m.facts.stages}) == len(self.record.roster):
                found += members
        return found

    def _deserted(self, now: float) -> bool:
        """Whether a cell of which nobody holds anything has nobody to give it to, and others train."""
        others = any(m.facts.stages and m.facts.cell != self.record.cell for m in self.view.live())
        empty = self.record.model_copy(update={"roster": ((),) * len(self.record.roster)})
        return others and not self.appointments.placeable(empty, now, now)

    def _give_up(self, reason: str = LACKING) -> Sequence[Effect]:
        self.phase, self._until = "following", None
        return [Dissolve(reason)]

    def _carry_on(self, now: float) -> Sequence[Effect]:
        """A new cell begins with what its old one may have decided, so that nothing is undone.

        Who took a stage over for that very slot holds it, though no record before it says so.
        """
        carried, self._carried = self._carried, None
        if carried is None:
            return self._boundary(now)
        members = roster_nodes(self.record.roster)
        changes = {
            "cell": self.record.cell,
            "slot": self.record.slot + 1,
            "term": self.term,
            "previous": self.digest,
            "roster": tuple(tuple(n for n in row if n in members) for row in carried.roster),
            "leader": self.me,
        }
        return self._propose(sign_record(carried.model_copy(update=changes), self._sign), now)

    def _stale(self, peer: NodeId, body: Stale, now: float) -> Sequence[Effect]:
        newer = (body.term, body.leader) > self._ballot()
        if newer and self.phase != "done" and self._believes(peer, body.term):
            self.phase = "following"
            ranking = succession(self.record, self.appointments.live)
            rank = ranking.index(self.me) if self.me in ranking else len(ranking)
            self.election.heard(NodeId(body.leader), body.term)
            known = body.leader not in ("", self.me) and self.election.in_office(ranking)
            self._until = now + (self._patience() if known else (1 + rank) * STEP_DOWN_S)
        if body.slot > self.record.slot:
            commit = Commit(cell=body.cell, slot=body.slot, term=body.term, record=body.decided)
            return [Learn(peer, commit)]
        missed = self._catch_up(peer, body.slot)
        return [*missed, *self._repeat(peer)] if missed else []

    def _ballot(self) -> tuple[int, str]:
        """What this node leads or stands with, or follows; two of one term are in order of their ids."""
        followed = self.election.office or ""
        return self.term, followed if self.phase == "following" else self.me

    def _believes(self, peer: NodeId, term: int) -> bool:
        """Whether a peer may know of a newer leadership: a member or a taker, of a term in reach."""
        ours = bool(stages_of(self.record.roster, peer)) or peer in self.appointments.newcomers
        return ours and in_reach(term, max(self.term, self.record.term))

    def _catch_up(self, peer: NodeId, slot: int) -> list[Effect]:
        return [Send(peer, Message(self._commit_of(s))) for s in self.ledger.since(slot, self.record.slot)]

    def _commit_of(self, signed: Signed) -> Commit:
        slot = read_record(signed).slot
        return Commit(cell=self.record.cell, slot=slot, term=self.term, record=signed)

    # -- what leading means is the subclass's business ------------------------------------------

    @abstractmethod
    def _boundary(self, now: float) -> Sequence[Effect]:
        """Between slots: decide what the next one is."""

    @abstractmethod
    def _repeat(self, peer: NodeId) -> Sequence[Effect]:
        """What a member could not take in because it was behind."""

    @abstractmethod
    def _propose(self, signed: Signed, now: float) -> Sequence[Effect]:
        """Have a majority accept this record for the next slot."""

    @abstractmethod
    def _somebody_missing(self, now: float) -> Sequence[Effect]:
        """Somebody is dead, suspect or absent: do not wait for them."""


def to(peers: Sequence[NodeId], body: Body) -> list[Effect]:
    """One body for several peers."""
    return [Send(peer, Message(body)) for peer in peers]
