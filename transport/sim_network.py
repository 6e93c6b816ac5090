"""The simulated network: carries messages between links, and makes what goes wrong.

`sim_paths.py` says how long a message travels and who is cut off; this file moves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextvars import Context
from dataclasses import dataclass
from itertools import count
from math import inf
from random import Random

from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import Packet, SimLink, Stream, as_sent
from transport.sim_paths import Cut, LinkShape, Paths, side
from transport.wire import Buffer, Lane, Message, Schema


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

    patience_s: how long a connection outlives a cut. Then what it held is lost and both ends
        hear Closed, as by heartbeats over a real connection.
    """

    def __init__(
        self,
        rng: Random,
        default: LinkShape,
        *,
        queues: QueueLimits | None = None,
        patience_s: float = 30.0,
    ) -> None:
        self._paths = Paths(rng, default)
        self._queues = queues or QueueLimits()
        self._patience_s = patience_s
        self._links: dict[str, SimLink] = {}
        self._addresses = count()
        self._corrupt: dict[NodeId, int] = {}
        # What is under way belongs to nobody: it arrives even if its sender stands still.
        self._context = Context()

    def open(self, me: NodeId, *, curve_key: str, schema: Schema, address: str | None = None) -> SimLink:
        """A new link. A node may have several; `address` brings one back where it was."""
        address = address or f"sim://{next(self._addresses)}"
        assert address not in self._links, f"{address} is in use"
        link = SimLink(self, me, Endpoint(address, curve_key), schema)
        self._links[address] = link
        return link

    def set_shape(self, sender: NodeId, receiver: NodeId, shape: LinkShape, both_ways: bool = True) -> None:
        """Replace the default shape between two nodes."""
        self._paths.set_shape(sender, receiver, shape)
        if both_ways:
            self._paths.set_shape(receiver, sender, shape)

    def slow(self, node: NodeId, factor: float) -> None:
        """From now on `node` has `factor` times the latency and 1/`factor` of the bandwidth."""
        self._paths.set_slowness(node, factor)

    def corrupt(self, node: NodeId, messages: int = 1) -> None:
        """Flip the first byte of the next headers that `node` sends: they decode to no map."""
        self._corrupt[node] = self._corrupt.get(node, 0) + messages

    def cut(
        self, a: NodeId | Collection[NodeId], b: NodeId | Collection[NodeId], both_ways: bool = True
    ) -> Cut:
        """Hold every message from `a` to `b`, and back. Either may be one node or several."""
        return self._sever(Cut((side(a), side(b)), both_ways))

    def partition(self, groups: Sequence[Collection[NodeId]]) -> Cut:
        """Hold every message between groups. A node in no group keeps its connections."""
        return self._sever(Cut(tuple(side(group) for group in groups)))

    def heal(self, cut: Cut | None = None) -> None:
        """Mend one cut, or all. What was held is on its way again; healing twice is harmless."""
        self._paths.cuts = [other for other in self._paths.cuts if cut is not None and other is not cut]
        self._resend()

    def pause(self, node: NodeId) -> None:
        """Hold what `node` sends and what is sent to it. Nobody hears Closed.

        Its own code goes on, unless the loop freezes it (`VirtualTimeLoop.freeze`).
        """
        self._paths.paused.add(node)

    def resume(self, node: NodeId) -> None:
        """End a pause: what was held is on its way again."""
        self._paths.paused.discard(node)
        self._resend()

    def crash(self, node: NodeId, *, silent: bool = False) -> None:
        """Close all links of `node` at once: what had not left is lost, peers hear Closed.

        silent: they hear nothing, as when a machine loses its power.
        """
        for link in [link for link in self._links.values() if link.me == node]:
            self.shut(link, silent=silent)
        self._paths.paused.discard(node)
        self._paths.reset_uplink(node)

    def _sever(self, cut: Cut) -> Cut:
        self._paths.cuts.append(cut)
        self._at(_now() + self._patience_s, self._give_up, cut)
        return cut

    def _give_up(self, cut: Cut) -> None:
        """Break the connections that a cut has severed for too long."""
        if cut not in self._paths.cuts:
            return
        for link in self._links.values():
            for other in list(link.connected):
                if cut.severs(link.me, other.me) or cut.severs(other.me, link.me):
                    link.disconnect(other)
                    other.disconnect(link)

    def carry(self, sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        """Bytes sent, even if nobody listens there; None if the queue is full."""
        header, lane = sender.schema.pack(message.body), message.body.lane
        nbytes = len(header) + sum(memoryview(buffer).nbytes for buffer in message.buffers)
        receiver = self._links.get(endpoint.address)
        # Somebody else's key at that address fails the handshake, so nothing is sent to it.
        if receiver is not None and receiver.endpoint == endpoint:
            stream = sender.stream_to(receiver, lane)
            if not self._queues.admit(lane, stream.kept_messages + 1, stream.kept_bytes + nbytes):
                return None
            self._launch(stream, self._spoiled(sender.me, header), message.buffers, nbytes)
        return nbytes

    def _launch(self, stream: Stream, header: bytes, buffers: Sequence[Buffer], nbytes: int) -> None:
        sender, receiver = stream.sender.me, stream.receiver.me
        leaves, due = self._paths.journey(sender, receiver, stream.lane, nbytes, _now())
        stream.put(Packet(header, tuple(as_sent(buffer) for buffer in buffers), nbytes, leaves, due))
        self._at(due, self._deliver, stream)

    def _spoiled(self, sender: NodeId, header: bytes) -> bytes:
        if not self._corrupt.get(sender):
            return header
        self._corrupt[sender] -= 1
        return bytes((header[0] ^ 0xFF,)) + header[1:]

    def _deliver(self, stream: Stream) -> None:
        """Hand over what is due, in order, unless it is held back."""
        if self._paths.blocked(stream.sender.me, stream.receiver.me):
            return
        now = _now()
        # As in any byte stream, what delays one message delays those behind it.
        while stream.packets and stream.packets[0].due <= now:
            stream.receiver.arrive(stream, stream.packets.popleft())

    def _resend(self) -> None:
        """Set what was held in motion, and tell who missed the end of a connection."""
        for link in self._links.values():
            for stream in link.streams.values():
                if stream.packets:
                    self._at(_now() + self._latency(link, stream.receiver), self._deliver, stream)
            for other in link.connected:
                if link not in other.connected:
                    self._at(_now() + self._latency(other, link), self._notice, link, other)

    def shut(self, link: SimLink, *, silent: bool = False) -> None:
        """Take a link off the network."""
        self._links.pop(link.endpoint.address, None)
        for other in list(link.connected):
            if silent:
                other.connected.pop(link, None)
            else:
                self.hang_up(link, other)
        for stream in link.streams.values():
            self._drop_unsent(stream)
        link.shut()

    def hang_up(self, link: SimLink, other: SimLink) -> None:
        """End a connection from one side. What has left still arrives, and then Closed."""
        under_way = [_now() + self._latency(link, other)]
        for stream in link.streams_to(other):
            self._drop_unsent(stream)
            under_way += [packet.due for packet in stream.packets]
        self._at(max(under_way), self._notice, other, link)

    def _drop_unsent(self, stream: Stream) -> None:
        # What a cut or pause holds back would need its sender to send it again.
        blocked = self._paths.blocked(stream.sender.me, stream.receiver.me)
        stream.drop(-inf if blocked else _now())

    def _notice(self, link: SimLink, gone: SimLink) -> None:
        if not self._paths.blocked(gone.me, link.me):
            link.disconnect(gone)

    def _latency(self, sender: SimLink, receiver: SimLink) -> float:
        return self._paths.shape(sender.me, receiver.me).latency_s

    def _at(self, when: float, callback: Callable[..., None], *args: Cut | Stream | SimLink) -> None:
        asyncio.get_running_loop().call_at(when, callback, *args, context=self._context)


def _now() -> float:
    return asyncio.get_running_loop().time()
