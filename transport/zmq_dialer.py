"""One lane to one peer over ZeroMQ: an outbox, and the DEALER that empties it."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from typing import Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from transport.link import LinkStats
from transport.segments import GOODBYE, Outbox, nbytes_of
from transport.wire import Lane, WireError
from transport.zmq_socket import (
    NOBLOCK,
    READABLE,
    WRITABLE,
    Context,
    CurveKeys,
    Socket,
    events_of,
    receive_frames,
    send_frames,
    set_common,
)

RECONNECT_MS = 100
RECONNECT_MS_MAX = 2_000
CONNECT_TIMEOUT_MS = 5_000
_QUEUED_MAX: dict[Lane, int] = {"control": 64, "bulk": 16}

_LOSSES = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_WATCHED = zmq.EVENT_HANDSHAKE_SUCCEEDED | _LOSSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    """Where to dial. `spread` is any text that differs between pairs of nodes.

    It decides how long this pair waits before it dials again, so that after an outage not
    everybody dials at the same moment.
    """

    address: str
    curve_key: str
    spread: str


class Caller(Protocol):
    """Who a dialer works for."""

    def reached(self, up: bool) -> None:
        """The connection stands, or it is lost or could not be made."""
        ...

    def hung_up(self) -> None:
        """The peer said goodbye."""
        ...

    def bad(self, error: WireError) -> None:
        """The peer answered with something malformed."""
        ...

    def sent(self) -> None:
        """A whole message was handed to libzmq."""
        ...


class Dialer:
    """Dials at first use, and again for as long as the peer is known.

    caller: is told what happens. watches: whether to report the connection's state, too.
    """

    def __init__(self, lane: Lane, outbox: Outbox, stats: LinkStats, caller: Caller, watches: bool) -> None:
        self.outbox = outbox
        self._lane: Lane = lane
        self._stats = stats
        self._caller = caller
        self._watches = watches
        self._loop = asyncio.get_running_loop()
        self._socket: Socket | None = None
        self._monitor: Socket | None = None
        self._up = False

    @property
    def is_dialled(self) -> bool:
        """Whether there is a socket, connected or trying."""
        return self._socket is not None

    def dial(self, context: Context, keys: CurveKeys, callee: Callee) -> None:
        """Open the socket; libzmq connects, and connects again, by itself."""
        assert self._socket is None
        socket = context.socket(zmq.DEALER)
        set_common(socket, callee.address, _QUEUED_MAX[self._lane], 1 << 10)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.PROBE_ROUTER, int(self._lane == "bulk"))
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS + zlib.crc32(callee.spread.encode()) % RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        socket.curve_publickey = keys.public.encode()
        socket.curve_secretkey = keys.secret.encode()
        socket.curve_serverkey = callee.curve_key.encode()
        if self._watches:
            self._monitor = socket.get_monitor_socket(_WATCHED)
            self._loop.add_reader(self._monitor.fileno(), self._on_monitor)
            self._on_monitor()  # a socket that nobody has asked yet wakes nobody
        self._socket = socket
        socket.connect(callee.address)
        self._loop.add_reader(socket.fileno(), self.service)

    def service(self) -> None:
        """Send what may be sent and hear what was said, until neither is possible."""
        while (socket := self._socket) is not None:
            events = events_of(socket)
            if events & READABLE:
                self._hear(socket)
            elif not events & WRITABLE or not self._send_next(socket):
                return

    def hang_up(self, linger_ms: int = 0) -> None:
        """Close the socket; what waits in the outbox stays there."""
        if self._monitor is not None and self._socket is not None:
            self._loop.remove_reader(self._monitor.fileno())
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close(linger=linger_ms)
            self._socket = None
        self._up = False

    def _send_next(self, socket: Socket) -> bool:
        frames = self.outbox.peek()
        if frames is None:
            return False
        try:
            send_frames(socket, frames)
        except zmq.Again:
            return True
        self._stats.bytes_sent[self._lane] += nbytes_of(frames)
        if self.outbox.advance():
            self._stats.messages_sent += 1
            self._caller.sent()
        return True

    def _hear(self, socket: Socket) -> None:
        frames = receive_frames(socket, 1)
        if frames[0].bytes == GOODBYE:
            self._caller.hung_up()
            return
        try:
            if len(frames) > 1:
                raise WireError("too many frames")
            self.outbox.hear(frames[0].buffer)
        except WireError as error:
            self._caller.bad(error)

    def _on_monitor(self) -> None:
        while (monitor := self._monitor) is not None and events_of(monitor) & READABLE:
            event = recv_monitor_message(monitor, NOBLOCK)["event"]
            was_up, self._up = self._up, event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            # Losing a connection that never got through its handshake says nothing about the
            # peer: it may not know us yet.
            if self._up or was_up or event == zmq.EVENT_CLOSED:
                self._caller.reached(self._up)
