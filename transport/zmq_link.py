"""The real link: ZeroMQ over TCP, CURVE on every connection.

One ROUTER hears everybody; to each peer we dial two DEALERs, one a lane, with the peer's key
pinned. So each direction of each lane is a connection of its own, a bulk transfer never stands
before a control message, and a peer is known by the key that the handshake proved: messages
carry no claim about their sender.

What libzmq does not bound stays unbounded: it hands a message over when its last frame has come, so
an admitted peer that never ends one grows libzmq's memory until its connection is cut, and we learn
nothing of it. One that does end is dropped unread, counted and held against its peer.
"""

from __future__ import annotations

import asyncio
from typing import Self

import zmq

from transport.addresses import is_address, tcp_address
from transport.conduct import Conducts
from transport.link import Closed, Endpoint, LinkClosed, LinkEvent, LinkStats, Malformed, Received
from transport.machine import NodeId
from transport.reassembly import STALL_SWEEPS, Memory
from transport.segments import GOODBYE, LinkLimits, nbytes_of
from transport.wire import Message, Schema, WireError
from transport.zmq_auth import Gatekeeper
from transport.zmq_inbox import Arrival, Inbox
from transport.zmq_listen import CannotListen, listen
from transport.zmq_peer import Peer, Shared, is_curve_key
from transport.zmq_socket import (
    NOBLOCK,
    READABLE,
    Context,
    CurveKeys,
    events_of,
    receive_frames,
    send_frames,
)

LINGER_S = 1.0
"""How long `close` waits for queued messages to leave."""
LOSS_GRACE_S = 0.02
"""What a dying peer said last comes over another connection; it is let in before its loss is told."""
SOCKETS_MAX = 16_384
_BATCH = 256


