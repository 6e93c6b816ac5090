"""A swarm of membership machines in memory: virtual time, latency, stalls, crashes, partitions."""

import hashlib
import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from swarm.events import Noted
from swarm.gossip.config import GossipConfig, volunteer_wan
from swarm.gossip.dissemination import paged
from swarm.gossip.effects import Forget, Know, MemberUpdated, NoticeUpdated
from swarm.gossip.exchanging import PAGE_BYTES
from swarm.gossip.membership import Membership
from swarm.gossip.messages import BUCKETS, GOSSIP_KINDS, Claim, Exchange, Notice, Updates
from swarm.gossip.records import CLAIM, MEMBER, Untrusted, pack, pack_claim, read_claim
from swarm.gossip.view import Facts, MemberRecord, Role, read_member
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Schema, Signed, WireError

SCHEMA = Schema(GOSSIP_KINDS)


def node_name(index: int) -> NodeId:
    return NodeId(hashlib.blake2b(f"node {index}".encode(), digest_size=32).hexdigest())


def sign_as(node: str, domain: str, payload: bytes) -> Signed:
    """A signature good enough for a world without cryptographers."""
    signature = hashlib.blake2b(f"{node} {domain} ".encode() + payload).digest()
    return Signed(payload=payload, signer=node, signature=signature)


def is_signed(signed: Signed, domain: str) -> bool:
    return sign_as(signed.signer, domain, signed.payload) == signed


class Notary:
    """Believes exactly what `sign_as` signed."""

    def record(self, signed: Signed) -> MemberRecord:
        try:
            record = read_member(signed)
        except WireError as error:
            raise Untrusted(str(error)) from None
        if record.node != signed.signer or not is_signed(signed, MEMBER):
            raise Untrusted("the record has a bad signature")
        return record

    def claim(self, signed: Signed, accuser: MemberRecord) -> Claim:
        claim = read_claim(signed)
        if claim.by != accuser.node or not is_signed(signed, CLAIM):
            raise Untrusted("the claim has a bad signature")
        return claim


def record_of(
    index: int, *, incarnation: int = 1, seq: int = 0, role: Role = "worker", **facts: Any
) -> MemberRecord:
    return MemberRecord(
        job="ab",
        node=node_name(index),
        incarnation=incarnation,
        seq=seq,
        role=role,
        gossip=f"tcp://10.0.{index // 256}.{index % 256}:1",
        work=f"tcp://10.0.{index // 256}.{index % 256}:2",
        curve_key=f"key {index}",
        certificate=b"",
        facts=Facts(**facts),
    )


def signed_record(record: MemberRecord) -> Signed:
    return sign_as(record.node, MEMBER, pack(record))


def signed_claim(by: int, about: int, incarnation: int = 1, **how: bool) -> Signed:
    claim = Claim(node=node_name(about), incarnation=incarnation, by=node_name(by), **how)
    return sign_as(claim.by, CLAIM, pack_claim(claim))


def whole_view(membership: Membership) -> list[Message]:
    """All that a node tells somebody who knows nothing, in pages."""
    held = (each for bucket in range(BUCKETS) for each in membership._exchanging.held(bucket))
    pages = paged((update for each in held for update in each.updates(whole=True)), PAGE_BYTES)
    return [Message(Exchange().model_copy(update=page.fields())) for page in pages]


def machine(
    index: int, now: float = 0.0, *, config: GossipConfig | None = None, incarnation: int = 1, seed: int = 0
) -> Membership:
    me = node_name(index)
    return Membership(
        record_of(index, incarnation=incarnation),
        sign=lambda domain, payload: sign_as(me, domain, payload),
        verifier=Notary(),
        verify_notice=lambda notice: is_signed(notice.notice, "notice"),
        config=config or volunteer_wan(),
        rng=random.Random(1000 * seed + index),
        now=now,
    )


@dataclass
class Host:
    """A node of the world. stopped_until: it takes nothing in before that; inf while SIGSTOPped."""

    membership: Membership
    alive: bool = True
    stopped_until: float = 0.0
    inbox: list[Callable[[float], Sequence[Effect]]] = field(default_factory=list)
    history: list[tuple[float, NodeId, str, str]] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    forgotten: list[NodeId] = field(default_factory=list)
    noted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sent: int = 0


