"""Machine: who is here. SWIM with Lifeguard, over signed records, with crash evidence.

Probe members in a shuffled round; who does not answer, not even through others, is suspected;
who does not refute in time is dead. What a node says of another only ever adds to a suspicion:
every node buries by its own timer. A connection that closed is evidence for an immediate
probe; when others lost theirs, too, and nobody gets an answer, death follows at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

from swarm.events import Noted
from swarm.gossip.compact import Renewal, completed
from swarm.gossip.config import GossipConfig
from swarm.gossip.effects import Forget, Know, MemberUpdated, NoticeUpdated, updated
from swarm.gossip.exchanging import Exchanging
from swarm.gossip.messages import Claim, Exchange, Notice, Updates
from swarm.gossip.own_record import OwnRecord
from swarm.gossip.probing import Choose, Probing, Verdict
from swarm.gossip.records import Untrusted, Verifier, read_claim
from swarm.gossip.refusals import Refusals
from swarm.gossip.register import Register, Row
from swarm.gossip.spreading import MOURNERS, Spreading
from swarm.gossip.view import Facts, MemberRecord, View
from transport.link import Endpoint
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed

Look = Callable[[NodeId, Choose, float], Sequence[Send]]
NOTICES_MAX = 1024
"""Topics remembered; a notice of a further one is refused."""


class Membership:
    """One node's view and its part in keeping it true."""

    def __init__(
        self,
        record: MemberRecord,
        *,
        sign: Callable[[str, bytes], Signed],
        verifier: Verifier,
        verify_notice: Callable[[Notice], bool],
        config: GossipConfig,
        rng: random.Random,
        now: float,
    ) -> None:
        """record: this node's own, unsigned. verify_notice: whether to believe a notice."""
        self.me = NodeId(record.node)
        self.config = config
        self.own = OwnRecord(record, sign, config, now)
        self.register = Register(self.own.member, self.own.signed, config, rng)
        self.probing = Probing(self.me, config, rng, now)
        self._refusals = Refusals()
        self.refused = self._refusals.counts
        self._verifier, self._verify_notice = verifier, verify_notice
        self._revoked: set[NodeId] = set()
        self._ticked = False
        self._due: float | None = None
        self._awake_at = now
        self._reap_at = now + config.push_pull_s
        self._spreading = spreading = Spreading(self.own, self.register, config, rng, now)
        self._exchanging = Exchanging(self.own, self.register, spreading, config, rng, now)
        self._announce()

    @property
    def view(self) -> View:
        """Who is here, as this node sees it."""
        return self.register.view

    def seed(self, records: Iterable[Signed], now: float) -> Sequence[Effect]:
        """First members, from the lobby or an earlier run: learn them, ask some for their views."""
        self._due, records = None, tuple(records)
        self._spreading.expected = len(records)
        effects = [e for signed in records for e in self._learn(signed, self.me, now, told=True)]
        self._spreading.settle()
        return [*self._announce(), *effects, *self._exchanging.meet(list(self.register.rows))]

    def set_facts(self, facts: Facts, now: float) -> Sequence[Effect]:
        """Advertise these facts: at once if its place changes, else not more often than `facts_s`."""
        self._due = None
        return self._renew(now) if self.own.set_facts(facts, len(self.register), now) else []

    def publish(self, topic: str, version: int, notice: Signed, now: float) -> Sequence[Effect]:
        """Spread a notice of this node's own."""
        self._due = None
        return self._take_notice(Notice(topic=topic, version=version, notice=notice), self.me, now)

    def closed(self, peer: NodeId, now: float) -> Sequence[Effect]:
        """The gossip connection to a peer closed: look at once."""
        return self._look(self.probing.closed, peer, now)

    def doubt(self, peer: NodeId, now: float) -> Sequence[Effect]:
        """Something else speaks against a peer (its work connection closed): look at once."""
        return self._look(self.probing.doubt, peer, now)

    def revoke(self, nodes: Iterable[NodeId], now: float) -> Sequence[Effect]:
        """These nodes are members no more, whatever they or others say."""
        effects: list[Effect] = []
        self._due = None
        for node in sorted(set(nodes) - self._revoked):
            self._revoked.add(node)
            row = self.register.rows.get(node)
            if row is not None:
                self.register.dismiss(row, "revoked", (), now)
                effects += self._gone(row, now)
            # The link may know who is not in the view yet: whom the lobby has just let in.
            effects.append(Forget(node))
        return effects

    def leave(self) -> Sequence[Effect]:
        """Tell everyone that this node goes on purpose."""
        return self._spreading.farewell()

    def signed_records(self) -> tuple[Signed, ...]:
        """Records of all live members, this node's first: what a newcomer starts from."""
        return (self.own.signed, *(self.register.rows[peer].signed for peer in self.register.believed()))

    def handle(self, peer: NodeId, message: Message, now: float) -> Sequence[Effect]:
        """Take in a gossip message; the link has authenticated `peer`."""
        body = message.body
        assert isinstance(body, Updates)
        if peer in self._revoked:
            return []
        effects = [*self._notice_stall(now)]
        self._due = None
        # A record first: what is claimed of it refers to it.
        told, lacking = isinstance(body, Exchange), self._spreading.hear(body)
        for signed in body.records:
            effects += self._learn(signed, peer, now, told=told)
        unknown: list[NodeId] = []
        for renewal in body.renewals:
            effects += self._complete(renewal, peer, now, unknown, told=told)
        for signed in body.claims:
            effects += self._hear(signed, peer, now, told=told)
        effects += self._exchanging.correct(body.claims, peer)
        for notice in body.notices:
            effects += self._take_notice(notice, peer, now)
        if told:
            self._exchanging.was_told()
        sends = self._spreading.fill(self.probing.handle(peer, body, now))
        sends += self._exchanging.handle(peer, body, now)
        sends += self._exchanging.give(peer, body, now)
        sends += self._exchanging.ask_whole(unknown, peer, now)
        return [*effects, *self._spreading.ask(lacking, peer, sends)]

    def tick(self, now: float) -> Sequence[Effect]:
        """Probe, gossip, exchange, bury: whatever is due."""
        effects: list[Effect] = []
        effects += self._notice_stall(now)
        self._ticked, self._due = True, None
        sends, verdicts = self.probing.tick(self._others, now)
        effects += [effect for verdict in verdicts for effect in self._judge(verdict, now)]
        effects += self._spreading.fill(sends)
        if now >= self.own.due:
            effects += self._renew(now)
        return [*effects, *self._bury(now), *self._spreading.tick(now), *self._exchanging.tick(now)]

    def deadline(self) -> float:
        """The next thing to do; asked far oftener than it changes."""
        if self._due is None:
            rest = self._exchanging.deadline(), self.probing.deadline(), self.register.due, self.own.due
            self._due = min(self._spreading.deadline(), *rest)
        return self._due

    # -- records, claims and notices --------------------------------------------------------

    def _learn(self, signed: Signed, peer: NodeId, now: float, *, told: bool = False) -> Sequence[Effect]:
        """A member's record, perhaps newer than what we have; `told`: as part of another's view."""
        node = NodeId(signed.signer)
        row = self.register.rows.get(node)
        if row is not None and row.signed.payload == signed.payload:
            return []
        if node in self._revoked:
            return []
        if row is None and node != self.me and self.register.is_full:
            return self._refusals.note("the view is full", peer)
        try:
            record = self._verifier.record(signed)
        except Untrusted as error:
            self._spreading.queue.unhear(signed, "records")
            return self._refusals.note(str(error), peer)
        if node == self.me:
            # An earlier life may have left a newer record, or, having refuted, another of this version.
            outdone = record.version >= self.own.record.version and record != self.own.record
            return self._renew(now, beyond=record.incarnation) if outdone else []
        admission = self.register.admit(record, signed, now)
        if admission is None:
            return []
        # What is new to us alone is no news: a newcomer does not repeat a large swarm to itself.
        if self._spreading.small or not (told and admission.new):
            self._spreading.pass_on(("record", node), self.register.rows[node].told, "records")
        if admission.revived or admission.new:
            self._spreading.queue.drop_claims(node)
            self.probing.add(node)
            self._spreading.hurry(now)
        row = self.register.rows[node]
        if not admission.moved:
            return [updated(row)]
        know = Know(node, Endpoint(record.gossip, record.curve_key))
        return [know, updated(row), *self._spreading.greet(row)]

    def _complete(
        self, renewal: Renewal, peer: NodeId, now: float, unknown: list[NodeId], *, told: bool
    ) -> Sequence[Effect]:
        """A newer record of a member, of which the beginning is known; else it is among the unknown."""
        node = NodeId(renewal.node)
        row = self.register.rows.get(node)
        known = self.own.signed if node == self.me else row.signed if row is not None else None
        if known is not None and known.signature == renewal.signature:
            return []
        signed = completed(renewal, known.payload) if known is not None else None
        if signed is None:
            unknown += [node] if node not in self._revoked else []
            return []
        return self._learn(signed, peer, now, told=told)

    def _hear(self, signed: Signed, peer: NodeId, now: float, *, told: bool = False) -> Sequence[Effect]:
        """Somebody's word about somebody; checked only if it would change anything."""
        accuser = self.register.rows.get(NodeId(signed.signer))
        if accuser is None or signed.signer in self._revoked:
            return []
        try:
            claim = read_claim(signed)
            about_me = claim.node == self.me and claim.incarnation == self.own.record.incarnation
            if not about_me and not self.register.is_news(claim):
                return []
            self._verifier.claim(signed, accuser.member.record)
        except Untrusted as error:
            self._spreading.queue.unhear(signed, "claims")
            return self._refusals.note(str(error), peer)
        if about_me:
            return self._refute(claim, now)
        if claim.node == claim.by:
            return self._farewell(accuser, signed, now)
        return self._accuse(claim, signed, now, told=told)

    def _refute(self, claim: Claim, now: float) -> Sequence[Effect]:
        self.probing.worse()
        self._spreading.hurry(now)
        fields = {"member": self.me[:12], "status": "alive", "reason": f"refuted {claim.by[:8]}"}
        return [Noted("member", fields), *self._renew(now, beyond=claim.incarnation)]

    def _farewell(self, row: Row, signed: Signed, now: float) -> Sequence[Effect]:
        self.register.dismiss(row, "it said so", (signed,), now)
        self._spreading.pass_on(("claim", row.member.node, row.member.node), signed, "claims")
        return self._gone(row, now)

    def _accuse(self, claim: Claim, signed: Signed, now: float, *, told: bool = False) -> Sequence[Effect]:
        was_suspect = self.register.rows[NodeId(claim.node)].suspicion is not None
        row = self.register.accuse(claim, signed, now)
        node = row.member.node
        effects: list[Effect] = [] if was_suspect else [updated(row), *self._spreading.warn(row)]
        if signed in row.evidence and (self._spreading.small or not told):
            self._spreading.tell_accusation(row, claim, signed, now, first=not was_suspect)
        assert row.suspicion is not None
        if len(row.suspicion.closed_by) > self.register.accusers_max:
            self._spreading.queue.drop(("claim", node, self.me))  # nobody needs ours any more
        if self.me not in row.suspicion.by and (claim.closed or self._spreading.checks):
            effects += self.doubt(node, now)
        return effects

    def _take_notice(self, notice: Notice, peer: NodeId, now: float) -> Sequence[Effect]:
        notices = self._spreading.notices
        known = notices.get(notice.topic)
        if known is not None and known.version >= notice.version:
            return []
        if known is None and len(notices) >= NOTICES_MAX:
            return self._refusals.note("too many notices", peer)
        if not self._verify_notice(notice):
            return self._refusals.note("a notice that is not to be believed", peer)
        self._spreading.keep(notice, now)
        return [NoticeUpdated(notice)]

    # -- verdicts ---------------------------------------------------------------------------

    def _judge(self, verdict: Verdict, now: float) -> Sequence[Effect]:
        """A probe of this node's own failed: accuse."""
        row = self.register.rows.get(verdict.peer)
        if row is None:
            return []
        incarnation, seconded = row.member.record.incarnation, verdict.seconded
        signed = self.own.claim(verdict.peer, incarnation, closed=verdict.closed, seconded=seconded)
        claim = read_claim(signed)
        if not self.register.is_news(claim):
            return []
        effects = self._accuse(claim, signed, now)
        return [*effects, *(self._spreading.tell_directly(row, signed) if verdict.closed else ())]

    def _bury(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for node, row in self.register.overdue(now):
            others = row.suspicion.confirmations(len(self.register)) if row.suspicion else 0
            signed = self.own.claim(node, row.member.record.incarnation, dead=True, seconded=others)
            self.register.bury(row, signed, now)
            if self._spreading.chosen(MOURNERS):
                self._spreading.confirm(("claim", node, self.me), signed, now)
            effects += self._gone(row, now)
        if now >= self._reap_at:
            self._reap_at = now + self.config.push_pull_s
            effects += [Forget(node) for node in self.register.reap(now)]
        return effects

    def _gone(self, row: Row, now: float) -> Sequence[Effect]:
        self.probing.remove(row.member.node)
        self._spreading.hurry(now)
        return [updated(row)]

    # -- this node itself -------------------------------------------------------------------

    def _look(self, look: Look, peer: NodeId, now: float) -> Sequence[Effect]:
        row, self._due = self.register.rows.get(peer), None
        return self._spreading.fill(look(peer, self._others, now)) if row and row.believed else []

    def _others(self, target: NodeId) -> list[NodeId]:
        """Members to ask to try a target."""
        return self.register.some(
            self.config.indirect, lambda row: row.member.live and row.member.node != target
        )

    def _renew(self, now: float, *, beyond: int | None = None) -> Sequence[Effect]:
        """Sign and spread a new record of this node."""
        self.own.renew(now, beyond=beyond)
        return self._announce()

    def _announce(self) -> Sequence[Effect]:
        self.register.replace_me(self.own.member, self.own.signed)
        self._spreading.put(("record", self.me), self.own.told, "records")
        return [MemberUpdated(self.own.member, self.own.signed)]

    def _notice_stall(self, now: float) -> Sequence[Effect]:
        """A deadline that passed unseen, while nothing else was seen either, is a stall of ours.

        A message may move a deadline into the past; that is not lateness, for we were awake.
        """
        late = now - max(self.deadline(), self._awake_at)
        self._awake_at = now
        # Before its first tick nothing ran that could have stood still.
        return self._stalled(late, now) if self._ticked and late > self.config.stall_s else []

    def _stalled(self, seconds: float, now: float) -> Sequence[Effect]:
        """This node stood still: others may be fine, and may believe that it is not."""
        self.probing.stalled(seconds)
        self.register.postpone(seconds)
        self._spreading.hurry(now)
        noted = Noted("stalled", {"seconds": round(seconds, 3)})
        return [noted, *self._renew(now, beyond=self.own.record.incarnation)]
