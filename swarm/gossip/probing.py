"""Machine part: whom to probe, what is outstanding, and who failed to answer.

One probe a period, many members in shuffled rounds; a probe without an answer asks others to try,
and who does not reach the target either says so (nack), so that a missing nack tells a node
that it is itself the problem (Lifeguard's local health).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from swarm.gossip.config import GossipConfig
from swarm.gossip.messages import Ack, Nack, Ping, PingRequest, Updates
from transport.machine import NodeId, Send
from transport.wire import Message

RELAYS_MAX = 256
"""Questions on behalf of others at a time; a further one is answered with a nack at once."""
LAST_WORDS_S = 0.25
"""What arrives this soon after a connection closed may have been sent before: it proves nothing."""
FEW = 16
"""Members of whom each is probed by age, and so often that all together soon notice a silence."""
RELAY_SHARE = 0.8
"""Of a probe's time: after this the nack goes out, so that it is back before the probe ends."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A peer did not answer. closed: its connection to this node closed, and it said nothing since.

    seconded: how many others say that they did not reach it, either.
    """

    peer: NodeId
    closed: bool
    seconded: int = 0


@dataclass(slots=True)
class Probe:
    """A question under way.

    ask_at: when others are asked, if there is no answer. urgent: something closed, or somebody
    says so; it tells nothing about this node's own health. asker: who we ask for, and its seq.
    """

    peer: NodeId
    ask_at: float
    until: float
    urgent: bool = False
    asked: bool = False
    others: set[NodeId] = field(default_factory=set)
    nacks: set[NodeId] = field(default_factory=set)
    asker: tuple[NodeId, int] | None = None

    def expects(self, speaker: NodeId) -> bool:
        """Whether an ack of this speaker answers the question."""
        return speaker == self.peer or speaker in self.others


Choose = Callable[[NodeId], Sequence[NodeId]]
"""Target -> members that are asked to try it."""
Outcome = tuple[Sequence[Send], Sequence[Verdict]]


class Probing:
    """Probes of one node."""

    def __init__(self, me: NodeId, config: GossipConfig, rng: random.Random, now: float) -> None:
        self.me, self.config = me, config
        self.health = 0
        self._rng = rng
        self._round: list[NodeId] = []
        self._members: set[NodeId] = set()
        self._met: dict[NodeId, float] = {}
        self._probes: dict[int, Probe] = {}
        self._closed: dict[NodeId, float] = {}
        self._seq = 0
        self._next_at = now + config.probe_s * rng.random()

    def add(self, peer: NodeId) -> None:
        """A member to probe; it enters the current round, if one is under way, at a random place."""
        if peer not in self._members:
            self._members.add(peer)
            if self._round:
                self._round.insert(self._rng.randint(0, len(self._round)), peer)

    def remove(self, peer: NodeId) -> None:
        """Probe it no more."""
        if peer in self._members:
            self._members.discard(peer)
            self._round = [each for each in self._round if each != peer]
        self._closed.pop(peer, None)
        self._met.pop(peer, None)
        self._probes = {seq: p for seq, p in self._probes.items() if p.peer != peer or p.asker}

    def worse(self, by: int = 1) -> None:
        """This node had to refute, or missed something: be slower to accuse."""
        if not self.config.lifeguard:
            return
        self.health = min(self.config.health_max - 1, self.health + by)

    def stalled(self, seconds: float) -> None:
        """This node stood still: what is outstanding gets its time back."""
        self.worse()
        self._next_at += seconds
        for probe in self._probes.values():
            probe.ask_at += seconds
            probe.until += seconds

    # -- asking -----------------------------------------------------------------------------

    def closed(self, peer: NodeId, choose: Choose, now: float) -> Sequence[Send]:
        """Its connection closed: look at once. What it says from now on proves it alive."""
        self._closed[peer] = now
        return self.doubt(peer, choose, now)

    def doubt(self, peer: NodeId, choose: Choose, now: float) -> Sequence[Send]:
        """Something is wrong with a member: probe it now, directly and through others."""
        if any(probe.urgent and probe.peer == peer for probe in self._probes.values()):
            return []
        probe = Probe(peer, now, now + self.config.closed_probe_s, urgent=True)
        seq = self._begin(probe)
        return [Send(peer, Message(Ping(seq=seq))), *self._ask(seq, probe, choose(peer))]

    def tick(self, choose: Choose, now: float) -> Outcome:
        """Begin the next probe, ask others, and judge."""
        sends: list[Send] = []
        verdicts: list[Verdict] = []
        for seq, probe in list(self._probes.items()):
            if now >= probe.until:
                del self._probes[seq]
                said, judged = self._expire(probe)
                sends += said
                verdicts += judged
            elif not probe.asked and probe.asker is None and now >= probe.ask_at:
                sends += self._ask(seq, probe, choose(probe.peer))
        if now >= self._next_at:
            interval = self.config.probe_s * (self.health + 1)
            # In a small swarm few probe a member: let them do so up to twice as often.
            self._next_at = now + interval * max(0.5, min(1.0, len(self._members) / FEW))
            sends += self._probe_next(now, interval)
        return sends, verdicts

    def deadline(self) -> float:
        """When the next probe begins, asks others, or ends."""
        due = self._next_at
        for probe in self._probes.values():
            due = min(due, probe.until if probe.asked or probe.asker else probe.ask_at)
        return due

    def _begin(self, probe: Probe) -> int:
        self._seq += 1
        self._probes[self._seq] = probe
        return self._seq

    def _ask(self, seq: int, probe: Probe, others: Sequence[NodeId]) -> list[Send]:
        probe.asked = True
        probe.others = set(others)
        return [Send(other, Message(PingRequest(seq=seq, target=probe.peer))) for other in others]

    def _probe_next(self, now: float, interval: float) -> list[Send]:
        peer = self._next_peer()
        if peer is None:
            return []
        self._met[peer] = now
        seq = self._begin(Probe(peer, now + self.config.probe_timeout_s, now + interval))
        return [Send(peer, Message(Ping(seq=seq)))]

    def _next_peer(self) -> NodeId | None:
        """Of few members the one that was heard of least recently, of many the next of a shuffled round.

        With both ends of a pair looking after each other, a pair meets twice in a round.
        """
        if self._members and len(self._members) <= FEW:
            return min(
                sorted(self._members), key=lambda each: (self._met.get(each, -inf), self._rng.random())
            )
        self._met.clear()
        if not self._round:
            self._round = sorted(self._members)
            self._rng.shuffle(self._round)
        return self._round.pop() if self._round else None

    def _expire(self, probe: Probe) -> Outcome:
        if probe.asker is not None:
            asker, seq = probe.asker
            return [Send(asker, Message(Nack(seq=seq)))], []
        if not probe.urgent:
            self.worse(len(probe.others - probe.nacks) if probe.others else 1)
        return [], [Verdict(probe.peer, probe.peer in self._closed, len(probe.nacks))]

    # -- answering --------------------------------------------------------------------------

    def handle(self, peer: NodeId, body: Updates, now: float) -> Sequence[Send]:
        """Answer, or take an answer. Any word of a peer shows that its connection is there."""
        if now > self._closed.get(peer, now) + LAST_WORDS_S:
            del self._closed[peer]
        match body:
            case Ping(seq=seq):
                if peer in self._met:
                    self._met[peer] = now
                return [Send(peer, Message(Ack(seq=seq)))]
            case PingRequest(seq=seq, target=target):
                return self._relay(peer, seq, NodeId(target), now)
            case Ack(seq=seq):
                return self._acknowledged(peer, seq)
            case Nack(seq=seq):
                probe = self._probes.get(seq)
                if probe is not None and peer in probe.others:
                    probe.nacks.add(peer)
        return []

    def _relay(self, asker: NodeId, seq: int, target: NodeId, now: float) -> list[Send]:
        if target == self.me:
            return [Send(asker, Message(Ack(seq=seq)))]
        relays = sum(probe.asker is not None for probe in self._probes.values())
        if target not in self._members or relays >= RELAYS_MAX:
            return [Send(asker, Message(Nack(seq=seq)))]
        limit = now + RELAY_SHARE * min(self.config.probe_timeout_s, self.config.closed_probe_s)
        ours = self._begin(Probe(target, limit, limit, asker=(asker, seq)))
        return [Send(target, Message(Ping(seq=ours)))]

    def _acknowledged(self, speaker: NodeId, seq: int) -> list[Send]:
        probe = self._probes.get(seq)
        if probe is None or not probe.expects(speaker):
            return []
        del self._probes[seq]
        if probe.asker is not None:
            asker, theirs = probe.asker
            return [Send(asker, Message(Ack(seq=theirs)))]
        if not probe.urgent:
            self.health = max(0, self.health - 1)
        return []
