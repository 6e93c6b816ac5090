"""What a node knows of the others, and which news wins.

Records: higher (incarnation, seq) replaces; a strictly newer incarnation, which only the owner
can sign, ends any verdict. Claims: only about exactly the incarnation that is known, so that
nobody can move a node's incarnation but itself. The result does not depend on the order in
which records arrive, each with the claims about it.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import inf

from swarm.gossip.compact import Renewal, begin_alike, renewal_of
from swarm.gossip.comparing import Hashes, bucket_of, bucket_starts, mark_of
from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import Claim
from swarm.gossip.suspicion import Suspicion, confirmers
from swarm.gossip.view import Member, MemberRecord, Status, View
from transport.machine import NodeId
from transport.wire import Signed

FEW = 64
"""Members that are looked through one by one; of more, random ones are tried."""
TRIES = 8
"""For each random member that is looked for. Then all are looked through."""
BELIEVED = ("alive", "suspect")


@dataclass(slots=True)
class Row:
    """What is known of one node.

    since: when its status became what it is. heard_at: when its incarnation was first heard of.
    changed_at: when its record or status last changed.
    evidence: signed claims behind that status: the accusations of a suspect, these and our own of
    a dead node, the farewell of one that left. until: when a suspect is buried. mark: see `comparing`.
    renewal: the record without its beginning, if an earlier one with the same was known here, and
    so probably elsewhere.
    """

    member: Member
    signed: Signed
    since: float
    heard_at: float
    changed_at: float
    suspicion: Suspicion | None = None
    evidence: tuple[Signed, ...] = ()
    renewal: Renewal | None = None
    until: float = inf
    mark: int = 0

    @property
    def told(self) -> Signed | Renewal:
        """The record as it is told on."""
        return self.renewal or self.signed

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


NEW = Admission(new=True, revived=False, moved=True)


class Register:
    """The rows of one node's view; `view` is the same as an immutable value.

    due: when the next suspect is buried.
    """

    def __init__(self, me: Member, signed: Signed, config: GossipConfig, rng: random.Random) -> None:
        self.me = me.node
        self.rows: dict[NodeId, Row] = {}
        self.hashes = Hashes()
        self.due = inf
        self.my_mark = 0
        self._mine = me
        self._config, self._rng = config, rng
        self._view: View | None = None
        self._order: list[NodeId] = []
        self._lost: dict[NodeId, Row] = {}
        self._suspected: dict[NodeId, Row] = {}
        self._witnessed = False
        self.replace_me(me, signed)

    # -- asking -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """Members believed in, this node counted."""
        return len(self.rows) - len(self._lost) + 1

    @property
    def view(self) -> View:
        """All rows and this node's own, as they are now."""
        if self._view is None:
            self._view = View({self.me: self._mine, **{node: row.member for node, row in self.rows.items()}})
        return self._view

    def believed(self) -> list[NodeId]:
        """Alive or suspected, in node-id order."""
        return [node for node in self._order if self.rows[node].believed]

    def some(self, count: int, fit: Callable[[Row], bool]) -> list[NodeId]:
        """So many random members that fit."""
        order = self._order
        chosen: dict[NodeId, None] = {}
        for _ in range(TRIES * count if len(order) > FEW else 0):
            node = order[int(self._rng.random() * len(order))]
            if fit(self.rows[node]):
                chosen[node] = None
                if len(chosen) == count:
                    return list(chosen)
        peers = [peer for peer in order if fit(self.rows[peer])]
        return self._rng.sample(peers, min(count, len(peers)))

    def some_dead(self, count: int) -> list[NodeId]:
        """So many random members of the dead, or all."""
        dead = self.dead()
        return self._rng.sample(dead, min(count, len(dead)))

    def dead(self) -> list[NodeId]:
        """Members that fell silent and may only be out of reach, in node-id order."""
        return sorted(node for node, row in self._lost.items() if row.member.status == "dead")

    @property
    def lost(self) -> int:
        """How many members died or left and are not forgotten yet."""
        return len(self._lost)

    def bucket(self, bucket: int) -> Iterator[Row]:
        """The rows that count for a bucket's hash, in node-id order."""
        first, last = (bisect_left(self._order, bucket_starts(b)) for b in (bucket, bucket + 1))
        return (row for node in self._order[first:last] if (row := self.rows[node]).mark)

    @property
    def witnesses(self) -> int:
        """Members that could confirm a crash: alive and not suspected themselves."""
        return len(self) - 1 - len(self._suspected)

    def overdue(self, now: float) -> list[tuple[NodeId, Row]]:
        """Suspects that are to be buried, the longest suspected first."""
        if now < self.due:
            return []
        return [(node, row) for node, row in self._suspected.items() if now >= row.until]

    def suspects(self) -> list[tuple[NodeId, Row]]:
        """Members under an open suspicion, the longest suspected first."""
        return list(self._suspected.items())

    @property
    def accusers_max(self) -> int:
        """Accusations passed on about one node. More make no difference to anybody's timer."""
        return confirmers(len(self)) + 1

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
            self._introduce(node, Row(Member(record, "alive", "new"), signed, now, now, now))
            return NEW
        old = row.member.record
        # The payload decides between two records of one version: only a faulty owner makes them.
        if (record.version, signed.payload) <= (old.version, row.signed.payload):
            return None
        revived = record.incarnation > old.incarnation and row.member.status != "alive"
        row.renewal = renewal_of(signed) if begin_alike(signed, row.signed) else None
        row.signed, row.changed_at = signed, now
        if record.incarnation > old.incarnation:
            row.heard_at = now
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
        return counts and row.believed and (row.suspicion is None or row.suspicion.is_news(claim, len(self)))

    def accuse(self, claim: Claim, signed: Signed, now: float) -> Row:
        """Count an accusation that is news."""
        row = self.rows[NodeId(claim.node)]
        suspicion = row.suspicion or Suspicion(self.me, now)
        suspicion.add(claim, now)
        if row.suspicion is None:
            row.suspicion = suspicion
            why = "its connection closed" if claim.closed else "silent"
            self._turn(row, "suspect", f"{why}, says {claim.by[:8]}", (), now)
        self._time(row)
        if len(row.evidence) < self.accusers_max:
            row.evidence = (*row.evidence, signed)
        return row

    def bury(self, row: Row, signed: Signed, now: float) -> None:
        """A suspicion ran out."""
        suspicion = row.suspicion
        assert suspicion is not None
        crashed = suspicion.is_crash(self.witnesses)
        why = "its connections closed" if crashed else f"silent for {now - suspicion.since:.1f} s"
        row.suspicion = None
        # Whoever learns of it by comparison has as many accusers at once, and no longer to wait.
        evidence = (*row.evidence, signed)
        self._turn(row, "dead", f"{why}, {len(suspicion.by)} accusers", evidence, now)

    def dismiss(self, row: Row, reason: str, evidence: tuple[Signed, ...], now: float) -> None:
        """It left by its own word, or was revoked."""
        row.suspicion = None
        self._turn(row, "left", reason, evidence, now)

    def reap(self, now: float) -> list[NodeId]:
        """Forget who has been dead or gone for long; their ids."""
        limit = now - self._config.reap_s
        old = [node for node, row in self._lost.items() if row.since < limit]
        for node in old:
            self._set_mark(self.rows.pop(node), 0)
            del self._lost[node]
            self._order.remove(node)
            self._view = None
        # Who is soon forgotten is passed on no more: it would come back from elsewhere.
        for row in self._lost.values():
            if row.since < now - self._config.reap_s / 2:
                self._set_mark(row, 0)
        return old

    def postpone(self, seconds: float) -> None:
        """This node stood still: suspects get their time back."""
        for row in self._suspected.values():
            assert row.suspicion is not None
            row.suspicion.postpone(seconds)
            self._time(row)

    def replace_me(self, member: Member, signed: Signed) -> None:
        """This node's own row."""
        mark = _mark(member, signed)
        self.hashes.replace(bucket_of(self.me), self.my_mark, mark)
        self._mine, self.my_mark, self._view = member, mark, None

    def _turn(self, row: Row, status: Status, reason: str, evidence: tuple[Signed, ...], now: float) -> None:
        row.member, row.evidence = Member(row.member.record, status, reason), evidence
        row.since = row.changed_at = now
        self._show(row)

    def _introduce(self, node: NodeId, row: Row) -> None:
        self.rows[node], self._view = row, None
        insort(self._order, node)
        self._set_mark(row, _mark(row.member, row.signed))
        self._see_witnesses()

    def _show(self, row: Row) -> None:
        self._view = None
        node = row.member.node
        if row.suspicion is not None:
            self._suspected[node] = row
        elif self._suspected.pop(node, None):
            row.until = inf
            self.due = min((each.until for each in self._suspected.values()), default=inf)
        if row.believed:
            self._lost.pop(node, None)
        else:
            self._lost[node] = row
        self._set_mark(row, _mark(row.member, row.signed) if row.believed or row.evidence else 0)
        self._see_witnesses()

    def _see_witnesses(self) -> None:
        if (self.witnesses > 0) != self._witnessed:
            self._witnessed = self.witnesses > 0
            for suspect in self._suspected.values():
                self._time(suspect)

    def _set_mark(self, row: Row, mark: int) -> None:
        self.hashes.replace(bucket_of(row.member.node), row.mark, mark)
        row.mark = mark

    def _time(self, row: Row) -> None:
        """Set a suspect's timer; how many members there are counts as of its newest accuser."""
        assert row.suspicion is not None
        row.until = row.suspicion.until(self._config, len(self), self.witnesses)
        self.due = min(each.until for each in self._suspected.values())


def _mark(member: Member, signed: Signed) -> int:
    """Of what comparisons shall find: a newer record, another one of its version, or a final verdict."""
    return _marked(signed.payload, "" if member.status in BELIEVED else member.status)


@lru_cache(maxsize=8192)
def _marked(payload: bytes, verdict: str) -> int:
    return mark_of(f"{payload.hex()} {verdict}")
