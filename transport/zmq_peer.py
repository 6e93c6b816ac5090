"""What a ZeroMQ link keeps about one peer: two lanes out, and what comes in."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq
from zmq.utils import z85

from transport.addresses import is_address
from transport.link import Endpoint, LinkStats
from transport.machine import NodeId
from transport.reassembly import Inlet, Memory
from transport.segments import Credit, LinkLimits, Outbox
from transport.wire import Lane, Message, Schema, TooLarge, WireError, check_buffers
from transport.zmq_dialer import Callee, Dialer
from transport.zmq_socket import Context, CurveKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all peers of a link have in common. context: of the outgoing sockets. now: monotonic."""

    me: NodeId
    now: Callable[[], float]
    context: Context
    keys: CurveKeys
    schema: Schema
    limits: LinkLimits
    memory: Memory
    stats: LinkStats


class Exchange(Protocol):
    """What a peer tells its link."""

    def lost(self, peer: Peer) -> None:
        """The connection went away, or could not be made; told once until it stands again."""
        ...

    def malformed(self, peer: Peer, error: WireError) -> None:
        """Something it said, or was to hear, was dropped."""
        ...

    def sent(self) -> None:
        """A whole message was handed over."""
        ...


class Peer:
    """One known peer. Both lanes are dialled when one of them is first used, or when it is heard:
    the connection is also how its death is seen."""

    def __init__(self, node: NodeId, endpoint: Endpoint, shared: Shared, exchange: Exchange) -> None:
        self.node = node
        self.endpoint = endpoint
        self.inlet = Inlet(shared.schema, shared.limits, shared.memory, shared.stats)
        self._shared = shared
        self._exchange = exchange
        self._is_lost = False
        self._is_up, self._down_at, self._said_at = False, shared.now(), shared.now()
        limits, stats = shared.limits, shared.stats
        self._dialers: dict[Lane, Dialer] = {
            "control": Dialer("control", Outbox(limits, None), stats, self, watches=True),
            "bulk": Dialer("bulk", Outbox(limits, Credit()), stats, self, watches=False),
        }

    @property
    def waiting(self) -> int:
        """Messages not yet handed over whole, and not hopeless."""
        return 0 if self._is_lost else sum(len(dialer.outbox) for dialer in self._dialers.values())

    def send(self, message: Message) -> bool:
        """Queue a message; False if it is too large, or there is no room or no address to dial."""
        self._said_at = self._shared.now()
        lane = message.body.lane
        check_buffers(message.body, message.buffers)
        try:
            header = self._shared.schema.pack(message.body)
        except TooLarge as error:
            self._exchange.malformed(self, error)
            return False
        if not self.dial(lane):
            return False
        if not self._dialers[lane].outbox.offer(header, message.buffers):
            self._shared.stats.dropped_full += 1
            return False
        self._dialers[lane].service()
        return True

    def dial(self, lane: Lane) -> bool:
        """Open the sockets of a lane, and always of control; False if the address is no good."""
        if self._dialers[lane].is_dialled:
            return True
        if not is_address(self.endpoint.address):
            return False
        callee = Callee(
            address=self.endpoint.address,
            curve_key=self.endpoint.curve_key,
            spread=self._shared.me + self.node,
        )
        for dialer in {self._dialers["control"], self._dialers[lane]}:
            if not dialer.is_dialled:
                dialer.dial(self._shared.context, self._shared.keys, callee)
        return True

    def move(self, endpoint: Endpoint) -> None:
        """The peer listens elsewhere, or has another key: dial there, with what waits."""
        self.endpoint = endpoint
        self._is_lost = False
        self._redial()

    def take(self, route: bytes, frames: Sequence[zmq.Frame]) -> Message | None:
        """Take in a ZeroMQ message that is the peer's. Raises WireError."""
        self.dial("control")
        return self.inlet.take(route, [frame.buffer for frame in frames])

    def service(self) -> None:
        """Move what waits, for a caller that does not run the loop."""
        for dialer in self._dialers.values():
            if len(dialer.outbox):
                dialer.service()

    def rest(self) -> None:
        """Dial no more who has been away for long, until there is something to say to it again."""
        now, limits = self._shared.now(), self._shared.limits
        away = not self._is_up and now > self._down_at + limits.redial_s
        if away and now > self._said_at + limits.redial_turn_s:
            self.hang_up()
            for dialer in self._dialers.values():
                dialer.outbox.clear()

    def hang_up(self, linger_ms: int = 0) -> None:
        """Close both lanes. With no time to linger, what waits is dropped."""
        for dialer in self._dialers.values():
            dialer.hang_up(linger_ms)

    def reached(self, up: bool) -> None:
        """The control connection stands or fell."""
        if self._is_up and not up:
            self._down_at = self._shared.now()
        self._is_up = up
        was_lost, self._is_lost = self._is_lost, not up
        if self._is_lost and not was_lost:
            self._exchange.lost(self)

    def hung_up(self) -> None:
        """The peer has forgotten us. Dial afresh for what waits: its door opens when it knows us."""
        self._redial()
        self.reached(False)

    def bad(self, error: WireError) -> None:
        """It answered with something malformed."""
        self._exchange.malformed(self, error)

    def sent(self) -> None:
        """A message left."""
        self._exchange.sent()

    def _redial(self) -> None:
        self.hang_up()
        self._is_up, self._down_at = False, self._shared.now()
        for lane, dialer in self._dialers.items():
            if len(dialer.outbox):
                self.dial(lane)


def is_curve_key(text: str) -> bool:
    """Whether a text is 32 bytes in Z85."""
    try:
        return len(text) == 40 and len(z85.decode(text.encode())) == 32
    except (KeyError, ValueError, struct.error):
        return False
