"""Machine: a member's part in its cell's log: accept, promise, commit, in slot order.

Together with `leader.py` this is single-decree Paxos per slot: a record is decided once a
majority of the previous record's roster has accepted it, and whoever leads next learns from a
majority of the same roster what may have been decided. The ballot is (term, leader).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarm.messages import (
    Absent,
    Accept,
    CellBody,
    CellRecord,
    Close,
    Commit,
    Plan,
    Promise,
    Propose,
    Query,
    Stale,
)
from swarm.pipeline.records import (
    CheckRecord,
    in_reach,
    read_record,
    record_digest,
    stages_of,
    wrong_with_record,
)
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed, WireError

ASKED_MAX = 3
"""Commits with a gap before them after which this node stops asking for what it missed."""


@dataclass(frozen=True, slots=True)
class BeginSlot(Effect):
    """Work on this plan from now on."""

    plan: Plan
    leader: NodeId


@dataclass(frozen=True, slots=True)
class CloseSlot(Effect):
    """Take no new work for this slot; average."""

    close: Close
    leader: NodeId


@dataclass(frozen=True, slots=True)
class Apply(Effect):
    """Decided: apply this record to the stages held.

    skipped: records before it were missed for good, so what is held is of another time.
    """

    record: CellRecord
    signed: Signed
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Ignored(Effect):
    """A message that changes nothing, and why; counted."""

    peer: NodeId
    kind: str
    reason: str


class Follower:
    """The acceptor and learner of one node for one cell."""

    def __init__(self, me: NodeId, decided: Signed, check: CheckRecord, *, newcomer: bool = False) -> None:
        """newcomer: what this node may have promised in an earlier life is forgotten.

        Then it has no voice on the slot that follows `decided`, or a record might be decided twice.
        """
        self.me = me
        self._check = check
        self._ballot: tuple[int, str] = (0, "")
        self._accepted: tuple[Signed, tuple[int, str]] | None = None
        self._opened = (0, (0, ""))
        """Slot and ballot of the last plan begun, or slot closed: neither is begun again."""
        self._asked = 0
        self._set_decided(decided, read_record(decided))
        self._mute_slot = self.record.slot + 1 if newcomer else 0

    def _set_decided(self, signed: Signed, record: CellRecord) -> None:
        self.signed, self.record, self.digest = signed, record, record_digest(signed)
        self._accepted, self._asked = None, 0

    @property
    def cell(self) -> str:
        """The cell whose log this is; a founding record may change it."""
        return self.record.cell

    @property
    def term(self) -> int:
        """The highest term seen."""
        return self._ballot[0]

    @property
    def leader(self) -> NodeId | None:
        """Whom the highest ballot names."""
        return NodeId(self._ballot[1]) if self._ballot[1] else None

    def follows(self, peer: NodeId, term: int) -> bool:
        """Whether this leadership is the newest that this node has answered to."""
        return self._ballot == (term, peer)

    def adopt_term(self, term: int) -> None:
        """Start no lower than `term`: a newcomer joins a cell in the middle of its history."""
        if self._in_reach(term):
            self._ballot = max(self._ballot, (term, ""))

    def _in_reach(self, term: int) -> bool:
        return in_reach(term, max(self.term, self.record.term))

    def handle(self, peer: NodeId, message: Message) -> Sequence[Effect]:
        """Take in Plan, Close, Propose, Commit or Query of this cell."""
        body = message.body
        assert isinstance(body, CellBody)
        if body.cell != self.cell:
            return self._stranger(peer, body)
        if isinstance(body, Commit):
            return self._commit(peer, body)
        if isinstance(body, Query):
            return self._query(peer, body)
        if (body.term, peer) < self._ballot or body.slot <= self.record.slot:
            return [self._stale(peer)]
        if body.slot > self.record.slot + 1:
            return [self._stale(peer), Ignored(peer, body.kind, "ahead of this node")]
        if not self._may_lead(peer, body.term):
            return self._pretender(peer, body)
        self._ballot = (body.term, peer)
        match body:
            case Propose() if body.slot == self._mute_slot:
                return [Ignored(peer, body.kind, "a newcomer has no voice on its first slot")]
            case Plan() if body.base != self.digest:
                return [self._absent(peer, body, "the plan builds on another record")]
            case Plan() if self._opened == (body.slot, self._ballot):
                return [Ignored(peer, body.kind, "a second time, or after its close")]
            case Plan():
                self._opened = (body.slot, self._ballot)
                return [BeginSlot(body, peer)]
            case Close():
                self._opened = (body.slot, self._ballot)
                return [CloseSlot(body, peer)]
            case Propose():
                return self._propose(peer, body)
        return [Ignored(peer, body.kind, "not for a follower")]

    def _may_lead(self, peer: NodeId, term: int) -> bool:
        """Only members of the last record's roster lead, in terms that elections can have reached."""
        return bool(stages_of(self.record.roster, peer)) and self._in_reach(term)

    def _pretender(self, peer: NodeId, body: CellBody) -> Sequence[Effect]:
        """No leader of this log; a leader of another history must know that it cannot count on us."""
        if isinstance(body, Plan) and body.base != self.digest:
            return [self._absent(peer, body, "the plan builds on another record")]
        return [Ignored(peer, body.kind, "of no possible leader")]

    def _propose(self, peer: NodeId, body: Propose) -> Sequence[Effect]:
        try:
            record = read_record(body.record)
        except WireError:
            return [Ignored(peer, body.kind, "no record")]
        if (record.cell, record.slot, record.previous) != (self.cell, body.slot, self.digest):
            return [Ignored(peer, body.kind, "does not follow the last record")]
        wrong = wrong_with_record(body.record, record, self.record)
        if wrong or not self._check(body.record):
            return [Ignored(peer, body.kind, wrong or "bad signature")]
        self._accepted = body.record, self._ballot
        accept = Accept(cell=self.cell, slot=body.slot, term=body.term, digest=record_digest(body.record))
        return [Send(peer, Message(accept))]

    def _query(self, peer: NodeId, body: Query) -> Sequence[Effect]:
        """Promise, unless the candidate is behind, or is no member: it could only disturb."""
        behind = body.slot < self.record.slot
        if (body.term, peer) < self._ballot or behind or not self._may_lead(peer, body.term):
            return [self._stale(peer)]
        self._ballot = (body.term, peer)
        if self._mute_slot == self.record.slot + 1:
            return [self._absent(peer, body, "a newcomer has no voice on its first slot")]
        accepted, ballot = self._accepted or (None, None)
        promise = Promise(
            cell=self.cell,
            slot=self.record.slot,
            term=body.term,
            decided=self.signed,
            accepted=accepted,
            ballot=ballot,
        )
        return [Send(peer, Message(promise))]

    def _commit(self, peer: NodeId, body: Commit) -> Sequence[Effect]:
        try:
            record = read_record(body.record)
        except WireError:
            return [Ignored(peer, body.kind, "no record")]
        if not self._check(body.record):
            return [Ignored(peer, body.kind, "bad signature")]
        if record.act == "found":
            return self._found(peer, body, record)
        if record.cell != self.cell or record.slot <= self.record.slot:
            return []
        follows = record.previous == self.digest
        if not follows and record.slot == self.record.slot + 1:
            return [Ignored(peer, body.kind, "of another history")]
        # Behind a gap, too, only a member of the last roster known is believed to lead: a record
        # that vouches for its own leader would let anybody write this log. Who is asked what was
        # missed may prove it, record by record.
        wrong = wrong_with_record(body.record, record, self.record)
        if wrong or not self._in_reach(record.term):
            ignored = Ignored(peer, body.kind, wrong or "of a term out of reach")
            return [ignored] if follows else [self._stale(peer), ignored]
        member = bool(stages_of(record.roster, self.me))
        if not follows and member and self._asked < ASKED_MAX:
            self._asked += 1
            return [self._stale(peer)]
        self._ballot = max(self._ballot, (record.term, ""))
        self._set_decided(body.record, record)
        return [Apply(record, body.record, skipped=not follows and member)]

    def _found(self, peer: NodeId, body: Commit, record: CellRecord) -> Sequence[Effect]:
        if record.previous != self.digest or self.me not in {n for h in record.roster for n in h}:
            return [Ignored(peer, body.kind, "founds a cell this node is not part of")]
        wrong = wrong_with_record(body.record, record, self.record)
        if wrong or not self._remains(record):
            return [Ignored(peer, body.kind, wrong or "is not what remains of this cell")]
        self._ballot = (record.term, record.leader)
        self._set_decided(body.record, record)
        return [Apply(record, body.record)]

    def _remains(self, record: CellRecord) -> bool:
        """Whether a founding record keeps some holders of the last one, as `founding` makes it."""
        last = self.record
        kept = all(set(row) <= set(old) for row, old in zip(record.roster, last.roster, strict=True))
        return kept and record.slot == last.slot + 1 and self._in_reach(record.term)

    def _stale(self, peer: NodeId) -> Effect:
        stale = Stale(
            cell=self.cell,
            slot=self.record.slot,
            term=self.term,
            decided=self.signed,
            leader=self.leader or "",
        )
        return Send(peer, Message(stale))

    def _stranger(self, peer: NodeId, body: CellBody) -> Sequence[Effect]:
        """Of another cell: who counts on this node there must know that it has gone."""
        ignored = Ignored(peer, body.kind, "of another cell")
        if isinstance(body, Commit) or peer == self.me:
            return [ignored]
        return [ignored, self._absent(peer, body, f"in cell {self.cell}")]

    def _absent(self, peer: NodeId, body: CellBody, reason: str) -> Effect:
        absent = Absent(cell=body.cell, slot=body.slot, term=body.term, reason=reason)
        return Send(peer, Message(absent))