class ZmqLink:
    """A `Link` over real sockets, in the thread of the loop that opened it.

    Open it after the process has forked: sockets and their threads do not survive a fork.
    """

    @classmethod
    async def open(
        cls,
        *,
        me: NodeId,
        curve_public: str,
        curve_secret: str,
        schema: Schema,
        host: str,
        advertise: str = "",
        port: int = 0,
        limits: LinkLimits | None = None,
    ) -> Self:
        """Listen on `host` (an IP address or interface) and `port` (0: any that is free).

        curve_public, curve_secret: this node's CURVE keys, Z85 text. advertise: IP address that peers
        dial, where it differs from `host`. Raises PortInUse, or CannotListen.
        """
        if not is_address(tcp_address(advertise or host, 1)):
            raise CannotListen(f"listening on {host} needs an address that peers can dial")
        keys = CurveKeys(public=curve_public, secret=curve_secret)
        return cls(me, keys, schema, limits or LinkLimits(), host, advertise or host, port)

    def __init__(
        self,
        me: NodeId,
        keys: CurveKeys,
        schema: Schema,
        limits: LinkLimits,
        host: str,
        advertise: str,
        port: int,
    ) -> None:
        """Use `open`: it says what the arguments mean."""
        self.stats = LinkStats()
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._frames_max = schema.limits.tensors_max + 1
        self._peers: dict[NodeId, Peer] = {}
        self._admitted: dict[str, Peer] = {}
        self._conducts = Conducts(limits, self.stats)
        self._inbox = Inbox(limits)
        self._memory = Memory(limits.held_bytes_max)
        self._sent = asyncio.Event()
        self._is_closed = False
        self._drain_is_due = False
        self._turns = 0
        # Outgoing sockets have a context of their own: closing waits until theirs has sent all,
        # and only then stops listening, which peers take as the end.
        self._inbound, outbound = Context(), Context()
        self._inbound.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        outbound.set(zmq.MAX_SOCKETS, SOCKETS_MAX)
        self._shared = Shared(
            me=me,
            now=self._loop.time,
            context=outbound,
            keys=keys,
            schema=schema,
            limits=limits,
            memory=self._memory,
            stats=self.stats,
        )
        self._gatekeeper = Gatekeeper(self._inbound, self._admitted.__contains__, self._refused)
        self._router = self._inbound.socket(zmq.ROUTER)
        try:
            bound = listen(self._router, keys, schema, limits, host, port)
        except CannotListen:
            self._gatekeeper.close()
            self._router.close()
            self._inbound.term()
            outbound.term()
            raise
        self._endpoint = Endpoint(tcp_address(advertise, bound), keys.public)
        self._loop.add_reader(self._router.fileno(), self._drain)
        self._sweeping = self._loop.call_later(limits.stall_s / STALL_SWEEPS, self._sweep)

    @property
    def endpoint(self) -> Endpoint:
        """Where this link listens."""
        return self._endpoint

    def know(self, peer: NodeId, endpoint: Endpoint) -> None:
        """Learn or change where a peer listens, and admit its CURVE key. Idempotent.

        A key that is no key, or is another peer's, is not taken over: it is counted, and the
        peer stays as it was. An address that cannot be dialled only makes `send` say False.
        """
        known, owner = self._peers.get(peer), self._admitted.get(endpoint.curve_key)
        if self._is_closed or self._conducts.withholds(peer, endpoint):
            return
        if known is not None and known.endpoint == endpoint:
            return
        if not is_curve_key(endpoint.curve_key) or (owner is not None and owner is not known):
            self._refused()
            return
        if known is None:
            known = self._peers[peer] = Peer(peer, endpoint, self._shared, self)
        else:
            self._admitted.pop(known.endpoint.curve_key)
            known.move(endpoint)
        self._admitted[endpoint.curve_key] = known
        self._gatekeeper.admit(endpoint.curve_key)

    def forget(self, peer: NodeId) -> None:
        """Close what is open to a peer, drop what is queued, admit its key no longer.

        The peer is told goodbye, because ZeroMQ cannot close what it has opened to us.
        """
        self._conducts.forget(peer)
        gone = self._peers.pop(peer, None)
        if gone is None:
            return
        del self._admitted[gone.endpoint.curve_key]
        gone.hang_up()
        gone.inlet.discard()
        self._reply([(route, GOODBYE) for route in gone.inlet.routes])
        self._inbox.drop(gone)

    def send(self, peer: NodeId, message: Message) -> bool:
        """Queue a message on the lane its body names. Never waits; False if nothing was queued."""
        known = self._peers.get(peer)
        return known is not None and not self._is_closed and known.send(message)

    async def recv(self) -> LinkEvent:
        """The next event. Cancelling loses nothing. Raises LinkClosed after `close`."""
        self._turns += 1
        if self._turns % _BATCH == 0:
            # Under a constant stream nothing below would ever let another task run.
            await asyncio.sleep(0)
        while not self._is_closed:
            event = self.poll()
            if event is not None:
                return event
            self._inbox.arrived.clear()
            await self._inbox.arrived.wait()
        raise LinkClosed

    def poll(self) -> LinkEvent | None:
        """The next event if one is already here, without waiting. Moves what waits to be sent."""
        if self._is_closed:
            return None
        if not self._inbox:
            for peer in list(self._peers.values()):
                peer.service()
            self._drain()
        if not self._inbox:
            return None
        arrival = self._inbox.pop()
        if arrival.bulk_bytes and arrival.peer is not None:
            arrival.peer.inlet.taken(arrival.bulk_bytes)
            self._answer(arrival.peer)
        return arrival.event

    async def close(self) -> None:
        """Send what is queued for at most a second, then close every socket."""
        if self._is_closed:
            return
        self._is_closed = True
        self._inbox.arrived.set()
        self._sweeping.cancel()
        self._loop.remove_reader(self._router.fileno())
        deadline = self._loop.time() + LINGER_S
        try:
            await self._flush(deadline)
        finally:
            left_ms = max(0, round(1000 * (deadline - self._loop.time())))
            for peer in self._peers.values():
                peer.hang_up(left_ms)
            try:
                await asyncio.shield(asyncio.to_thread(self._shared.context.term))
            finally:
                self._gatekeeper.close()
                self._router.close(linger=0)
                self._inbound.term()

    async def _flush(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                while any(peer.waiting for peer in self._peers.values()):
                    self._sent.clear()
                    await self._sent.wait()
        except TimeoutError:
            return

    def lost(self, peer: Peer) -> None:
        """A peer's connection is gone: tell it, after what it said last."""
        self._loop.call_later(LOSS_GRACE_S, self._tell_loss, peer)

    def malformed(self, peer: Peer, error: WireError) -> None:
        """Count what was dropped, report it once, cut the peer off when it is too much."""
        complaint = self._conducts.complain(peer.node, error, self._loop.time())
        if self._peers.get(peer.node) is not peer or not complaint.reason:
            return
        if complaint.is_too_much:
            self.forget(peer.node)
            self._conducts.cut_off(peer.node, peer.endpoint)
            self._loop.call_later(self._limits.cut_off_s, self._readmit, peer.node)
        source = None if complaint.is_too_much else peer
        self._inbox.put(Arrival(Malformed(peer.node, complaint.reason), source))

    def _readmit(self, node: NodeId) -> None:
        endpoint = self._conducts.readmit(node)
        if endpoint is not None:
            self.know(node, endpoint)

    def sent(self) -> None:
        """Wake `close`, which waits for the last message to leave."""
        self._sent.set()

    def _tell_loss(self, peer: Peer) -> None:
        if self._is_closed or self._peers.get(peer.node) is not peer:
            return
        self._drain()
        self._inbox.put(Arrival(Closed(peer.node), peer))

    def _refused(self) -> None:
        self.stats.dropped_unauthorised += 1

    def _sweep(self) -> None:
        """Give up what stands still, unless it is us who do not read; and who is away for long."""
        for peer in self._peers.values():
            peer.rest()
            if not self._inbox.is_full:
                peer.inlet.sweep()
        self._sweeping = self._loop.call_later(self._limits.stall_s / STALL_SWEEPS, self._sweep)

    def _drain(self) -> None:
        """Read what the ROUTER has, as far as the inbox has room; the rest waits in TCP."""
        self._drain_is_due = False
        for _ in range(_BATCH):
            # Asked for even when there is no room: asking is what clears the wake-up.
            events = 0 if self._is_closed else events_of(self._router)
            if not events & READABLE or self._inbox.is_full:
                return
            self._read()
        self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._drain_is_due:
            self._drain_is_due = True
            self._loop.call_soon(self._drain)

    def _read(self) -> None:
        route = self._router.recv(NOBLOCK)
        frames = receive_frames(self._router, self._frames_max)
        key = _key_of(frames)
        peer = self._admitted.get(key)
        if peer is None:
            self._refused()
            self._reply([(route, GOODBYE)])
            return
        try:
            self._take(peer, route, frames)
        except WireError as error:
            self.malformed(peer, error)
        self._answer(peer)

    def _take(self, peer: Peer, route: bytes, frames: list[zmq.Frame]) -> None:
        if len(frames) > self._frames_max:
            raise WireError("too many frames")
        message = peer.take(route, frames)
        if message is None:
            return
        self.stats.messages_received += 1
        received = Received(peer.node, message)
        if message.body.lane == "bulk":
            self._inbox.put(Arrival(received, peer, bulk_bytes=message.nbytes))
        else:
            self._inbox.put(
                Arrival(received, peer, control_bytes=nbytes_of([frame.buffer for frame in frames]))
            )

    def _answer(self, peer: Peer) -> None:
        """Send the credit that a peer has earned."""
        if peer.inlet.replies:
            replies, peer.inlet.replies = peer.inlet.replies, []
            self._reply(replies)

    def _reply(self, replies: list[tuple[bytes, bytes]]) -> None:
        for route, frame in replies:
            send_frames(self._router, (route, frame))
        # Sending may have swallowed the wake-up for a message that just arrived.
        self._drain_soon()


def _key_of(frames: list[zmq.Frame]) -> str:
    """The CURVE key (Z85) that the handshake of these frames' connection proved."""
    return str(frames[0].get("User-Id"))
