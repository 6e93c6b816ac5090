"""Thousands of membership machines in one thread: the shipping machine, without link, loop or tasks.

A heap of deadlines and arrivals takes the place of the event loop. Messages are handed over as
they are; that encoding and decoding would give back the same is a test's to say, and so is that
the bytes counted here are those of the encoding.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random
from typing import Any

from swarm.gossip.config import GossipConfig, volunteer_wan
from swarm.gossip.effects import MemberUpdated
from swarm.gossip.membership import Membership
from swarm.gossip.messages import Updates
from swarm.gossip.view import MemberRecord
from swarm.lab.crowd_members import Registry
from swarm.lab.crowd_sizes import Sizes, on_the_wire
from swarm.lab.crowd_tally import Tally
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send
from transport.sim_paths import RETRANSMISSIONS_MAX, RETRANSMIT_S_MIN, LinkShape
from transport.wire import Message

LOBBY_MEMBERS = 64
"""Records that a newcomer is handed: as many as the lobby's `Welcome` may hold."""
PAIRS = 10_000
"""Last arrivals that are remembered, at least, before those in the past are forgotten."""


@dataclass(eq=False, slots=True)
class Host:
    """One life of a node.

    asleep_until: it takes nothing in before that. wake_at: the tick that is already on the heap.
    peers: those it has a connection with, if connections are followed.
    """

    index: int
    membership: Membership
    born_at: float
    alive: bool = True
    asleep_until: float = 0.0
    wake_at: float = inf
    inbox: list[tuple[NodeId, Message]] = field(default_factory=list)
    peers: dict[Host, None] = field(default_factory=dict)

    @property
    def node(self) -> NodeId:
        """Node id."""
        return self.membership.me


