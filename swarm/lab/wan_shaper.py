"""Machine: what lies between nodes of an emulated network: delay, jitter, loss, rates and cuts of packets

Packets are whole IPv4 packets of kernel TCP, so retransmission and congestion control are the
kernel's own. A packet passes its sender's uplink, the path, and its receiver's downlink, each
in the order in which packets get there.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from random import Random

NODES_MAX = 250
"""Addresses of one /24."""
NETWORK = bytes((10, 77, 0))
BURST_BYTES = 15_000
"""What a rate lets through at once after a rest: about as much as a home router."""
HEADER_BYTES = 20
OVERTAKEN_S = 0.05
"""How much later than its time an overtaken packet or the copy of one comes, at most."""
LATE_S = 0.01
"""A packet that is carried so long after its time waited for this machine, not for the network."""
Pair = tuple[int, int]
"""(sender, receiver), as indices of nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathShape:
    """One way from one node to another, when nothing is slowed or cut.

    delay_s: the least time a packet takes. jitter_s: on top, evenly distributed; packets of one
    path never overtake each other. loss: share of packets that vanish. bytes_per_s: None is as
    fast as the machine. queue_s: how long a packet may wait for its turn; what would wait longer
    is dropped, as a router with a full buffer does.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float | None = None
    queue_s: float = 0.2

    def __post_init__(self) -> None:
        if min(self.delay_s, self.jitter_s, self.queue_s) < 0 or not 0 <= self.loss <= 1:
            raise ValueError("times are not negative, and loss is a share between 0 and 1")
        if self.bytes_per_s is not None and self.bytes_per_s <= 0:
            raise ValueError("a path without bandwidth is a cut: use `cut`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What all paths of a node share: its uplink and downlink. None is as fast as the machine."""

    up_bytes_per_s: float | None = None
    down_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A packet that has arrived."""

    receiver: int
    packet: bytes


@dataclass(slots=True)
class ShaperStats:
    """Packets and bytes so far.

    lost: by chance. cut: where nothing passes. crowded_out: by a full queue. strange: to nobody
    here. late: delivered more than `LATE_S` after their time, because this machine was busy, and
    latest_ms: by how much the latest of all: what the network was like beyond what it was told to be.
    """

    delivered: int = 0
    bytes: int = 0
    lost: int = 0
    cut: int = 0
    crowded_out: int = 0
    strange: int = 0
    late: int = 0
    latest_ms: int = 0

    def arrived(self, nbytes: int, late_s: float) -> None:
        """Count a packet that was delivered so long after its time."""
        self.delivered += 1
        self.bytes += nbytes
        self.late += late_s > LATE_S
        self.latest_ms = max(self.latest_ms, int(1000 * late_s))

    def as_map(self) -> dict[str, int]:
        """For a line of JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Shares of a node's packets, both ways, that are lost, doubled, or overtaken by those behind them."""

    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0

    def worse(self, other: Disturbance) -> Disturbance:
        """What a packet between two such nodes suffers."""
        return Disturbance(
            max(self.loss, other.loss),
            max(self.duplication, other.duplication),
            max(self.reordering, other.reordering),
        )


QUIET = Disturbance()


@dataclass(slots=True)
class Pipe:
    """A token bucket with a bounded queue: bytes pass one after another at a rate."""

    bytes_per_s: float | None
    queue_s: float
    _free_at: float = 0.0

    def passed_at(self, size_bytes: float, now: float) -> float | None:
        """When a packet that gets here now is through, None if it would wait too long."""
        if self.bytes_per_s is None:
            return now
        rested_s = BURST_BYTES / self.bytes_per_s
        if self._free_at - rested_s - now > self.queue_s:
            return None
        self._free_at = max(self._free_at, now) + size_bytes / self.bytes_per_s
        return max(now, self._free_at - rested_s)


@dataclass(slots=True)
class _Path:
    shape: PathShape
    pipe: Pipe
    last: float = 0.0


@dataclass(order=True, slots=True)
class _Flying:
    due: float
    number: int
    pair: Pair = field(compare=False)
    packet: bytes = field(compare=False)
    landed: bool = field(compare=False, default=False)
    """Whether it is through the downlink, too."""


