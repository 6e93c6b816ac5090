"""What lies between simulated nodes: how long bytes travel, and who is cut off from whom.

Arithmetic only; `sim_link.py` moves the messages and `sim_sharing.py` divides capacity among them.
The path between two nodes is a reliable byte stream per direction and lane, as over TCP: a lost
message costs a retransmission, and a cut holds messages back. Unless a shape asks for it, nothing
is reordered or duplicated.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from transport.machine import NodeId

RETRANSMIT_S_MIN = 0.2
"""Smallest retransmission timeout of a TCP sender (Linux; RFC 6298 recommends 1 s)."""
RETRANSMISSIONS_MAX = 8
JITTER_SIGMA = 1.0
"""Of log-normal jitter: one message in a hundred waits ten times the median."""
RESEND_S_MAX = 2.0
"""How much later than its time a copy or an overtaken message comes: about what a reconnect takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """What one direction of a path between two nodes is like.

    latency_s: one way. Every message waits at least this long.
    bandwidth_bytes_per_s: how much the path carries. Transfers that run at the same time also share
        their sender's uplink and their receiver's downlink (`SimNetwork.set_access`).
    jitter_s: each message waits up to this much longer, uniformly; order is kept.
    jitter_law: "log-normal" makes `jitter_s` the median of a wait that is sometimes far longer.
    loss: probability that a message must be sent again, which costs a retransmission timeout
        (twice the round trip, at least 0.2 s, doubling each time).
    duplication: probability that a control message comes a second time, up to 2 s later: what an
        application sees of a sender that sends again after a reconnect what had arrived before it.
    reordering: probability that a control message comes up to 2 s late and those behind it do not
        wait: what an application sees of a message that only the new connection brought.
    """

    latency_s: float = 0.0005
    bandwidth_bytes_per_s: float = 1e9
    jitter_s: float = 0.0
    jitter_law: Literal["uniform", "log-normal"] = "uniform"
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.jitter_s < 0 or self.bandwidth_bytes_per_s <= 0:
            raise ValueError("a link needs latency and jitter of at least 0, and some bandwidth")
        if not all(0 <= share < 1 for share in (self.loss, self.duplication, self.reordering)):
            raise ValueError("loss, duplication and reordering of a link are at least 0 and below 1")

    def slowed(self, factor: float) -> LinkShape:
        """A shape with `factor` times the latency and 1/`factor` of the bandwidth."""
        bandwidth = self.bandwidth_bytes_per_s / factor
        return replace(self, latency_s=self.latency_s * factor, bandwidth_bytes_per_s=bandwidth)

    def towards(self, other: LinkShape, share: float) -> LinkShape:
        """This shape, moved linearly by a share of the way to another, whose jitter law it takes."""

        def between(here: float, there: float) -> float:
            return here + share * (there - here)

        return LinkShape(
            latency_s=between(self.latency_s, other.latency_s),
            bandwidth_bytes_per_s=between(self.bandwidth_bytes_per_s, other.bandwidth_bytes_per_s),
            jitter_s=between(self.jitter_s, other.jitter_s),
            jitter_law=other.jitter_law,
            loss=between(self.loss, other.loss),
            duplication=between(self.duplication, other.duplication),
            reordering=between(self.reordering, other.reordering),
        )


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when something changes, linearly."""

    begins: float
    ends: float

    def share(self, now: float) -> float:
        """How much of the change is done, from 0 to 1."""
        if now >= self.ends:
            return 1.0
        return max(0.0, (now - self.begins) / (self.ends - self.begins))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A severed part of the network: no side hears another. Nodes on no side hear everybody.

    both_ways: if not, only messages from an earlier side to a later one are held.
    """

    sides: tuple[frozenset[NodeId], ...]
    both_ways: bool = True

    def severs(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether messages from `sender` to `receiver` are held back."""
        here, there = self._side(sender), self._side(receiver)
        if here is None or there is None or here == there:
            return False
        return self.both_ways or here < there

    def _side(self, node: NodeId) -> int | None:
        return next((index for index, side in enumerate(self.sides) if node in side), None)


class Paths:
    """Shapes of all paths and how they change, uplinks in use by control, cuts and pauses."""

    def __init__(self, rng: Random, default: LinkShape) -> None:
        self._rng = rng
        self.default = default
        self._shapes: dict[tuple[NodeId, NodeId], LinkShape] = {}
        self._changing: dict[tuple[NodeId, NodeId], tuple[LinkShape, Span]] = {}
        self._slowness: dict[NodeId, tuple[float, float, Span]] = {}
        self._uplink_free: dict[NodeId, float] = {}
        self.cuts: list[Cut] = []
        self.paused: dict[NodeId, float] = {}

    def set_shape(self, sender: NodeId, receiver: NodeId, shape: LinkShape, span: Span | None = None) -> None:
        """Replace the default from `sender` to `receiver`: at once, or little by little over a span."""
        pair = (sender, receiver)
        if span is not None:
            # From the shape at its begin; the old change, if any, ends there.
            self._changing[pair] = (self._pair(sender, receiver, span.begins), span)
        else:
            self._changing.pop(pair, None)
        self._shapes[pair] = shape

    def set_slowness(self, node: NodeId, factor: float, span: Span) -> None:
        """Slow everything that `node` sends or receives, over a span; 1 is its normal speed again."""
        if factor <= 0:
            raise ValueError("a link cannot be slowed by a factor of 0 or less")
        self._slowness[node] = (self.slowness(node, span.begins), factor, span)

    def slowed(self) -> Collection[NodeId]:
        """Nodes that were ever slowed."""
        return self._slowness

    def slowness(self, node: NodeId, now: float) -> float:
        """By what factor a node is slowed now."""
        if node not in self._slowness:
            return 1.0
        before, after, span = self._slowness[node]
        return before + span.share(now) * (after - before)

    def shape(self, sender: NodeId, receiver: NodeId, now: float) -> LinkShape:
        """What holds from `sender` to `receiver` now."""
        shape = self._pair(sender, receiver, now)
        if not self._slowness:
            return shape
        factor = max(self.slowness(sender, now), self.slowness(receiver, now))
        return shape if factor == 1.0 else shape.slowed(factor)

    def _pair(self, sender: NodeId, receiver: NodeId, now: float) -> LinkShape:
        shape = self._shapes.get((sender, receiver), self.default)
        if self._changing and (sender, receiver) in self._changing:
            before, span = self._changing[sender, receiver]
            share = span.share(now)
            return shape if share == 1.0 else before.towards(shape, share)
        return shape

    def changing(self, now: float) -> bool:
        """Whether any path is on its way from one shape to another."""
        spans = [span for _, span in self._changing.values()]
        spans += [span for _, _, span in self._slowness.values()]
        return any(now < span.ends for span in spans)

    def blocked(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether messages are held back now: either end is paused, or a cut is between them."""
        if sender in self.paused or receiver in self.paused:
            return True
        return any(cut.severs(sender, receiver) for cut in self.cuts)

    def journey(
        self, sender: NodeId, shape: LinkShape, nbytes: int, up_bytes_per_s: float, now: float
    ) -> tuple[float, float]:
        """When control sent now on such a path has left, and when it arrives. Occupies the uplink.

        Control overtakes bulk (the real lanes are two connections) and, being small, takes nothing
        from its share. A node's control messages leave one after another, whoever they are for, as
        fast as its uplink takes them; a path that is slower than that holds up its own alone.
        """
        through_s = nbytes / up_bytes_per_s
        leaves = max(now, self._uplink_free.get(sender, now)) + through_s
        self._uplink_free[sender] = leaves
        slower_s = max(0.0, nbytes / shape.bandwidth_bytes_per_s - through_s)
        return leaves, leaves + slower_s + self.travel_s(shape)

    def forget_uplink(self, sender: NodeId) -> None:
        """Forget what a crashed node had not sent yet."""
        self._uplink_free.pop(sender, None)

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens. Draws nothing for what cannot."""
        return probability > 0 and self._rng.random() < probability

    def resend_s(self) -> float:
        """How much later a copy or an overtaken message comes."""
        return self._rng.uniform(0.0, RESEND_S_MAX)

    def travel_s(self, shape: LinkShape) -> float:
        """From leaving the sender to arrival, in a path of this shape."""
        delay = shape.latency_s + self._jitter_s(shape)
        if not shape.loss:
            return delay
        timeout = max(RETRANSMIT_S_MIN, 4 * shape.latency_s)
        for _ in range(RETRANSMISSIONS_MAX):
            if self._rng.random() >= shape.loss:
                break
            delay += timeout
            timeout *= 2
        return delay

    def _jitter_s(self, shape: LinkShape) -> float:
        if not shape.jitter_s:
            return 0.0
        if shape.jitter_law == "uniform":
            return self._rng.uniform(0.0, shape.jitter_s)
        return shape.jitter_s * self._rng.lognormvariate(0.0, JITTER_SIGMA)


def side(nodes: NodeId | Collection[NodeId]) -> frozenset[NodeId]:
    """One node or several, as a side of a cut."""
    return frozenset((NodeId(nodes),) if isinstance(nodes, str) else nodes)