class Crowd:
    """Machines, what lies between them, and the virtual time.

    shape: of every path; its loss delays, as on our reliable lanes. drops: share of messages
    that are lost for good, as datagrams are. closes: whether a crash closes connections.
    cut: whether nothing gets from one node to another, by their indices.
    """

    def __init__(
        self,
        nodes: int,
        *,
        seed: int,
        shape: LinkShape,
        drops: float = 0.0,
        closes: bool = False,
        gossip: GossipConfig | None = None,
    ) -> None:
        self.now = 0.0
        self.rng = Random(seed)
        self.tally = Tally()
        self.largest_bytes = 0
        self.cut: Callable[[int, int], bool] = lambda _sender, _receiver: False
        self._shape, self._drops, self._closes = shape, drops, closes
        self._gossip = gossip or volunteer_wan()
        self._registry = Registry(self.rng)
        self._people: list[tuple[Identity, MemberRecord]] = [self._registry.admit(i) for i in range(nodes)]
        self._sizes = Sizes()
        self._events: list[tuple[float, int, Host | None, Any, Message | None]] = []
        self._order = count()
        self._leaves: dict[int, float] = {}
        self._arrives: dict[tuple[int, int], float] = {}
        self._pairs_max = PAIRS
        self.hosts: list[Host] = []
        self._by_node: dict[NodeId, Host] = {}

    # -- what happens -----------------------------------------------------------------------

    def begin(self) -> None:
        """Everyone starts, knowing everyone."""
        self.hosts = [self._make(index, incarnation=1) for index in range(len(self._people))]
        self._by_node = {host.node: host for host in self.hosts}
        records = [host.membership.own.signed for host in self.hosts]
        for host in self.hosts:
            others = [signed for signed in records if signed.signer != host.node]
            self._perform(host, host.membership.seed(others, 0.0))
        for host in self.hosts:
            self.tally.born(host.index, self.now)
            self._schedule(host)

    def crash(self, host: Host) -> None:
        """The process is gone: with connections that close, or in silence."""
        host.alive = False
        watchers = [other.node for other in self.hosts if other.alive]
        self.tally.crashed(host.node, host.index, watchers, self.now)
        for peer in host.peers if self._closes else ():
            peer.peers.pop(host, None)
            self.at(self._shape.latency_s, lambda peer=peer: self._lose(peer, host.node))  # type: ignore[misc]
        host.peers.clear()

    def restart(self, host: Host) -> None:
        """It is back, with a higher incarnation; it knows whom the lobby names, and, as a node keeps
        the members' records on its disk, whom it knew."""
        incarnation = host.membership.own.record.incarnation + 1
        back = self._make(host.index, incarnation=incarnation)
        self.hosts[host.index] = self._by_node[back.node] = back
        self.tally.returned(back.node, back.index, incarnation, self.now)
        live = [other for other in self.hosts if other.alive and other is not back]
        met = self.rng.sample(live, min(LOBBY_MEMBERS, len(live)))
        known = [h.membership.own.signed for h in met]
        known += (signed for signed in host.membership.signed_records() if signed.signer != back.node)
        self._perform(back, back.membership.seed(known, self.now))
        self._schedule(back)

    def stall(self, host: Host, seconds: float) -> None:
        """It stands still for a while, as under SIGSTOP; what is sent to it waits."""
        host.asleep_until = max(host.asleep_until, self.now + seconds)
        self.at(seconds, lambda: self._wake(host))

    def at(self, delay_s: float, act: Callable[[], Any]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), None, act, None))

    def run(self, until_s: float) -> None:
        """Let virtual time pass."""
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= until_s:
            self.now, _, host, extra, message = pop(events)
            if host is None:
                extra()
            elif message is not None:
                self._arrive(host, extra, message)
            elif host.wake_at == self.now:
                host.wake_at = inf
                if host.alive and self.now >= host.asleep_until:
                    self._schedule(host)
        self.now = until_s

    # -- the machinery ----------------------------------------------------------------------

    def _make(self, index: int, *, incarnation: int) -> Host:
        identity, record = self._people[index]
        membership = Membership(
            record.model_copy(update={"incarnation": incarnation}),
            sign=identity.signing_in(record.job),
            verifier=self._registry.trust,
            verify_notice=lambda _: False,
            config=self._gossip,
            rng=Random(self.rng.getrandbits(64)),
            now=self.now,
        )
        return Host(index, membership, self.now)

    def _schedule(self, host: Host) -> None:
        """Tick what is due, as the driver does after every burst, and see to the next deadline."""
        due = host.membership.deadline()
        while due <= self.now:
            self._perform(host, host.membership.tick(self.now))
            due = host.membership.deadline()
        if due < host.wake_at:
            host.wake_at = due
            heapq.heappush(self._events, (due, next(self._order), host, None, None))

    def _arrive(self, host: Host, sender: NodeId, message: Message) -> None:
        if not host.alive:
            return
        if self.now < host.asleep_until:
            host.inbox.append((sender, message))
            return
        self._perform(host, host.membership.handle(sender, message, self.now))
        self._schedule(host)

    def _wake(self, host: Host) -> None:
        if not host.alive or self.now < host.asleep_until:
            return
        # The driver ticks between bursts: which comes first after a stall is chance.
        if self.rng.random() < 0.5:
            self._perform(host, host.membership.tick(self.now))
        waiting, host.inbox = host.inbox, []
        for sender, message in waiting:
            self._perform(host, host.membership.handle(sender, message, self.now))
        self._schedule(host)

    def _lose(self, host: Host, peer: NodeId) -> None:
        if host.alive:
            self._perform(host, host.membership.closed(peer, self.now))
            self._schedule(host)

    def _perform(self, host: Host, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if type(effect) is Send:
                self._send(host, effect.peer, effect.message)
            elif type(effect) is MemberUpdated:
                self.tally.seen(host.node, effect.member, self.now)

    def _send(self, sender: Host, peer: NodeId, message: Message) -> None:
        body = message.body
        assert isinstance(body, Updates)
        nbytes = on_the_wire(self._sizes.of(body))
        self.largest_bytes = max(self.largest_bytes, nbytes)
        self.tally.sent(sender.index, body.kind, nbytes)
        receiver = self._by_node[peer]
        arrives = self._journey(sender.index, receiver.index, nbytes)
        if not receiver.alive or (self._drops and self.rng.random() < self._drops):
            return
        if self.cut(sender.index, receiver.index):
            return
        if self._closes:
            sender.peers[receiver] = receiver.peers[sender] = None
        heapq.heappush(self._events, (arrives, next(self._order), receiver, sender.node, message))

    def _journey(self, sender: int, receiver: int, nbytes: int) -> float:
        """When a message sent now arrives: the arithmetic of `sim_paths`, in order for each pair."""
        shape, now = self._shape, self.now
        leaves = max(now, self._leaves.get(sender, now)) + nbytes / shape.bandwidth_bytes_per_s
        self._leaves[sender] = leaves
        arrives = leaves + shape.latency_s + self.rng.random() * shape.jitter_s
        timeout = max(RETRANSMIT_S_MIN, 4 * shape.latency_s)
        for _ in range(RETRANSMISSIONS_MAX if shape.loss else 0):
            if self.rng.random() >= shape.loss:
                break
            arrives += timeout
            timeout *= 2
        if self._drops:
            return arrives
        arrives = max(arrives, self._arrives.get((sender, receiver), 0.0))
        self._arrives[sender, receiver] = arrives
        if len(self._arrives) > self._pairs_max:
            self._arrives = {pair: time for pair, time in self._arrives.items() if time > now}
            self._pairs_max = 2 * len(self._arrives) + PAIRS
        return arrives
