"""Machine part: views that are compared now and then, which heals what gossip missed.

A node shows a member hashes of its view. In a large swarm the other answers with marks of what it
holds where the hashes differ, and each tells what the other lacks. A newcomer, and a member of a
small swarm, is told at once whatever may differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf

from swarm.gossip.compact import Renewal, renewal_of
from swarm.gossip.comparing import (
    Mark,
    Shown,
    bucket_of,
    mark,
    notice_hash,
    pack_marks,
    pack_shown,
    read_marks,
    read_shown,
    shown,
    topic_name,
)
from swarm.gossip.config import GossipConfig
from swarm.gossip.dissemination import Batch, Sort, Update, paged
from swarm.gossip.messages import (
    SHOWN_MAX,
    WANTED_MAX,
    Compare,
    Exchange,
    Marks,
    Notice,
    Spread,
    Updates,
    Want,
)
from swarm.gossip.own_record import OwnRecord
from swarm.gossip.records import claim_of
from swarm.gossip.register import Register
from swarm.gossip.spreading import Spreading
from swarm.gossip.view import MemberRecord
from transport.machine import NodeId, Send
from transport.wire import Body, Message, Signed

PAGE_BYTES = 1 << 18
"""Of a view in one message."""
ROWS_MAX = 64
"""Rows sent to a member whose view differs, but for a newcomer's. More waits for the next time."""
CORRECTIONS_MAX = 16
"""Records sent back for one message that was obsolete about their nodes."""
LOBBY_MEMBERS = 64
"""Records that a lobby hands out: who knows more than these was here before."""
CALLERS = 8
"""Members of a large swarm that call a dead one in a `push_pull_s`, on average, should it be back."""
CALLED = 4
"""Dead ones that a member of a small swarm calls in a `push_pull_s`: few remember them but it."""
SEEDS = 3
"""Members that a newcomer asks for their views, besides the first it was told of."""
FRESH_S = 10
"""What changed less than this ago comparisons leave to gossip, in a large swarm."""
ANSWER_S = 1.0
"""Between two answers of a kind for the same member; asking more often gets nothing."""
ANSWERED_MAX = 4096
"""Answers that are remembered, before those of more than `ANSWER_S` ago are not."""


@dataclass(frozen=True, slots=True)
class Held:
    """Something that a view holds: a record and the claims behind a verdict, or a notice."""

    name: str
    hash: int
    changed_at: float
    value: Signed | Notice
    evidence: tuple[Signed, ...] = ()

    @property
    def mark(self) -> Mark:
        """How it is asked for."""
        return mark(self.name, self.hash)

    def updates(self, whole: bool) -> Iterator[tuple[Update, Sort]]:
        """As it is told."""
        if isinstance(self.value, Notice):
            yield self.value, "notices"
        else:
            yield _form(self.value, whole), "records"
        for signed in self.evidence:
            yield signed, "claims"


