"""Machine part: how news travels. It rides on messages that go out anyway, is gossiped to a few
random members, and whole views are exchanged now and then, which heals what gossip missed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator

from swarm.gossip.config import GossipConfig
from swarm.gossip.dissemination import Dissemination, Sort, paged
from swarm.gossip.messages import Exchange, Notice, Spread
from swarm.gossip.own_record import OwnRecord
from swarm.gossip.records import claim_of
from swarm.gossip.register import Register, Row
from swarm.gossip.view import MemberRecord
from transport.machine import NodeId, Send
from transport.wire import Message, Signed

PAGE_BYTES = 1 << 18
"""Of a view in one message."""
CORRECTIONS_MAX = 16
"""Records sent back for one message that was obsolete about their nodes."""
WARNERS = 16
"""Members that tell a suspect directly, on average: more would be a flood in a large swarm."""
GREETERS = 32
"""Members that greet a newcomer, on average."""
ANSWER_S = 1.0
"""Between two whole views for the same member; asking more often gets nothing."""


class Spreading:
    """What one node tells the others, and when."""

    def __init__(
        self, own: OwnRecord, register: Register, config: GossipConfig, rng: random.Random, now: float
    ) -> None:
        self.notices: dict[str, Notice] = {}
        self.queue = Dissemination(config.retransmit_mult, config.batch_bytes)
        self._own, self._register = own, register
        self._config, self._rng = config, rng
        self._gossip_at = now + config.gossip_s
        self._exchange_in = config.first_exchange_s
        self._exchange_at = now + self._exchange_in * rng.uniform(0.8, 1.2)

    def put(self, key: Hashable, value: Signed | Notice, sort: Sort) -> None:
        """Spread this in the usual time."""
        self.queue.put(key, value, sort)

    def hurry(self, now: float) -> None:
        """Others should know soon."""
        self._gossip_at = min(self._gossip_at, now)

    def deadline(self) -> float:
        """The next gossip, if there is any, or exchange."""
        return min(self._gossip_at, self._exchange_at) if len(self.queue) else self._exchange_at

    def tick(self, now: float) -> list[Send]:
        """Gossip and exchange when it is time."""
        sends: list[Send] = []
        if now >= self._gossip_at:
            sends += self._gossip(now)
        if now >= self._exchange_at:
            sends += self._exchange_in_turn(now)
        return sends

    def fill(self, sends: Iterable[Send]) -> list[Send]:
        """Let news ride on messages that go out anyway; a suspect hears what is said of it."""
        filled: list[Send] = []
        for send in sends:
            batch = self.queue.take(len(self._register))
            row = self._register.rows.get(send.peer)
            if row is not None and row.evidence and row.evidence[0] not in batch.claims:
                batch.add(row.evidence[0], "claims")
            filled.append(Send(send.peer, Message(send.message.body.model_copy(update=batch.fields()))))
        return filled

    def exchange(self, peers: Iterable[NodeId], now: float, *, answer: bool) -> list[Send]:
        """Send the whole view; `answer` asks for theirs."""
        pages = [
            Exchange(answer=False).model_copy(update=b.fields()) for b in paged(self._all(now), PAGE_BYTES)
        ]
        pages[0] = pages[0].model_copy(update={"answer": answer})
        return [Send(peer, Message(page)) for peer in dict.fromkeys(peers) for page in pages]

    def greet(self, newcomer: Row) -> list[Send]:
        """Open a connection to a member before there is anything to say: its loss tells of a crash.

        Whoever never spoke to a member has no evidence of its own when it crashes.
        """
        if self._rng.random() * len(self._register) > GREETERS:
            return []
        return [Send(newcomer.member.node, Message(Spread(records=(self._own.signed,))))]

    def warn(self, suspect: Row) -> list[Send]:
        """Tell a new suspect what is said of it, so that it can refute: all of a small swarm do."""
        if self._rng.random() * len(self._register) > WARNERS:
            return []
        return self.fill([Send(suspect.member.node, Message(Spread()))])

    def correct(self, claims: Iterable[Signed], peer: NodeId) -> list[Send]:
        """Tell who repeats obsolete claims what is newer.

        Gossip alone leaves one view in fifty behind (each update is sent only a few times), and
        whoever missed a refutation would bury the living.
        """
        newer: dict[NodeId, Signed] = {}
        for signed in claims:
            claim = claim_of(signed)
            known = self._newest(NodeId(claim.node)) if claim else None
            if claim and known and claim.incarnation < known[0].incarnation:
                newer[NodeId(claim.node)] = known[1]
        records = tuple(newer.values())[:CORRECTIONS_MAX]
        return [Send(peer, Message(Spread(records=records)))] if records else []

    def _newest(self, node: NodeId) -> tuple[MemberRecord, Signed] | None:
        if node == self._own.node:
            return self._own.record, self._own.signed
        row = self._register.rows.get(node)
        return (row.member.record, row.signed) if row else None

    def answer(self, peer: NodeId, now: float) -> list[Send]:
        """The whole view for a member that asks, but not too often."""
        row = self._register.rows.get(peer)
        if row is None or now < row.answered_at + ANSWER_S:
            return []
        row.answered_at = now
        return self.exchange([peer], now, answer=False)

    def some_live(self, count: int) -> list[NodeId]:
        """So many random members that nobody suspects."""
        return self._register.some(count, lambda row: row.member.live)

    def _gossip(self, now: float) -> list[Send]:
        self._gossip_at = now + self._config.gossip_s
        if not len(self.queue):
            return []
        recent = now - self._config.to_the_dead_s

        def listens(row: Row) -> bool:
            return row.believed or (row.member.status == "dead" and row.since > recent)

        peers = self._register.some(self._config.gossip_nodes, listens)
        return self.fill(Send(peer, Message(Spread())) for peer in peers)

    def _exchange_in_turn(self, now: float) -> list[Send]:
        """With a live member, and with a dead one: nothing else would tell that a partition healed."""
        self._exchange_in = min(self._config.push_pull_s, 2 * self._exchange_in)
        self._exchange_at = now + self._exchange_in * self._rng.uniform(0.8, 1.2)
        dead = self._register.some(1, lambda row: row.member.status == "dead")
        return self.exchange([*self.some_live(1), *dead], now, answer=True)

    def _all(self, now: float) -> Iterator[tuple[Signed | Notice, Sort]]:
        """The whole view, but for who is soon forgotten: it would come back from elsewhere."""
        yield self._own.signed, "records"
        recent = now - self._config.reap_s / 2
        for row in self._register.rows.values():
            if row.believed or (row.evidence and row.since > recent):
                yield row.signed, "records"
                for signed in row.evidence:
                    yield signed, "claims"
        for notice in self.notices.values():
            yield notice, "notices"
