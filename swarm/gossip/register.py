"""What a node knows of the others, and which news wins.

Records: higher (incarnation, seq) replaces; a strictly newer incarnation, which only the owner
can sign, ends any verdict. Claims: only about exactly the incarnation that is known, so that
nobody can move a node's incarnation but itself. The result does not depend on the order in
which records arrive, each with the claims about it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import Claim
from swarm.gossip.suspicion import Suspicion
from swarm.gossip.view import Member, MemberRecord, Status, View
from transport.machine import NodeId
from transport.wire import Signed

EVIDENCE_MAX = 8
"""Accusations passed on about one node. More than make a difference to anybody's timer."""
BELIEVED = ("alive", "suspect")


@dataclass(slots=True)
class Row:
    """What is known of one node.

    since: when its status became what it is. evidence: signed claims behind that status: the
    accusations of a suspect, our own of a dead node, the farewell of one that left.
    """

    member: Member
    signed: Signed
    since: float
    suspicion: Suspicion | None = None
    evidence: tuple[Signed, ...] = ()
    answered_at: float = float("-inf")

    @property
    def believed(self) -> bool:
        """Alive as far as we know, perhaps suspected."""
        return self.member.status in BELIEVED


@dataclass(frozen=True, slots=True)
class Admission:
    """What a record changed: whether the node is new, or came back, or listens elsewhere."""

    new: bool
    revived: bool
    moved: bool


class Register:
    """The rows of one node's view; `view` is the same as an immutable value."""

    def __init__(self, me: Member, config: GossipConfig, rng: random.Random) -> None:
        self.me = me.node
        self.rows: dict[NodeId, Row] = {}
        self.view = View().with_member(me)
        self._config, self._rng = config, rng
        self._believed: list[NodeId] | None = None
        self._suspected: dict[NodeId, Row] = {}

    # -- asking -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Members believed in, this node counted."""
        return len(self.believed()) + 1

    def believed(self) -> list[NodeId]:
        """Alive or suspected, in node-id order."""
        if self._believed is None:
            self._believed = sorted(node for node, row in self.rows.items() if row.believed)
        return self._believed

    def some(self, count: int, fit: Callable[[Row], bool]) -> list[NodeId]:
        """So many random members that fit."""
        peers = sorted(peer for peer, row in self.rows.items() if fit(row))
        return self._rng.sample(peers, min(count, len(peers)))

    @property
    def witnesses(self) -> int:
        """Members that could confirm a crash: alive and not suspected themselves."""
        return len(self.believed()) - len(self._suspected)

    def until(self, row: Row) -> float:
        """When a suspect is buried."""
        assert row.suspicion is not None
        return row.suspicion.until(self._config, len(self), self.witnesses)

    def suspects(self) -> list[tuple[NodeId, Row]]:
        """Members under an open suspicion, the longest suspected first."""
        return list(self._suspected.items())

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another member."""
        return len(self.rows) >= self._config.members_max

    # -- changing ---------------------------------------------------------------------------

    def admit(self, record: MemberRecord, signed: Signed, now: float) -> Admission | None:
        """Take a verified record; None if it is not newer than what is known."""
        node = NodeId(record.node)
        row = self.rows.get(node)
        if row is None:
            self.rows[node] = Row(Member(record, "alive", "new"), signed, now)
            self._show(self.rows[node])
            return Admission(new=True, revived=False, moved=True)
        old = row.member.record
        # The payload decides between two records of one version: only a faulty owner makes them.
        if (record.version, signed.payload) <= (old.version, row.signed.payload):
            return None
        revived = record.incarnation > old.incarnation and row.member.status != "alive"
        row.signed = signed
        row.member = Member(record, row.member.status, row.member.reason)
        if revived:
            row.suspicion = None
            self._turn(row, "alive", "refuted", (), now)
        self._show(row)
        moved = (record.gossip, record.curve_key) != (old.gossip, old.curve_key)
        return Admission(new=False, revived=revived, moved=moved or revived)

    def is_news(self, claim: Claim) -> bool:
        """Whether a claim, if it is true to its signature, changes anything."""
        row = self.rows.get(NodeId(claim.node))
        if row is None or claim.incarnation != row.member.record.incarnation:
            return False
        if claim.node == claim.by:
            return row.member.status != "left"
        accuser = self.rows.get(NodeId(claim.by))
        counts = claim.by == self.me or (accuser is not None and accuser.believed)
        return counts and row.believed and (row.suspicion is None or row.suspicion.is_news(claim))

    def accuse(self, claim: Claim, signed: Signed, now: float) -> Row:
        """Count an accusation that is news."""
        row = self.rows[NodeId(claim.node)]
        if row.suspicion is None:
            row.suspicion = Suspicion(self.me, now)
            why = "its connection closed" if claim.closed else "silent"
            self._turn(row, "suspect", f"{why}, says {claim.by[:8]}", (), now)
        row.suspicion.add(claim, now)
        if len(row.evidence) < EVIDENCE_MAX:
            row.evidence = (*row.evidence, signed)
        return row

    def bury(self, row: Row, signed: Signed, now: float) -> None:
        """A suspicion ran out."""
        suspicion = row.suspicion
        assert suspicion is not None
        crashed = suspicion.is_crash(self.witnesses)
        why = "its connections closed" if crashed else f"silent for {now - suspicion.since:.1f} s"
        row.suspicion = None
        self._turn(row, "dead", f"{why}, {len(suspicion.by)} accusers", (signed,), now)

    def dismiss(self, row: Row, reason: str, evidence: tuple[Signed, ...], now: float) -> None:
        """It left by its own word, or was revoked."""
        row.suspicion = None
        self._turn(row, "left", reason, evidence, now)

    def reap(self, now: float) -> list[NodeId]:
        """Forget who has been dead or gone for long; their ids."""
        limit = now - self._config.reap_s
        old = [node for node, row in self.rows.items() if not row.believed and row.since < limit]
        for node in old:
            del self.rows[node]
            self.view = self.view.without(node)
        return old

    def replace_me(self, member: Member) -> None:
        """This node's own row."""
        self.view = self.view.with_member(member)

    def _turn(self, row: Row, status: Status, reason: str, evidence: tuple[Signed, ...], now: float) -> None:
        row.member, row.since, row.evidence = Member(row.member.record, status, reason), now, evidence
        self._show(row)

    def _show(self, row: Row) -> None:
        self._believed = None
        if row.suspicion is None:
            self._suspected.pop(row.member.node, None)
        else:
            self._suspected[row.member.node] = row
        self.view = self.view.with_member(row.member)
