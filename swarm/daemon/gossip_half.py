"""The half of a node that must never stall: membership, and what status can see.

Runs alike in the gossip process of a real node, in a coordinator and in the simulated world.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from swarm.daemon.bridge import (
    Bridge,
    FactsChanged,
    Failed,
    Left,
    MemberChanged,
    MemberGone,
    NoticeLearned,
    PeerLost,
    Progress,
    Stop,
)
from swarm.daemon.genesis import DOMAIN as GENESIS_DOMAIN
from swarm.daemon.genesis import TOPIC as GENESIS
from swarm.daemon.gossip_setup import GossipSetup, StatusSnapshot
from swarm.daemon.options import UserError
from swarm.daemon.trust import REVOKED
from swarm.daemon.watchdog import Watchdog
from swarm.events import Event, EventKind, Noted
from swarm.gossip.effects import Forget, Know, MemberUpdated, NoticeUpdated
from swarm.gossip.membership import Membership
from swarm.gossip.messages import Notice, Spread
from swarm.gossip.records import Untrusted
from swarm.gossip.view import Facts, View
from transport.driver import Driver
from transport.identity import verify, within
from transport.link import Link
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Signed, WireError

LOOK_S = 1.0
LAST_WORD_S = 2.0
"""How long the link to a revoked node stays open for telling it so; what it says is ignored."""


class GossipHalf:
    """Membership of one node, driven over its gossip link."""

    def __init__(self, setup: GossipSetup, link: Link, bridge: Bridge) -> None:
        self.setup = setup
        self._link, self._bridge = link, bridge
        self._membership = Membership(
            setup.record,
            sign=setup.sign,
            verifier=setup.verifier,
            verify_notice=self._believe,
            config=setup.config,
            rng=setup.rng,
            now=asyncio.get_running_loop().time(),
        )
        self._driver = Driver(
            self._membership,
            link,
            self._perform,
            closed=self._membership.closed,
            malformed=self._malformed,
        )
        self._statuses: dict[NodeId, str] = {}
        self._progress = Progress()
        self._watchdog, self._said = Watchdog(), Facts()
        self._done_since: float | None = None
        self._code = 0
        self._outcasts: list[tuple[float, NodeId]] = []
        self._outcast_reason = ""
        self._leaving = self._noted_unreadable = False

    @property
    def view(self) -> View:
        """Who is here, as this node sees it."""
        return self._membership.view

    def records(self) -> tuple[Signed, ...]:
        """Signed records of the live members, this node's own first."""
        return self._membership.signed_records()

    def dead_records(self) -> tuple[Signed, ...]:
        """Signed records of the members that are held to be dead."""
        register = self._membership.register
        return tuple(register.rows[node].signed for node in register.dead())

    def seed(self, records: Iterable[Signed]) -> None:
        """Meet the swarm through these members."""
        self._driver.act(self._membership.seed(records, self._now()))

    def publish(self, topic: str, version: int, notice: Signed) -> None:
        """Spread a notice."""
        self._driver.act(self._membership.publish(topic, version, notice, self._now()))

    def recertify(self, certificate: bytes) -> None:
        """Show the others this certificate from now on."""
        now = self._now()
        self._membership.own.recertify(certificate, now)
        self._driver.act(self._membership.tick(now))

    def leave(self, reason: str) -> None:
        """Ask the training half to hand over; `run` ends when it has."""
        self._leaving = True
        self._bridge.send(Stop(reason=reason))

    def snapshot(self) -> StatusSnapshot:
        """For the status server."""
        stats = self._link.stats
        dropped = {
            **self._membership.refused,
            "malformed": stats.dropped_malformed,
            "queue full": stats.dropped_full,
            "too large to send": stats.dropped_too_large,
            "unauthorised": stats.dropped_unauthorised,
        }
        return StatusSnapshot(
            node=self.setup.record.node,
            role=self.setup.record.role,
            job=self.setup.job,
            view=self.view,
            progress=self._progress,
            gossip_sent_bytes=sum(stats.bytes_sent.values()),
            gossip_received_bytes=sum(stats.bytes_received.values()),
            dropped={reason: count for reason, count in dropped.items() if count},
        )

    async def run(self) -> int:
        """Gossip until the training half is gone. Returns an exit code; raises UserError.

        A node that was put out ends with a sentence, too: its person has to know.
        """
        listening = self._driver.run()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(listening)
                tasks.create_task(self._hear())
                tasks.create_task(self._watch())
        except* _Ended:
            self._driver.act(self._membership.leave())
        except* UserError as group:
            raise group.exceptions[0] from None
        if self._outcast_reason:
            raise UserError(self._outcast_reason)
        return self._code

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _hear(self) -> None:
        while True:
            try:
                body = await self._bridge.recv()
            except EOFError:
                self._code = 0 if self._leaving else 1
                if not self._leaving:
                    self._note("error", {"reason": "the training process ended"})
                raise _Ended from None
            except WireError as error:
                self._unreadable(str(error))
                continue
            self._on_bridge(body)

    def _unreadable(self, reason: str) -> None:
        """The other half sent what is no message: dropped, noted the first time."""
        if not self._noted_unreadable:
            self._noted_unreadable = True
            self._note("dropped", {"what": "message of the training half", "why": reason})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self.setup.record.role == "worker":
                self._look_whether_done(self._now())
                self._look_whether_stuck(self._now())
            self._hang_up_on_outcasts(self._now())

    def _on_bridge(self, body: Body) -> None:
        now = self._now()
        if self._watchdog.heard() and not isinstance(body, FactsChanged):
            self._driver.act(self._membership.set_facts(self._said, now))
        match body:
            case FactsChanged(facts=facts):
                self._said = facts
                self._driver.act(self._membership.set_facts(facts, now))
            case PeerLost(peer=peer):
                self._driver.act(self._membership.doubt(NodeId(peer), now))
            case Progress():
                self._progress = body
                self._report(body)
            case Failed(reason=reason):
                raise UserError(reason)
            case Left():
                raise _Ended

    def _report(self, body: Progress) -> None:
        fields = {
            "cell": body.cell,
            "iteration": body.iteration,
            "tokens_per_s": round(body.tokens_per_s, 1),
            "bytes_sent": body.bytes_sent + sum(self._link.stats.bytes_sent.values()),
            "memory_bytes": body.memory_bytes,
            "dropped": body.dropped,
        }
        self._note("progress", fields)

    def _look_whether_done(self, now: float) -> None:
        """Leave when nobody has anything left to train."""
        why = self._why_done()
        if not why:
            self._done_since = None
        elif self._done_since is None:
            self._done_since = now
        elif now - self._done_since > self.setup.linger_s and not self._leaving:
            self.leave(why)

    def _look_whether_stuck(self, now: float) -> None:
        """Say so when the training half hangs: to its cell this node is as good as dead until it answers."""
        if not self._watchdog.look(now) or self._said.state == "finished":
            return
        self._note("error", {"reason": self._watchdog.why})
        stuck = {"cell": "", "stages": (), "hashes": {}, "state": "stuck"}
        self._driver.act(self._membership.set_facts(self._said.model_copy(update=stuck), now))

    def _why_done(self) -> str:
        """Why there is nothing left to train, empty if there is."""
        members = self.view.members.values()
        live = [m for m in members if m.live]
        # Who is in no cell has nothing to finish: a standby, one that came back too late, one that hangs.
        training = [m for m in live if m.facts.cell and m.facts.state != "finished"]
        if not training and any(m.facts.state == "finished" for m in live):
            return "the job is finished"
        others = [m for m in members if m.record.role == "worker" and m.node != self.setup.record.node]
        alone = all(m.status in ("dead", "left") for m in others)
        if alone and self._progress.waiting_for and any(m.facts.state == "finished" for m in others):
            return "the others have finished the job and left, and this node alone cannot go on"
        return ""

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Know(peer, endpoint):
                self._link.know(peer, endpoint)
            case Forget(peer):
                self._link.forget(peer)
                if peer not in self._membership.register.rows:
                    self._statuses.pop(peer, None)
                    self._bridge.send(MemberGone(node=peer))
            case MemberUpdated(member, signed):
                if self._statuses.get(member.node) != member.status:
                    self._statuses[member.node] = member.status
                    fields = {"status": member.status, "reason": member.reason}
                    self._note("member", {"member": member.node[:12], **fields})
                changed = MemberChanged(record=signed, status=member.status, reason=member.reason[:200])
                self._bridge.send(changed)
            case NoticeUpdated(notice):
                topic, version = notice.topic, notice.version
                self._bridge.send(NoticeLearned(topic=topic, version=version, notice=notice.notice))
                if notice.topic == REVOKED:
                    self._revoke(notice)
            case Noted(kind, fields):
                self._note(kind, fields)

    def _malformed(self, peer: NodeId, reason: str, now: float) -> list[Effect]:
        del now
        return [Noted("dropped", {"what": "malformed gossip", "peer": peer[:12], "why": reason})]

    def _note(self, kind: EventKind, fields: Mapping[str, object]) -> None:
        self.setup.emit(Event(kind, self.setup.wall(), self.setup.record.node, dict(fields)))

    def _revoke(self, notice: Notice) -> None:
        """Put them out. The notice is the last they hear: who is only cut off would train on alone."""
        nodes = self.setup.verifier.revoked(notice, self.setup.record.certificate)
        effects = self._membership.revoke(nodes, self._now())
        forgotten = [effect.peer for effect in effects if isinstance(effect, Forget)]
        self._driver.act([effect for effect in effects if not isinstance(effect, Forget)])
        last_word = Message(Spread(notices=(notice,)))
        self._driver.act([Send(peer, last_word) for peer in forgotten])
        self._outcasts += [(self._now() + LAST_WORD_S, peer) for peer in forgotten]
        if self.setup.record.node in nodes and not self._leaving:
            self._outcast_reason = "this node's membership was revoked: ask whoever runs the job"
            self.leave("this node's membership was revoked")

    def _hang_up_on_outcasts(self, now: float) -> None:
        due = [peer for at, peer in self._outcasts if now >= at]
        self._outcasts = [(at, peer) for at, peer in self._outcasts if now < at]
        for peer in due:
            self._link.forget(peer)

    def _believe(self, notice: Notice) -> bool:
        """Revocations come from the run key, genesis from a coordinator; there are no other topics."""
        trust = self.setup.verifier
        try:
            if notice.topic == REVOKED:
                return bool(trust.revoked(notice, self.setup.record.certificate))
            member = self.view.members.get(NodeId(notice.notice.signer))
            if notice.topic != GENESIS or member is None or member.record.role != "coordinator":
                return False
            domain = within(self.setup.job.digest, GENESIS_DOMAIN)
            return verify(notice.notice, domain, trust.public_key(member.record))
        except (Untrusted, WireError):
            return False


class _Ended(Exception):
    """The training half is gone, as planned or not."""
