"""A link in memory whose messages take virtual time to arrive.

Headers really are packed and unpacked, so the simulated wire refuses exactly what the real
one refuses. `sim_network.py` carries the messages and makes the faults.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Protocol

from transport.conduct import Conducts
from transport.hollow import Shell
from transport.link import Closed, Endpoint, LinkClosed, LinkEvent, LinkStats, Malformed, Received
from transport.machine import NodeId
from transport.segments import LinkLimits
from transport.sim_stream import DropCause, Packet, Stream
from transport.wire import Buffer, Lane, Message, Schema, TooLarge, WireError, check_buffers

LINGER_S = 1.0
"""How long `close` waits for queued messages to leave."""


class Carrier(Protocol):
    """What a link needs of the network it is part of."""

    def carry(self, sender: SimLink, endpoint: Endpoint, message: Message) -> int | None:
        """Bytes sent, even if nobody listens there; None if the queue is full."""
        ...

    def begin(self, stream: Stream) -> None:
        """A link sends to another on a lane for the first time since they last parted."""
        ...

    def end(self, stream: Stream, cause: DropCause) -> None:
        """What is under way is lost, and nothing follows it."""
        ...

    def shut(self, link: SimLink) -> None:
        """Take a link off the network."""
        ...

    def hang_up(self, link: SimLink, other: SimLink) -> None:
        """End a connection from one side. What has left still arrives, and then Closed."""
        ...


class SimLink:
    """A `Link` of the simulated network; `SimNetwork.open` makes them."""

    def __init__(self, network: Carrier, me: NodeId, endpoint: Endpoint, schema: Schema) -> None:
        self.stats = LinkStats()
        self.me = me
        self._network = network
        self._endpoint = endpoint
        self.schema = schema
        self.closed = False
        self._known: dict[NodeId, Endpoint] = {}
        self._admitted: dict[str, NodeId] = {}
        self.connected: dict[SimLink, None] = {}  # a set would have no order
        self.streams: dict[tuple[SimLink, Lane], Stream] = {}
        self._inbox: deque[tuple[LinkEvent, Stream | None, int]] = deque()
        self._arrived = asyncio.Event()
        self.left = asyncio.Event()
        self._limits = LinkLimits()
        self.conducts = Conducts(self._limits, self.stats)

    @property
    def endpoint(self) -> Endpoint:
        """Where this link listens: a `sim://` address."""
        return self._endpoint

    def know(self, peer: NodeId, endpoint: Endpoint) -> None:
        """Learn or change where a peer listens, and admit its CURVE key. Idempotent.

        A key that is another peer's is not taken over: it is counted, and nothing changes.
        """
        if self.conducts.withholds(peer, endpoint):
            return
        if self._admitted.get(endpoint.curve_key, peer) != peer:
            self.stats.dropped_unauthorised += 1
            return
        old = self._known.get(peer)
        if old is not None:
            self._admitted.pop(old.curve_key, None)
        self._known[peer] = endpoint
        self._admitted[endpoint.curve_key] = peer

    def forget(self, peer: NodeId) -> None:
        """Close what is open to a peer, drop what is queued, admit its key no longer."""
        self.conducts.forget(peer)
        endpoint = self._known.pop(peer, None)
        if endpoint is None:
            return
        self._admitted.pop(endpoint.curve_key, None)
        others = dict.fromkeys([*self.connected, *(stream.receiver for stream in self.streams.values())])
        for other in others:
            if other.endpoint.curve_key == endpoint.curve_key:
                self._network.hang_up(self, other)
                self.connected.pop(other, None)
        inbox, self._inbox = self._inbox, deque()
        for entry in inbox:
            if entry[0].peer != peer:
                self._inbox.append(entry)
            elif entry[1] is not None:
                entry[1].release(entry[2])

    def send(self, peer: NodeId, message: Message) -> bool:
        """Queue a message on the lane its body names. Never waits; False if nothing was queued."""
        endpoint = self._known.get(peer)
        if endpoint is None or self.closed:
            return False
        try:
            nbytes = self._network.carry(self, endpoint, message)
        except TooLarge as error:
            self._refuse(peer, error)
            return False
        if nbytes is None:
            self.stats.dropped_full += 1
            return False
        self.stats.messages_sent += 1
        self.stats.bytes_sent[message.body.lane] += nbytes
        return True

    async def recv(self) -> LinkEvent:
        """The next event. Cancelling loses nothing. Raises LinkClosed after `close` or a crash."""
        while not self.closed:
            event = self.poll()
            if event is not None:
                return event
            self._arrived.clear()
            await self._arrived.wait()
        raise LinkClosed

    def poll(self) -> LinkEvent | None:
        """The next event if one is already here, without waiting."""
        if not self._inbox:
            return None
        event, stream, nbytes = self._inbox.popleft()
        if stream is not None:
            stream.release(nbytes)
        return event

    async def close(self) -> None:
        """Let what is queued leave for at most a second, then close."""
        now = asyncio.get_running_loop().time()
        leaves = [packet.leaves for stream in self.streams.values() for packet in stream.packets]
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await asyncio.sleep(max([now, *leaves]) - now)
                while any(stream.unsent for stream in self.streams.values()):
                    self.left.clear()
                    await self.left.wait()
        if not self.closed:
            self._network.shut(self)

    def arrive(self, stream: Stream, packet: Packet) -> None:
        """Take a packet in: admit its sender, check it as the real wire does, queue it for `recv`."""
        sender, peer = stream.sender, self._admitted.get(stream.sender.endpoint.curve_key)
        if peer is None:
            stream.lose(packet.nbytes, "unauthorised")
            self.stats.dropped_unauthorised += 1
            return
        if not sender.closed:
            self.connected[sender] = sender.connected[self] = None
        try:
            body = self.schema.unpack(packet.header)
            check_buffers(body, packet.buffers)
        except WireError as error:
            stream.lose(packet.nbytes, "malformed")
            self._refuse(peer, error)
            return
        stream.count.delivered += packet.nbytes
        self.stats.messages_received += 1
        self.stats.bytes_received[stream.lane] += packet.nbytes
        self._put(Received(peer, Message(body, packet.buffers)), stream, packet.nbytes)

    def _refuse(self, peer: NodeId, error: WireError) -> None:
        loop, endpoint = asyncio.get_running_loop(), self._known[peer]
        complaint = self.conducts.complain(peer, error, loop.time())
        if complaint.is_too_much:
            self.forget(peer)
            self.conducts.cut_off(peer, endpoint)
            loop.call_later(self._limits.cut_off_s, self._readmit, peer)
        if complaint.reason:
            self._put(Malformed(peer, complaint.reason))

    def _readmit(self, peer: NodeId) -> None:
        endpoint = self.conducts.readmit(peer)
        if endpoint is not None and not self.closed:
            self.know(peer, endpoint)

    def _put(self, event: LinkEvent, stream: Stream | None = None, nbytes: int = 0) -> None:
        self._inbox.append((event, stream, nbytes))
        self._arrived.set()

    def stream_to(self, receiver: SimLink, lane: Lane) -> Stream:
        """The stream to another link on a lane."""
        key = (receiver, lane)
        if key not in self.streams:
            self.streams[key] = Stream(self, receiver, lane)
            self._network.begin(self.streams[key])
        return self.streams[key]

    def streams_to(self, receiver: SimLink) -> list[Stream]:
        """The streams to another link that were ever used."""
        return [stream for stream in self.streams.values() if stream.receiver is receiver]

    def disconnect(self, other: SimLink, cause: DropCause) -> None:
        """The connection is gone. Tell whoever listens, once."""
        if other not in self.connected:
            return
        del self.connected[other]
        for stream in self.streams_to(other):
            self._network.end(stream, cause)
        peer = self._admitted.get(other.endpoint.curve_key)
        if peer is not None and not self.closed:
            self._put(Closed(peer))

    def shut(self) -> None:
        """Stop: `recv` raises from now on."""
        self.closed = True
        self.connected.clear()
        self._inbox.clear()
        self._arrived.set()


def as_sent(buffer: Buffer) -> memoryview:
    """What the buffer holds now, read-only. Only `bytes` cannot change under way, nor what is a shell."""
    view = memoryview(buffer)
    if isinstance(view.obj, Shell):
        return view
    if isinstance(view.obj, bytes) and view.c_contiguous and view.format == "B" and view.ndim == 1:
        return view
    return memoryview(view.tobytes())
