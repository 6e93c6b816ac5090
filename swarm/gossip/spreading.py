"""Machine part: how news travels. It rides on messages that go out anyway, is gossiped to a few
random members, and views are compared now and then, which heals what gossip missed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice

from swarm.gossip.comparing import bucket_of, mark_of
from swarm.gossip.config import GossipConfig
from swarm.gossip.dissemination import Dissemination, Sort, paged
from swarm.gossip.messages import BUCKETS, Compare, Exchange, Notice, Spread
from swarm.gossip.own_record import OwnRecord
from swarm.gossip.records import claim_of
from swarm.gossip.register import Register, Row
from swarm.gossip.view import MemberRecord
from transport.machine import NodeId, Send
from transport.wire import Message, Signed

PAGE_BYTES = 1 << 18
"""Of a view in one message."""
ROWS_MAX = 64
"""Rows sent to a member whose view differs, but for a newcomer's. More waits for the next time."""
SMALL = 32
"""Members of a swarm in which whatever anybody learns is told on; in a larger one, only news is."""
CORRECTIONS_MAX = 16
"""Records sent back for one message that was obsolete about their nodes."""
WARNERS = 16
"""Members that tell a suspect directly, on average: more would be a flood in a large swarm."""
GREETERS = 32
"""Members that greet a newcomer, on average."""
MOURNERS = 16
"""Members that tell of a death, on average: everyone buries by its own timer, and the others know."""
ANSWER_S = 1.0
"""Between two comparisons for the same member; asking more often gets nothing."""


class Spreading:
    """What one node tells the others, and when."""

    def __init__(
        self, own: OwnRecord, register: Register, config: GossipConfig, rng: random.Random, now: float
    ) -> None:
        self.notices: dict[str, Notice] = {}
        self.newcomer = True
        """Until somebody has shown it a view."""
        self.queue = Dissemination(config.retransmit_mult, config.batch_bytes)
        self._own, self._register = own, register
        self._config, self._rng = config, rng
        self._gossip_at = now + config.gossip_s
        self._exchange_in = config.first_exchange_s
        self._exchange_at = now + self._exchange_in * rng.uniform(0.8, 1.2)

    @property
    def small(self) -> bool:
        """Whether this is a swarm in which everything may be told to everyone."""
        return len(self._register) <= SMALL

    def chosen(self, count: int) -> bool:
        """Whether this node is one of so many, on average, that do what all might do."""
        return self._rng.random() * len(self._register) <= count

    def put(self, key: Hashable, value: Signed | Notice, sort: Sort) -> None:
        """Spread this in the usual time."""
        self.queue.put(key, value, sort)

    def heard(self, *key: str) -> None:
        """Somebody told us what we may be spreading. Only a large swarm can spare a copy."""
        if not self.small:
            self.queue.heard(key)

    def confirm(self, key: Hashable, value: Signed, now: float) -> None:
        """Spread a further accusation: it shortens a suspicion, and in a large swarm it has time."""
        self.queue.put(key, value, "claims", rides=not self.small)
        if self.small:
            self.hurry(now)

    def keep(self, notice: Notice, now: float) -> None:
        """Take a newer notice, and tell it on."""
        old = self.notices.get(notice.topic)
        marks = [mark_of(f"{each.topic} {each.version}") if each else 0 for each in (old, notice)]
        self._register.hashes.replace(_bucket_of_topic(notice.topic), *marks)
        self.notices[notice.topic] = notice
        self.put(("notice", notice.topic), notice, "notices")
        self.hurry(now)

    def hurry(self, now: float) -> None:
        """Others should know soon."""
        self._gossip_at = min(self._gossip_at, now)

    def deadline(self) -> float:
        """The next gossip, if there is any, or exchange."""
        return self._exchange_at if self.queue.is_idle else min(self._gossip_at, self._exchange_at)

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
            evidence = row.evidence[:1] if row is not None and self._config.lifeguard else ()
            if evidence and evidence[0] not in batch.claims:
                batch.add(evidence[0], "claims")
            if batch:
                send = Send(send.peer, Message(send.message.body.model_copy(update=batch.fields())))
            filled.append(send)
        return filled

    def compare(self, peers: Iterable[NodeId], *, answer: bool = True) -> list[Send]:
        """Show hashes of the view; `answer` asks for theirs."""
        hashes = self._register.hashes.packed()
        ask = Message(Compare(hashes=hashes, answer=answer, newcomer=self.newcomer))
        return [Send(peer, ask) for peer in dict.fromkeys(peers)]

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

    def answer(self, peer: NodeId, body: Compare, now: float) -> list[Send]:
        """What differs from the view of a member that asks, but not too often; perhaps its turn then."""
        row = self._register.rows.get(peer)
        if row is None or now < row.answered_at + ANSWER_S:
            return []
        buckets = self._register.hashes.differing(body.hashes)
        if not buckets:
            return []
        row.answered_at = now
        pages = paged(self._differing(buckets, body.newcomer), PAGE_BYTES)
        sends = [Send(peer, Message(Exchange().model_copy(update=page.fields()))) for page in pages if page]
        return [*sends, *(self.compare([peer], answer=False) if body.answer else ())]

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

    def _exchange_in_turn(self, now: float) -> list[Send]:
        """With a live member, and with a dead one: nothing else would tell that a partition healed.

        The dead one may have buried this node, too, and know only where it once listened.
        """
        self._exchange_in = min(self._config.push_pull_s, 2 * self._exchange_in)
        self._exchange_at = now + self._exchange_in * self._rng.uniform(0.8, 1.2)
        dead = self._register.some_dead()
        for_the_dead = [Send(node, Message(Spread(records=(self._own.signed,)))) for node in dead]
        return [*for_the_dead, *self.compare([*self.some_live(1), *dead])]

    def _differing(self, buckets: Sequence[int], everything: bool) -> Iterator[tuple[Signed | Notice, Sort]]:
        """Rows and notices of some buckets, beginning anywhere, lest the last are never sent."""
        turn = self._rng.randrange(len(buckets))
        buckets = [*buckets[turn:], *buckets[:turn]]
        if bucket_of(self._own.node) in buckets:
            yield self._own.signed, "records"
        told = set(buckets)
        for topic, notice in self.notices.items():
            if _bucket_of_topic(topic) in told:
                yield notice, "notices"
        rows = (row for bucket in buckets for row in self._register.bucket(bucket))
        for row in rows if everything else islice(rows, ROWS_MAX):
            yield row.signed, "records"
            for signed in row.evidence:
                yield signed, "claims"


def _bucket_of_topic(topic: str) -> int:
    return mark_of(topic) % BUCKETS
