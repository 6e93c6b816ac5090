"""The simulated network: carries messages between links, and makes what goes wrong.

`sim_traffic.py` moves the messages; this file opens and closes the connections, and makes the faults.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from transport.link import HEARTBEAT_TIMEOUT_S, Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink, as_sent
from transport.sim_paths import Cut, LinkShape, Paths, Span, side
from transport.sim_stream import DropCause, Packet, Stream
from transport.sim_traffic import Traffic, clock_s
from transport.wire import Lane, Message, Schema

SIMULATED = "sim://"
"""How the address of a simulated link begins; a positive number follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """What a link keeps for one peer and lane, from `send` until the peer has taken it.

    messages, control_bytes, bulk_bytes: over any of them `send` answers False. Larger rides
    out longer stalls of a peer and costs memory for each peer that stalls. A single message
    is accepted whatever its size.
    """

    messages: int = 10_000
    control_bytes: int = 64 << 20
    bulk_bytes: int = 1 << 30

    def admit(self, lane: Lane, messages: int, nbytes: int) -> bool:
        """Whether that many messages may be kept, with that many bytes together."""
        nbytes_max = self.bulk_bytes if lane == "bulk" else self.control_bytes
        return messages == 1 or (messages <= self.messages and nbytes <= nbytes_max)