class Shaper:
    """What every packet is told to wait for. It owns no socket and reads no clock.

    paths: the shape of each directed pair; a pair that is not named has no connection at all.
    accesses: by node, in order.
    """

    def __init__(self, paths: Mapping[Pair, PathShape], accesses: Sequence[Access], rng: Random) -> None:
        assert len(accesses) <= NODES_MAX, "the addresses of one network"
        self._paths = {pair: _Path(s, Pipe(s.bytes_per_s, s.queue_s)) for pair, s in paths.items()}
        queue_s = max((shape.queue_s for shape in paths.values()), default=0.0)
        self._up = [Pipe(access.up_bytes_per_s, queue_s) for access in accesses]
        self._down = [Pipe(access.down_bytes_per_s, queue_s) for access in accesses]
        self._slowed: dict[int, tuple[float, float, float, float]] = {}
        """By node: the factor before, the factor to come, and from when to when it changes."""
        self._noise: dict[int, Disturbance] = {}
        self._cuts: dict[str, frozenset[Pair]] = {}
        self._flying: list[_Flying] = []
        self._number = 0
        self._rng = rng
        self.stats = ShaperStats()

    # -- packets ----------------------------------------------------------------------------

    def handle(self, sender: int, packet: bytes, now: float) -> None:
        """A node sent a packet. It is lost here, or due at some later `tick`."""
        receiver = receiver_of(packet)
        path = None if receiver is None else self._paths.get((sender, receiver))
        if receiver is None or path is None:
            self.stats.strange += 1
            return
        pair = (sender, receiver)
        if self._is_cut(pair):
            self.stats.cut += 1
            return
        slow = self._slowness(pair, now)
        sent_at = self._up[sender].passed_at(len(packet) * slow, now)
        if sent_at is not None:
            sent_at = path.pipe.passed_at(len(packet) * slow, sent_at)
        if sent_at is None:
            self.stats.crowded_out += 1
            return
        noise = QUIET
        if self._noise:
            noise = self._noise.get(sender, QUIET).worse(self._noise.get(receiver, QUIET))
        if self._chance(path.shape.loss) or self._chance(noise.loss):
            self.stats.lost += 1
            return
        flight_s = path.shape.delay_s * slow + path.shape.jitter_s * self._rng.random()
        due = max(sent_at + flight_s, path.last)
        if self._chance(noise.reordering):
            self._launch(due + OVERTAKEN_S * self._rng.random(), pair, packet)
        else:
            path.last = due
            self._launch(due, pair, packet)
        if self._chance(noise.duplication):
            self._launch(due + OVERTAKEN_S * self._rng.random(), pair, packet)

    def _chance(self, probability: float) -> bool:
        return probability > 0 and self._rng.random() < probability

    def tick(self, now: float) -> list[Delivery]:
        """What has arrived by now, in the order of arrival."""
        arrived = []
        while self._flying and self._flying[0].due <= now:
            flying = heapq.heappop(self._flying)
            if self._is_cut(flying.pair):
                self.stats.cut += 1
            elif flying.landed or self._lands(flying):
                arrived.append(Delivery(flying.pair[1], flying.packet))
                self.stats.arrived(len(flying.packet), now - flying.due)
        return arrived

    def deadline(self) -> float | None:
        """When the next packet arrives."""
        return self._flying[0].due if self._flying else None

    def _lands(self, flying: _Flying) -> bool:
        """Whether it is through the downlink at once; else it waits there, or is dropped."""
        size = len(flying.packet) * self._slowness(flying.pair, flying.due)
        through_at = self._down[flying.pair[1]].passed_at(size, flying.due)
        if through_at is None:
            self.stats.crowded_out += 1
            return False
        if through_at > flying.due:
            self._launch(through_at, flying.pair, flying.packet, landed=True)
            return False
        return True

    def _launch(self, due: float, pair: Pair, packet: bytes, *, landed: bool = False) -> None:
        self._number += 1
        heapq.heappush(self._flying, _Flying(due, self._number, pair, packet, landed))

    # -- what is done to the network --------------------------------------------------------

    def cut(self, name: str, pairs: Iterable[Pair]) -> None:
        """Let nothing pass on these ways, nor what is already on them, until `heal(name)`."""
        self._cuts[name] = frozenset(pairs)

    def heal(self, name: str) -> None:
        """Undo a cut; what another one holds apart stays apart."""
        self._cuts.pop(name, None)

    def slow(self, node: int, factor: float, now: float, over_s: float = 0.0) -> None:
        """All paths of a node get `factor` times the delay and 1/factor of the rate, after `over_s`."""
        self._slowed[node] = (self._factor(node, now), factor, now, now + over_s)

    def disturb(self, node: int, noise: Disturbance) -> None:
        """What its packets suffer from now on, both ways."""
        self._noise[node] = noise

    def _is_cut(self, pair: Pair) -> bool:
        return any(pair in pairs for pairs in self._cuts.values())

    def _slowness(self, pair: Pair, now: float) -> float:
        """As in the simulated world: the slower end is what both wait for."""
        return max(self._factor(end, now) for end in pair)

    def _factor(self, node: int, now: float) -> float:
        before, after, begins, ends = self._slowed.get(node, (1.0, 1.0, 0.0, 0.0))
        if now >= ends or now < begins:
            return after if now >= ends else before
        return before + (after - before) * (now - begins) / (ends - begins)


def address_of(node: int) -> str:
    """The IPv4 address of a node."""
    assert 0 <= node < NODES_MAX, "the addresses of one network"
    return f"{'.'.join(map(str, NETWORK))}.{node + 1}"


def receiver_of(packet: bytes) -> int | None:
    """The node an IPv4 packet is for; None for anything else, such as IPv6 or a broadcast."""
    if len(packet) < HEADER_BYTES or packet[0] >> 4 != 4 or packet[16:19] != NETWORK:
        return None
    return packet[19] - 1 if 0 < packet[19] <= NODES_MAX else None


def full_mesh(nodes: int, shape: PathShape) -> dict[Pair, PathShape]:
    """The same shape between any two."""
    return {(one, other): shape for one in range(nodes) for other in range(nodes) if one != other}


def between(sides: Sequence[Collection[int]], *, one_way: bool = False) -> frozenset[Pair]:
    """The ways between different sides; of two sides only those from the first, if `one_way`."""
    ways = {
        (a, b)
        for index, here in enumerate(sides)
        for there in sides[index + 1 :]
        for a in here
        for b in there
    }
    return frozenset(ways if one_way else ways | {(b, a) for a, b in ways})
