"""What lies between simulated nodes: how long bytes travel, and who is cut off from whom.

Arithmetic only; `sim_link.py` moves the messages. The path between two nodes is a reliable
byte stream per direction and lane, as over TCP: nothing is reordered or duplicated, a lost
message costs a retransmission, and a cut holds messages back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from random import Random

from transport.machine import NodeId
from transport.wire import Lane

RETRANSMIT_S_MIN = 0.2
"""Smallest retransmission timeout of a TCP sender (Linux; RFC 6298 recommends 1 s)."""
RETRANSMISSIONS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkShape:
    """What one direction of a path between two nodes is like.

    latency_s: one way. Every message waits at least this long.
    bandwidth_bytes_per_s: how fast the sender's uplink empties while it sends on this path;
        a node's messages of one lane leave one after the other, whoever they are for.
    jitter_s: each message waits up to this much longer, uniformly; order is kept.
    loss: probability that a message must be sent again, which costs a retransmission timeout
        (twice the round trip, at least 0.2 s, doubling each time).
    """

    latency_s: float = 0.0005
    bandwidth_bytes_per_s: float = 1e9
    jitter_s: float = 0.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.jitter_s < 0 or self.bandwidth_bytes_per_s <= 0:
            raise ValueError("a link needs latency and jitter of at least 0, and some bandwidth")
        if not 0 <= self.loss < 1:
            raise ValueError("the loss of a link is at least 0 and below 1")

    def slowed(self, factor: float) -> LinkShape:
        """A shape with `factor` times the latency and 1/`factor` of the bandwidth."""
        bandwidth = self.bandwidth_bytes_per_s / factor
        return replace(self, latency_s=self.latency_s * factor, bandwidth_bytes_per_s=bandwidth)


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
    """Shapes of all paths, uplinks in use, cuts and pauses."""

    def __init__(self, rng: Random, default: LinkShape) -> None:
        self._rng = rng
        self._default = default
        self._shapes: dict[tuple[NodeId, NodeId], LinkShape] = {}
        self._slowness: dict[NodeId, float] = {}
        self._uplink_free: dict[tuple[NodeId, Lane], float] = {}
        self.cuts: list[Cut] = []
        self.paused: set[NodeId] = set()

    def set_shape(self, sender: NodeId, receiver: NodeId, shape: LinkShape) -> None:
        """Replace the default from `sender` to `receiver`."""
        self._shapes[sender, receiver] = shape

    def set_slowness(self, node: NodeId, factor: float) -> None:
        """Slow everything that `node` sends or receives; 1 is its normal speed again."""
        if factor <= 0:
            raise ValueError("a link cannot be slowed by a factor of 0 or less")
        self._slowness[node] = factor

    def shape(self, sender: NodeId, receiver: NodeId) -> LinkShape:
        """What holds from `sender` to `receiver` now."""
        shape = self._shapes.get((sender, receiver), self._default)
        factor = max(self._slowness.get(sender, 1.0), self._slowness.get(receiver, 1.0))
        return shape if factor == 1.0 else shape.slowed(factor)

    def blocked(self, sender: NodeId, receiver: NodeId) -> bool:
        """Whether messages are held back now: either end is paused, or a cut is between them."""
        if sender in self.paused or receiver in self.paused:
            return True
        return any(cut.severs(sender, receiver) for cut in self.cuts)

    def journey(
        self, sender: NodeId, receiver: NodeId, lane: Lane, nbytes: int, now: float
    ) -> tuple[float, float]:
        """When a message sent now has left the sender, and when it arrives. Occupies the uplink.

        Control overtakes bulk: the real lanes are two connections, and control is small.
        """
        shape = self.shape(sender, receiver)
        leaves = max(now, self._uplink_free.get((sender, lane), now)) + nbytes / shape.bandwidth_bytes_per_s
        self._uplink_free[sender, lane] = leaves
        return leaves, leaves + shape.latency_s + self._delay(shape)

    def reset_uplink(self, sender: NodeId) -> None:
        """Forget what a crashed node had not sent yet."""
        for lane in ("control", "bulk"):
            self._uplink_free.pop((sender, lane), None)

    def _delay(self, shape: LinkShape) -> float:
        delay = self._rng.uniform(0.0, shape.jitter_s) if shape.jitter_s else 0.0
        timeout = max(RETRANSMIT_S_MIN, 4 * shape.latency_s)
        for _ in range(RETRANSMISSIONS_MAX):
            if not shape.loss or self._rng.random() >= shape.loss:
                break
            delay += timeout
            timeout *= 2
        return delay


def side(nodes: NodeId | Collection[NodeId]) -> frozenset[NodeId]:
    """One node or several, as a side of a cut."""
    return frozenset((NodeId(nodes),) if isinstance(nodes, str) else nodes)