class World:
    """Runs machines as the driver does: ticks at deadlines, messages in order per pair."""

    def __init__(
        self, nodes: int, *, seed: int = 0, one_way_s: float = 0.05, config: GossipConfig | None = None
    ) -> None:
        self.now = 0.0
        self.rng = random.Random(seed)
        self.one_way_s = one_way_s
        self.config = config
        self.seed = seed
        self.hosts: dict[NodeId, Host] = {}
        self.cut: Callable[[NodeId, NodeId], bool] = lambda _a, _b: False
        self.largest = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._arrives: dict[tuple[NodeId, NodeId], float] = {}
        for index in range(nodes):
            self.start(index)

    # -- what happens -----------------------------------------------------------------------

    def start(self, index: int, incarnation: int = 1) -> NodeId:
        node = node_name(index)
        membership = machine(index, self.now, config=self.config, incarnation=incarnation, seed=self.seed)
        self.hosts[node] = Host(membership)
        met = [h.membership.own.signed for n, h in self.hosts.items() if n != node and h.alive][:1]
        self._do(node, membership.seed(met, self.now))
        self._schedule(node)
        return node

    def crash(self, node: NodeId, *, silent: bool = False) -> None:
        self.hosts[node].alive = False
        if not silent:
            for other in self.hosts:
                self._lose(other, node)

    def reset(self, one: NodeId, other: NodeId) -> None:
        """Both lose the connection; messages go on after a reconnect of four round trips."""
        self._lose(one, other)
        self._lose(other, one)
        back = self.now + 8 * self.one_way_s
        self._arrives[(one, other)] = self._arrives[(other, one)] = back

    def stop(self, node: NodeId, seconds: float) -> None:
        host = self.hosts[node]
        host.stopped_until = max(host.stopped_until, self.now + seconds)
        if seconds != float("inf"):
            self.at(seconds, lambda: self._wake(node))

    def leave(self, node: NodeId) -> None:
        self._do(node, self.hosts[node].membership.leave())
        self.hosts[node].alive = False
        self.at(self.one_way_s + 0.01, lambda: [self._lose(other, node) for other in self.hosts])

    def call(self, node: NodeId, act: Callable[[Membership, float], Sequence[Effect]]) -> None:
        """Let something outside gossip speak to a node's machine."""
        self._take(node, lambda now: act(self.hosts[node].membership, now))

    def tell(self, sender: NodeId, receiver: NodeId, body: Updates) -> None:
        """Say something as a node that may be lying."""
        self._send(sender, Send(receiver, Message(body)))

    def at(self, delay_s: float, act: Callable[[], Any]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), act))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
        self.now = end

    def run_until(self, done: Callable[[], bool], limit_s: float) -> float:
        """Seconds until something holds; fails if it does not within the limit."""
        start = self.now
        while not done():
            assert self.now - start < limit_s, f"not within {limit_s} s"
            self.run(0.05)
        return self.now - start

    # -- what is seen -----------------------------------------------------------------------

    def live(self) -> list[NodeId]:
        return [node for node, host in self.hosts.items() if host.alive]

    def statuses(self, target: NodeId, among: Iterable[NodeId] | None = None) -> set[str | None]:
        viewers = among if among is not None else self.live()
        return {self.hosts[v].membership.view.status(target) for v in viewers if v != target}

    def agree(self) -> bool:
        """Every live node sees every live node alive."""
        return all(self.statuses(node) == {"alive"} for node in self.live())

    def buried(self) -> list[tuple[float, NodeId, NodeId, str]]:
        return [
            (time, viewer, node, reason)
            for viewer, host in self.hosts.items()
            for time, node, status, reason in host.history
            if status == "dead"
        ]

    # -- the machinery ----------------------------------------------------------------------

    def _schedule(self, node: NodeId) -> None:
        host = self.hosts[node]
        due = host.membership.deadline()

        def tick() -> None:
            if self.hosts[node] is not host or not host.alive or self.now < host.stopped_until:
                return
            if host.membership.deadline() <= self.now:
                self._do(node, host.membership.tick(self.now))
                self._schedule(node)

        self.at(max(0.0, due - self.now), tick)

    def _take(self, node: NodeId, act: Callable[[float], Sequence[Effect]]) -> None:
        host = self.hosts[node]
        if not host.alive:
            return
        if self.now < host.stopped_until:
            host.inbox.append(act)
            return
        self._do(node, act(self.now))
        self._schedule(node)

    def _wake(self, node: NodeId) -> None:
        host = self.hosts[node]
        if not host.alive or self.now < host.stopped_until:
            return
        waiting, host.inbox = host.inbox, []
        # The driver ticks between bursts: which comes first after a stall is chance.
        if self.rng.random() < 0.5:
            self._do(node, host.membership.tick(self.now))
        for act in waiting:
            self._do(node, act(self.now))
        self._do(node, host.membership.tick(self.now))
        self._schedule(node)

    def _do(self, node: NodeId, effects: Sequence[Effect]) -> None:
        host = self.hosts[node]
        for effect in effects:
            match effect:
                case Send():
                    host.sent += 1
                    self._send(node, effect)
                case MemberUpdated(member):
                    host.history.append((self.now, member.node, member.status, member.reason))
                case NoticeUpdated(notice):
                    host.notices.append(notice)
                case Forget(peer):
                    host.forgotten.append(peer)
                case Noted(kind, fields):
                    host.noted.append((kind, fields))
                case Know():
                    pass
                case _:
                    raise AssertionError(effect)

    def _send(self, sender: NodeId, effect: Send) -> None:
        receiver = effect.peer
        assert receiver != sender
        if receiver not in self.hosts or self.cut(sender, receiver):
            return
        header = SCHEMA.pack(effect.message.body)
        self.largest = max(self.largest, len(header))
        body = SCHEMA.unpack(header)
        delay = self.one_way_s * self.rng.uniform(0.8, 1.2)
        arrives = max(self.now + delay, self._arrives.get((sender, receiver), 0.0))
        self._arrives[(sender, receiver)] = arrives
        host = self.hosts[receiver]

        def arrive() -> None:
            if self.hosts[receiver] is host:
                self._take(receiver, lambda now: host.membership.handle(sender, Message(body), now))

        self.at(arrives - self.now, arrive)

    def _lose(self, observer: NodeId, peer: NodeId) -> None:
        if observer != peer and not self.cut(observer, peer):
            act = lambda now: self.hosts[observer].membership.closed(peer, now)  # noqa: E731
            self.at(self.one_way_s, lambda: self._take(observer, act))
