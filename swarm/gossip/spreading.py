"""Machine part: how news travels. It rides on messages that go out anyway, is gossiped to a few
random members, and views are compared now and then, which heals what gossip missed."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import islice
from math import inf

from swarm.gossip.compact import Renewal, renewal_of
from swarm.gossip.comparing import bucket_of, mark_of
from swarm.gossip.config import GossipConfig
from swarm.gossip.dissemination import Batch, Dissemination, Sort, Update, paged
from swarm.gossip.messages import BUCKETS, Claim, Compare, Exchange, Notice, Spread
from swarm.gossip.own_record import RECENT_S, OwnRecord
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
LOBBY_MEMBERS = 64
"""Records that a lobby hands out: who knows more than these was here before."""
TOLD_DIRECTLY = 16
"""Members of a small swarm that hear of a crash at once; in a larger one gossip is as quick."""
GREETERS = 32
"""Members that greet a newcomer, on average."""
CHECKERS = 8
"""Members of a small swarm that look for themselves, on average, when they hear of a suspect."""
CALLERS = 8
"""Members of a large swarm that call a dead one in a `push_pull_s`, on average, should it be back."""
CALLED = 4
"""Dead ones that a member of a small swarm calls in a `push_pull_s`: few remember them but it."""
MOURNERS = 16
"""Members that tell of a death, on average: everyone buries by its own timer, and the others know."""
SEEDS = 3
"""Members that a newcomer asks for their views, besides the first it was told of."""
ANSWER_S = 1.0
"""Between two comparisons for the same member; asking more often gets nothing."""
ANSWERED_MAX = 4096
"""Members whose last comparison is remembered, before those of more than `ANSWER_S` ago are not."""


class Spreading:
    """What one node tells the others, and when."""

    def __init__(
        self, own: OwnRecord, register: Register, config: GossipConfig, rng: random.Random, now: float
    ) -> None:
        self.notices: dict[str, Notice] = {}
        self.newcomer = True
        """Until somebody has shown it a view."""
        self.expected = 0
        """Members that it is about to learn of."""
        self.stranger = True
        """Until it has met more than the lobby names."""
        self.queue = Dissemination(config.retransmit_mult, config.batch_bytes)
        self._own, self._register = own, register
        self._answered: dict[tuple[NodeId, bool], float] = {}
        self._asked_at = -inf
        self._config, self._rng = config, rng
        self._gossip_at = now + config.gossip_s
        self._exchange_in = config.first_exchange_s
        self._exchange_at = now + self._exchange_in * rng.uniform(0.8, 1.2)

    @property
    def small(self) -> bool:
        """Whether this is a swarm in which everything may be told to everyone."""
        return max(len(self._register), self.expected) <= SMALL

    def settle(self) -> None:
        """What was expected is known."""
        self.expected = 0
        self.stranger &= len(self._register) <= LOBBY_MEMBERS

    def chosen(self, count: int) -> bool:
        """Whether this node is one of so many, on average, that do what all might do."""
        return self._rng.random() * max(len(self._register), self.expected) <= count

    def put(self, key: Hashable, value: Update, sort: Sort) -> None:
        """Spread this in the usual time."""
        self.queue.put(key, value, sort)

    def pass_on(self, key: Hashable, value: Update, sort: Sort) -> None:
        """Tell on what another said. In a large swarm it rides: what costs there is messages."""
        self.queue.put(key, value, sort, rides=not self.small)

    def heard(self, *key: str) -> None:
        """Somebody told us what we may be spreading. Only a large swarm can spare a copy."""
        if not self.small:
            self.queue.heard(key)

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

    def compare(self, peers: Iterable[NodeId], *, answer: bool = True, whole: bool = False) -> list[Send]:
        """Show hashes of the view; `answer` asks for theirs, `whole` for what differs in full."""
        hashes = self._register.hashes.packed()
        ask = Compare(
            hashes=hashes, answer=answer, newcomer=self.newcomer, whole=whole or self.small or self.stranger
        )
        return [Send(peer, Message(ask)) for peer in dict.fromkeys(peers)]

    def ask_whole(self, peer: NodeId, now: float) -> list[Send]:
        """Who tells a renewal of what is not known here is asked for the records."""
        if now < self._asked_at + ANSWER_S or peer not in self._register.rows:
            return []
        self._asked_at = now
        return self.compare([peer], answer=False, whole=True)

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

    def correct(self, claims: Iterable[Signed], peer: NodeId) -> list[Send]:
        """Tell who repeats obsolete claims what is newer.

        Gossip alone leaves one view in fifty behind (each update is sent only a few times), and
        whoever missed a refutation would bury the living.
        """
        batch, told = Batch(PAGE_BYTES), set[NodeId]()
        for signed in claims:
            claim = claim_of(signed)
            known = self._newest(NodeId(claim.node)) if claim else None
            if claim and known and claim.incarnation < known[0].incarnation and claim.node not in told:
                told.add(NodeId(claim.node))
                batch.add(known[1], "records")
            if len(told) == CORRECTIONS_MAX:
                break
        return [Send(peer, Message(Spread().model_copy(update=batch.fields())))] if batch else []

    def _newest(self, node: NodeId) -> tuple[MemberRecord, Signed | Renewal] | None:
        if node == self._own.node:
            return self._own.record, _form(self._own.signed, self.small)
        row = self._register.rows.get(node)
        return (row.member.record, _form(row.signed, self.small)) if row else None

    def answer(self, peer: NodeId, body: Compare, now: float) -> list[Send]:
        """What differs from the view of a member that asks, but not too often; perhaps its turn then."""
        turn = (peer, body.whole)
        if peer not in self._register.rows or now < self._answered.get(turn, -inf) + ANSWER_S:
            return []
        buckets = self._register.hashes.differing(body.hashes)
        if not buckets:
            return []
        if len(self._answered) >= ANSWERED_MAX:
            self._answered = {each: at for each, at in self._answered.items() if now < at + ANSWER_S}
        self._answered[turn] = now
        pages = paged(self._differing(buckets, body.newcomer, body.whole), PAGE_BYTES)
        sends = [Send(peer, Message(Exchange().model_copy(update=page.fields()))) for page in pages if page]
        return [*sends, *(self.compare([peer], answer=False) if body.answer else ())]

    def meet(self, met: Sequence[NodeId]) -> list[Send]:
        """Ask members that this node has just been told of, the first of them first, for their views.

        The first has admitted this node, and no other hears it before that one has told of it.
        A large swarm's view is large: one is enough, and comparisons with others follow soon.
        """
        if self.small:
            return self.compare([*met[:1], *self.some_live(SEEDS)])
        hello = Message(Spread(records=(self._own.signed,)))
        return [*(Send(peer, hello) for peer in met[:1]), *self.compare(self.some_live(1))]

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
        dead = self._register.some_dead(CALLED if self.small else 1)
        if not self.small and not self.chosen(CALLERS * self._register.lost):
            dead = []
        hello = Message(Spread(records=(self._own.signed,)))
        for_the_dead = [Send(node, hello) for node in dead]
        return [*for_the_dead, *self.compare([*self.some_live(1), *dead])]

    def _differing(
        self, buckets: Sequence[int], everything: bool, whole: bool
    ) -> Iterator[tuple[Update, Sort]]:
        """Rows and notices of some buckets, beginning anywhere, lest the last are never sent."""
        turn = self._rng.randrange(len(buckets))
        buckets = [*buckets[turn:], *buckets[:turn]]
        if bucket_of(self._own.node) in buckets:
            yield _form(self._own.signed, whole), "records"
        told = set(buckets)
        for topic, notice in self.notices.items():
            if _bucket_of_topic(topic) in told:
                yield notice, "notices"
        rows = (row for bucket in buckets for row in self._register.bucket(bucket))
        for row in rows if everything else islice(rows, ROWS_MAX):
            yield _form(row.signed, whole), "records"
            for signed in row.evidence:
                yield signed, "claims"


def _form(signed: Signed, whole: bool) -> Signed | Renewal:
    return signed if whole else renewal_of(signed) or signed


def _bucket_of_topic(topic: str) -> int:
    return mark_of(topic) % BUCKETS
