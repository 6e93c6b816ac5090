"""Machine part: how news travels. It rides on messages that go out anyway, and is gossiped to a few
random members; what that misses is healed by comparisons (`exchanging`)."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from math import inf

from swarm.gossip.comparing import Mark, bucket_of, notice_hash, pack_marks, read_marks, topic_name
from swarm.gossip.config import GossipConfig
from swarm.gossip.dissemination import Dissemination, Sort, Update
from swarm.gossip.messages import WANTED_MAX, Claim, Notice, Spread, Updates
from swarm.gossip.own_record import RECENT_S, OwnRecord
from swarm.gossip.register import Register, Row
from swarm.gossip.suspicion import SMALL
from transport.machine import NodeId, Send
from transport.wire import Message, Signed

WARNERS = 16
"""Members that tell a suspect directly, on average: more would be a flood in a large swarm."""
TOLD_DIRECTLY = 16
"""Members of a small swarm that hear of a crash at once; in a larger one gossip is as quick."""
GREETERS = 32
"""Members that greet a newcomer, on average."""
CHECKERS = 8
"""Members of a small swarm that look for themselves, on average, when they hear of a suspect."""
MOURNERS = 16
"""Members that tell of a death, on average: everyone buries by its own timer, and the others know."""


class Spreading:
    """What one node tells the others, and when."""

    def __init__(
        self, own: OwnRecord, register: Register, config: GossipConfig, rng: random.Random, now: float
    ) -> None:
        self.notices: dict[str, Notice] = {}
        self.notices_in: dict[int, dict[str, Notice]] = {}
        """The same by the bucket that they count for in comparisons."""
        self.expected = 0
        """Members that it is about to learn of."""
        self.queue = Dissemination(config.retransmit_mult, config.batch_bytes)
        self._own, self._register = own, register
        self._config, self._rng = config, rng
        self._gossip_at = now + config.gossip_s

    @property
    def small(self) -> bool:
        """Whether this is a swarm in which everything may be told to everyone."""
        return max(len(self._register), self.expected) <= SMALL

    def settle(self) -> None:
        """What was expected is known."""
        self.expected = 0

    def chosen(self, count: int) -> bool:
        """Whether this node is one of so many, on average, that do what all might do."""
        return self._rng.random() * max(len(self._register), self.expected) <= count

    def put(self, key: Hashable, value: Update, sort: Sort) -> None:
        """Spread this in the usual time."""
        self.queue.put(key, value, sort)

    def pass_on(self, key: Hashable, value: Update, sort: Sort) -> None:
        """Tell on what another said. In a large swarm it rides: what costs there is messages."""
        self.queue.put(key, value, sort, rides=not self.small)

    def hear(self, body: Updates) -> list[Mark]:
        """Note what somebody tells us, and which of it by its marks alone; those that we lack.

        Only a large swarm can spare a copy.
        """
        if self.small:
            return []
        for signed in body.records:
            self.queue.hear(signed, "records")
        for renewal in body.renewals:
            self.queue.hear(renewal, "renewals")
        for signed in body.claims:
            self.queue.hear(signed, "claims")
        for notice in body.notices:
            self.queue.hear(notice, "notices")
        return self.queue.lacking(read_marks(body.told))[:WANTED_MAX]

    def ask(self, lacking: Sequence[Mark], peer: NodeId, sends: Sequence[Send]) -> list[Send]:
        """Ask a member for what it told by marks: with the first of what it is sent anyway, if anything."""
        if not lacking:
            return list(sends)
        self.queue.asked(lacking)
        index = next((i for i, send in enumerate(sends) if send.peer == peer), None)
        if index is None:
            return [*sends, Send(peer, Message(Spread(wanted=pack_marks(lacking))))]
        asking = sends[index].message.body.model_copy(update={"wanted": pack_marks(lacking)})
        return [*sends[:index], Send(peer, Message(asking)), *sends[index + 1 :]]

    def tell_accusation(self, row: Row, claim: Claim, signed: Signed, now: float, *, first: bool) -> None:
        """Spread a claim that counted here; `first`: nobody had accused that member before."""
        key = ("claim", claim.node, claim.by)
        if now - row.heard_at < RECENT_S:
            # Whoever has not heard of this incarnation could do nothing with the claim.
            self.pass_on(("record", claim.node), row.told, "records")
        if not first and not claim.closed:
            self.confirm(key, signed, now)
            return
        tell = self.put if claim.closed or claim.by == self._own.node else self.pass_on
        tell(key, signed, "claims")
        self.hurry(now)

    @property
    def checks(self) -> bool:
        """Whether this node looks at once for itself when others suspect somebody.

        So a suspicion soon has all the accusers that it ever needs, or, if only its first accuser
        was in trouble, none. In a large swarm there are always some whose turn it is anyway.
        """
        return self.small and self.chosen(CHECKERS)

    def confirm(self, key: Hashable, value: Signed, now: float) -> None:
        """Spread a further accusation: it shortens a suspicion. In a large swarm it has time, and
        need not reach everyone."""
        spent = 0 if self.small else self.queue.limit(len(self._register)) // 2
        self.queue.put(key, value, "claims", rides=not self.small, spent=spent)
        if self.small:
            self.hurry(now)

    def keep(self, notice: Notice, now: float) -> None:
        """Take a newer notice, and tell it on."""
        old = self.notices.get(notice.topic)
        marks = [notice_hash(each) if each else 0 for each in (old, notice)]
        bucket = bucket_of(topic_name(notice.topic))
        self._register.hashes.replace(bucket, *marks)
        self.notices[notice.topic] = notice
        self.notices_in.setdefault(bucket, {})[notice.topic] = notice
        self.put(("notice", notice.topic), notice, "notices")
        self.hurry(now)

    def hurry(self, now: float) -> None:
        """Others should know soon."""
        self._gossip_at = min(self._gossip_at, now)

    def deadline(self) -> float:
        """The next gossip, if there is anything to tell."""
        return inf if self.queue.is_idle else self._gossip_at

    def tick(self, now: float) -> list[Send]:
        """Gossip when it is time."""
        return self._gossip(now) if now >= self._gossip_at else []

    def fill(self, sends: Iterable[Send]) -> list[Send]:
        """Let news ride on messages that go out anyway; a suspect hears what is said of it."""
        filled: list[Send] = []
        for send in sends:
            batch = self.queue.take(len(self._register))
            row = self._register.rows.get(send.peer)
            evidence = row.evidence[:1] if row is not None and self._config.lifeguard else ()
            if evidence and evidence[0] not in batch.claims:
                batch.add(evidence[0], "claims")
            if batch:
                send = Send(send.peer, Message(send.message.body.model_copy(update=batch.fields())))
            filled.append(send)
        return filled

    def greet(self, newcomer: Row) -> list[Send]:
        """Open a connection to a member before there is anything to say: its loss tells of a crash.

        Whoever never spoke to a member has no evidence of its own when it crashes.
        """
        if not self.chosen(GREETERS):
            return []
        return [Send(newcomer.member.node, Message(Spread(records=(self._own.signed,))))]

    def warn(self, suspect: Row) -> list[Send]:
        """Tell a new suspect what is said of it, so that it can refute: all of a small swarm do."""
        if not self._config.lifeguard or not self.chosen(WARNERS):
            return []
        return self.fill([Send(suspect.member.node, Message(Spread()))])

    def tell_directly(self, crashed: Row, claim: Signed) -> list[Send]:
        """In a small swarm a crash is told at once, not passed on."""
        told = Message(Spread(records=(crashed.signed,), claims=(claim,)))
        return [Send(peer, told) for peer in self.some_live(TOLD_DIRECTLY)] if self.small else []

    def farewell(self) -> list[Send]:
        """Tell everyone that this node goes on purpose."""
        own = self._own
        last = own.claim(own.node, own.record.incarnation, dead=True)
        spread = Message(Spread(records=(own.signed,), claims=(last,)))
        return [Send(peer, spread) for peer in self._register.believed()]

    def some_live(self, count: int) -> list[NodeId]:
        """So many random members that nobody suspects."""
        return self._register.some(count, lambda row: row.member.live)

    def _gossip(self, now: float) -> list[Send]:
        self._gossip_at = now + self._config.gossip_s
        if self.queue.is_idle:
            return []
        recent = now - self._config.to_the_dead_s

        def listens(row: Row) -> bool:
            return row.believed or (row.member.status == "dead" and row.since > recent)

        peers = self._register.some(self._config.gossip_nodes, listens)
        return self.fill(Send(peer, Message(Spread())) for peer in peers)