class Exchanging:
    """One node's comparisons with others."""

    def __init__(
        self,
        own: OwnRecord,
        register: Register,
        spreading: Spreading,
        config: GossipConfig,
        rng: random.Random,
        now: float,
    ) -> None:
        self.newcomer = True
        """Until somebody has shown it a view."""
        self.stranger = True
        """Until it has met more than the lobby names."""
        self._own, self._register, self._spreading = own, register, spreading
        self._config, self._rng = config, rng
        self._answered: dict[tuple[NodeId, str], float] = {}
        self._asked_at = -inf
        self._interval_s = config.first_exchange_s
        self._due = now + self._interval_s * rng.uniform(0.8, 1.2)

    def deadline(self) -> float:
        """The next comparison."""
        return self._due

    def tick(self, now: float) -> list[Send]:
        """Compare when it is time, with a live member, and with a dead one: nothing else would tell
        that a partition healed. The dead one may have buried this node, too, and know only where it
        once listened."""
        if now < self._due:
            return []
        self._interval_s = min(self._config.push_pull_s, 2 * self._interval_s)
        self._due = now + self._interval_s * self._rng.uniform(0.8, 1.2)
        small = self._spreading.small
        dead = self._register.some_dead(CALLED if small else 1)
        if not small and not self._spreading.chosen(CALLERS * self._register.lost):
            dead = []
        hello = Message(Spread(records=(self._own.signed,)))
        for_the_dead = [Send(node, hello) for node in dead]
        return [*for_the_dead, *self._compare([*self._spreading.some_live(1), *dead])]

    # -- asking -----------------------------------------------------------------------------

    def meet(self, met: Sequence[NodeId]) -> list[Send]:
        """Ask members that this node has just been told of, the first of them first, for their views.

        The first has admitted this node, and no other hears it before that one has told of it.
        A large swarm's view is large: one is enough, and comparisons with others follow soon.
        """
        self.stranger &= len(self._register) <= LOBBY_MEMBERS
        if self._spreading.small:
            return self._compare([*met[:1], *self._spreading.some_live(SEEDS)])
        hello = Message(Spread(records=(self._own.signed,)))
        return [*(Send(peer, hello) for peer in met[:1]), *self._compare(self._spreading.some_live(1))]

    def was_told(self) -> None:
        """Somebody has shown it a view."""
        self.newcomer = self.stranger = False

    def ask_whole(self, nodes: Sequence[NodeId], peer: NodeId, now: float) -> list[Send]:
        """Who tells renewals of what is not known here is asked for the records."""
        if not nodes or now < self._asked_at + ANSWER_S or peer not in self._register.rows:
            return []
        self._asked_at = now
        return [Send(peer, Message(Want(nodes=tuple(nodes[:WANTED_MAX]))))]

    def _compare(self, peers: Iterable[NodeId], *, answer: bool = True) -> list[Send]:
        """Show hashes of the view; `answer` asks for theirs."""
        ask = Compare(
            hashes=self._register.hashes.packed(),
            answer=answer,
            newcomer=self.newcomer,
            whole=self._spreading.small or self.stranger,
        )
        return [Send(peer, Message(ask)) for peer in dict.fromkeys(peers)]

    # -- answering --------------------------------------------------------------------------

    def handle(self, peer: NodeId, body: Body, now: float) -> list[Send]:
        """Answer a member that compares or asks, but not too often."""
        match body:
            case Compare(hashes=hashes):
                buckets = self._register.hashes.differing(hashes)
                if not buckets or not self._may_answer(peer, f"compare {body.whole}", now):
                    return []
                return self._answer(peer, body, buckets, now)
            case Marks() if self._may_answer(peer, body.kind, now):
                return self._answer_marks(peer, body, now)
            case Want() if self._may_answer(peer, body.kind, now):
                return self._answer_want(peer, body)
        return []

    def _may_answer(self, peer: NodeId, kind: str, now: float) -> bool:
        turn = (peer, kind)
        if peer not in self._register.rows or now < self._answered.get(turn, -inf) + ANSWER_S:
            return False
        if len(self._answered) >= ANSWERED_MAX:
            self._answered = {each: at for each, at in self._answered.items() if now < at + ANSWER_S}
        self._answered[turn] = now
        return True

    def _answer(self, peer: NodeId, asked: Compare, buckets: Sequence[int], now: float) -> list[Send]:
        """What differs, at once or, lest most of it is known there, by its marks; beginning anywhere,
        lest the last is never sent."""
        turn = self._rng.randrange(len(buckets))
        buckets = [*buckets[turn:], *buckets[:turn]]
        if asked.newcomer or asked.whole or self.newcomer or self._spreading.small:
            held = (each for bucket in buckets for each in self.held(bucket))
            some = held if asked.newcomer else islice(held, ROWS_MAX)
            back = self._compare([peer], answer=False) if asked.answer else ()
            return [*_told(peer, some, whole=asked.whole), *back]
        there: list[Shown] = []
        named = bytearray()
        for bucket in buckets:
            marks = [each for each, _ in self._show(bucket, now)]
            if len(there) + len(marks) > SHOWN_MAX:
                break
            there += marks
            named.append(bucket)
        return [Send(peer, Message(Marks(buckets=bytes(named), shown=pack_shown(there))))] if named else []

    def _show(self, bucket: int, now: float) -> list[tuple[Shown, Held]]:
        return [(shown(held.name, held.hash, now - held.changed_at), held) for held in self.held(bucket)]

    def _answer_marks(self, peer: NodeId, body: Marks, now: float) -> list[Send]:
        """Tell what the other lacks, and ask for what it has; what changed just now gossip still tells.

        Of two states of one thing the one that changed later is probably the newer.
        """
        theirs = {each.mark: each for each in read_shown(body.shown)}
        here = [pair for bucket in sorted(set(body.buckets)) for pair in self._show(bucket, now)]
        mine = {each.mark: (each, held) for each, held in here}
        new_there = {_thing(each): each.age_s for each in theirs.values() if each.mark not in mine}
        new_here = {_thing(each): each.age_s for each, _ in mine.values() if each.mark not in theirs}
        told = [
            held
            for each, held in mine.values()
            if each.mark not in theirs and FRESH_S <= each.age_s <= new_there.get(_thing(each), inf)
        ]
        wanted = [
            each.mark
            for each in theirs.values()
            if each.mark not in mine and FRESH_S <= each.age_s <= new_here.get(_thing(each), inf)
        ]
        sends = _told(peer, told[:ROWS_MAX], whole=False)
        if wanted:
            sends.append(Send(peer, Message(Spread(wanted=pack_marks(wanted[:WANTED_MAX])))))
        return sends

    def give(self, peer: NodeId, body: Updates, now: float) -> list[Send]:
        """Tell a member what it wants by marks: of what was told lately, or of the view."""
        if not body.wanted or not self._may_answer(peer, "wanted", now):
            return []
        wanted = dict.fromkeys(read_marks(body.wanted))
        lately = Batch(PAGE_BYTES)
        for value, sort in self._spreading.queue.find(wanted):
            lately.add(value, sort)
        rest = {each for each in wanted if not self._spreading.queue.remembers(each)}
        buckets = sorted({each.bucket for each in rest})
        held = [each for bucket in buckets for each in self.held(bucket) if each.mark in rest]
        told = [Send(peer, Message(Spread().model_copy(update=lately.fields())))] if lately else []
        return [*told, *_told(peer, held, whole=False)]

    def _answer_want(self, peer: NodeId, body: Want) -> list[Send]:
        rows = [self._register.rows.get(NodeId(node)) for node in dict.fromkeys(body.nodes)]
        records = [row.signed for row in rows if row is not None]
        if self._own.node in body.nodes:
            records.append(self._own.signed)
        return [Send(peer, Message(Exchange(records=tuple(records))))] if records else []

    def held(self, bucket: int) -> Iterator[Held]:
        """What the view holds in a bucket, each thing with its mark."""
        own = self._own
        if bucket_of(own.node) == bucket:
            yield Held(own.node, self._register.my_mark, own.told_at, own.signed)
        for topic, notice in self._spreading.notices_in.get(bucket, {}).items():
            yield Held(topic_name(topic), notice_hash(notice), -inf, notice)
        for row in self._register.bucket(bucket):
            yield Held(row.member.node, row.mark, row.changed_at, row.signed, row.evidence)

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
                batch.add(_form(known[1], self._spreading.small), "records")
            if len(told) == CORRECTIONS_MAX:
                break
        return [Send(peer, Message(Spread().model_copy(update=batch.fields())))] if batch else []

    def _newest(self, node: NodeId) -> tuple[MemberRecord, Signed] | None:
        if node == self._own.node:
            return self._own.record, self._own.signed
        row = self._register.rows.get(node)
        return (row.member.record, row.signed) if row else None


def _thing(shown: Shown) -> tuple[int, int]:
    return shown.mark.bucket, shown.tag


def _told(peer: NodeId, held: Iterable[Held], *, whole: bool) -> list[Send]:
    pages = paged((update for each in held for update in each.updates(whole)), PAGE_BYTES)
    return [Send(peer, Message(Exchange().model_copy(update=page.fields()))) for page in pages if page]


def _form(signed: Signed, whole: bool) -> Signed | Renewal:
    return signed if whole else renewal_of(signed) or signed