class SimNetwork:
    """All simulated links, and what goes wrong between them.

    default: of every path that has no shape of its own; its bandwidth is also that of every node's
        uplink and downlink until `set_access`.
    patience_s: how long a connection outlives a cut, or an end that stands still. Then what it held is
        lost and both ends hear Closed, as by heartbeats over a real connection.
    """

    def __init__(
        self,
        rng: Random,
        default: LinkShape,
        *,
        queues: QueueLimits | None = None,
        patience_s: float = HEARTBEAT_TIMEOUT_S,
    ) -> None:
        self._paths = Paths(rng, default)
        self._traffic = Traffic(self._paths)
        self._queues = queues or QueueLimits()
        self._patience_s = patience_s
        self._links: dict[str, SimLink] = {}
        self._addresses = count(1)
        self._corrupt: dict[NodeId, int] = {}

    def open(self, me: NodeId, *, curve_key: str, schema: Schema, address: str | None = None) -> SimLink:
        """A new link. A node may have several; `address` brings one back where it was."""
        address = address or f"{SIMULATED}{next(self._addresses)}"
        assert address not in self._links, f"{address} is in use"
        link = SimLink(self, me, Endpoint(address, curve_key), schema)
        self._links[address] = link
        return link

    def set_shape(
        self,
        sender: NodeId,
        receiver: NodeId,
        shape: LinkShape,
        both_ways: bool = True,
        *,
        over_s: float = 0.0,
    ) -> None:
        """Replace the shape between two nodes, linearly over so many seconds; 0: at once."""
        span = Span(clock_s(), clock_s() + over_s) if over_s else None
        self._paths.set_shape(sender, receiver, shape, span)
        if both_ways:
            self._paths.set_shape(receiver, sender, shape, span)
        self._traffic.follow()

    def shape(self, sender: NodeId, receiver: NodeId) -> LinkShape:
        """What the path between two nodes is like now."""
        return self._paths.shape(sender, receiver, clock_s())

    def set_access(self, node: NodeId, up_bytes_per_s: float, down_bytes_per_s: float) -> None:
        """What `node` sends and receives at most, all its bulk transfers together."""
        self._traffic.set_access(node, up_bytes_per_s, down_bytes_per_s)

    def slow(self, node: NodeId, factor: float, *, over_s: float = 0.0) -> None:
        """Give `node` `factor` times the latency and 1/`factor` of the bandwidth, after `over_s` seconds."""
        self._paths.set_slowness(node, factor, Span(clock_s(), clock_s() + over_s))
        self._traffic.follow()

    def corrupt(self, node: NodeId, messages: int = 1) -> None:
        """Flip the first byte of the next headers that `node` sends: they decode to no map."""
        self._corrupt[node] = self._corrupt.get(node, 0) + messages

    def corrupts(self, node: NodeId) -> bool:
        """Whether what `node` sends next will be damaged."""
        return self._corrupt.get(node, 0) > 0

    def cut(
        self, a: NodeId | Collection[NodeId], b: NodeId | Collection[NodeId], both_ways: bool = True
    ) -> Cut:
        """Hold every message from `a` to `b`, and back. Either may be one node or several."""
        return self._sever(Cut((side(a), side(b)), both_ways))

    def partition(self, groups: Sequence[Collection[NodeId]]) -> Cut:
        """Hold every message between groups. A node in no group keeps its connections."""
        return self._sever(Cut(tuple(side(group) for group in groups)))

    def apart(self, one: NodeId, other: NodeId) -> bool:
        """Whether messages between two nodes are held back now, one way or both."""
        return self._paths.blocked(one, other) or self._paths.blocked(other, one)

    def heal(self, cut: Cut | None = None) -> None:
        """Mend one cut, or all. What was held is on its way again; healing twice is harmless."""
        self._paths.cuts = [other for other in self._paths.cuts if cut is not None and other is not cut]
        self._resend()
        self._traffic.follow()

    def pause(self, node: NodeId) -> None:
        """Hold what `node` sends and what is sent to it. For `patience_s` nobody hears Closed.

        Its own code goes on, unless the loop freezes it (`VirtualTimeLoop.freeze`).
        """
        if node not in self._paths.paused:
            self._paths.paused[node] = now = clock_s()
            self._traffic.at(now + self._patience_s, self._give_up_on, node, now)
        self._traffic.follow()

    def resume(self, node: NodeId) -> None:
        """End a pause: what was held is on its way again."""
        self._paths.paused.pop(node, None)
        self._resend()
        self._traffic.follow()

    def crash(self, node: NodeId, *, silent: bool = False) -> None:
        """Close all links of `node` at once: what had not left is lost, peers hear Closed.

        silent: they hear nothing, as when a machine loses its power.
        """
        for link in [link for link in self._links.values() if link.me == node]:
            self.shut(link, silent=silent)
        self._paths.paused.pop(node, None)
        self._paths.forget_uplink(node)
        self._traffic.follow()

    @property
    def traffic(self) -> Traffic:
        """All messages that are on their way, and an account of their bytes."""
        return self._traffic

    # -- cuts --------------------------------------------------------------------------------

    def _sever(self, cut: Cut) -> Cut:
        self._paths.cuts.append(cut)
        self._traffic.at(clock_s() + self._patience_s, self._give_up, cut)
        self._traffic.follow()
        return cut

    def _give_up(self, cut: Cut) -> None:
        """Break the connections that a cut has severed for too long."""
        if cut in self._paths.cuts:
            self._break(lambda one, other: cut.severs(one, other) or cut.severs(other, one), "cut")

    def _give_up_on(self, node: NodeId, since_s: float) -> None:
        """Break the connections of a node that has stood still since then."""
        if self._paths.paused.get(node) == since_s:
            self._break(lambda one, other: node in (one, other), "closed")

    def _break(self, between: Callable[[NodeId, NodeId], bool], why: DropCause) -> None:
        for link in self._links.values():
            for other in list(link.connected):
                if between(link.me, other.me):
                    link.disconnect(other, why)
                    other.disconnect(link, why)
        self._traffic.share()

    # -- messages ----------------------------------------------------------------------------

    def carry(self, sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        """Bytes sent, even if nobody listens there; None if the queue is full."""
        header, lane = sender.schema.pack(message.body), message.body.lane
        nbytes = len(header) + sum(memoryview(buffer).nbytes for buffer in message.buffers)
        receiver = self._links.get(endpoint.address)
        # Somebody else's key at that address fails the handshake, so nothing is sent to it.
        if receiver is None or receiver.endpoint != endpoint:
            self._traffic.lose(lane, nbytes)
            return nbytes
        stream = sender.stream_to(receiver, lane)
        if not self._queues.admit(lane, stream.kept_messages + 1, stream.kept_bytes + nbytes):
            return None
        buffers = tuple(as_sent(buffer) for buffer in message.buffers)
        self._traffic.send(stream, Packet(self._spoiled(sender.me, header), buffers, nbytes))
        return nbytes

    def _spoiled(self, sender: NodeId, header: bytes) -> bytes:
        if not self._corrupt.get(sender):
            return header
        self._corrupt[sender] -= 1
        return bytes((header[0] ^ 0xFF,)) + header[1:]

    def _resend(self) -> None:
        """Set what was held in motion, and tell who missed the end of a connection."""
        self._traffic.resend()
        for link in self._links.values():
            for other in link.connected:
                if link not in other.connected:
                    self._traffic.at(clock_s() + self._latency(other, link), self._notice, link, other)

    # -- connections -------------------------------------------------------------------------

    def begin(self, stream: Stream) -> None:
        """A link sends to another on a lane for the first time since they last parted."""
        self._traffic.begin(stream)

    def end(self, stream: Stream, cause: DropCause) -> None:
        """What is under way is lost, and nothing follows it."""
        self._traffic.end(stream, cause)

    def shut(self, link: SimLink, *, silent: bool = False) -> None:
        """Take a link off the network."""
        self._links.pop(link.endpoint.address, None)
        for other in list(link.connected):
            if silent:
                other.connected.pop(link, None)
            else:
                self.hang_up(link, other)
        for stream in list(link.streams.values()):
            self._traffic.drop_unsent(stream)
            if stream.idle():
                self._traffic.end(stream, "closed")
        link.shut()
        self._traffic.share()

    def hang_up(self, link: SimLink, other: SimLink) -> None:
        """End a connection from one side. What has left still arrives, and then Closed."""
        under_way = [clock_s() + self._latency(link, other)]
        for stream in link.streams_to(other):
            self._traffic.drop_unsent(stream)
            under_way += [packet.due for packet in stream.under_way()]
        self._traffic.at(max(under_way), self._notice, other, link)
        self._traffic.share()

    def _notice(self, link: SimLink, gone: SimLink) -> None:
        if not self._paths.blocked(gone.me, link.me):
            link.disconnect(gone, "closed")
            self._traffic.share()

    def _latency(self, sender: SimLink, receiver: SimLink) -> float:
        return self._paths.shape(sender.me, receiver.me, clock_s()).latency_s
