"""The interface to the network: one sends to a node id, and hears from node ids.

Which side opened the connection, which socket carries which lane, how large messages are
cut and what encryption runs below is the business of the implementation: `zmq_link.py`
(ZeroMQ, CURVE) and `sim_link.py` (in memory, virtual time). One contract suite runs on both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from transport.machine import NodeId
from transport.wire import Lane, Message

HEARTBEAT_TIMEOUT_S = 15.0
"""How long a connection outlives the last sign of its other end, on either link. A machine that vanished
without closing is noticed; a stall shorter than a death is not."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a peer listens and which CURVE key it must prove (Z85 text, 40 characters)."""

    address: str
    curve_key: str


@dataclass(frozen=True, slots=True)
class Received:
    """A validated message. `peer` is authenticated: it is the ZAP user id, never a claim."""

    peer: NodeId
    message: Message


@dataclass(frozen=True, slots=True)
class Closed:
    """The connection to `peer` went away: evidence of a crash, not proof. Sent once per loss."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message from `peer`, or one for it, was dropped. Reported once per peer; always counted.

    One for it is dropped that is too large to send: what is passed on may be what others made it.
    Too many of them cut the peer off: the link forgets it, says so here, and knows it again only
    when `LinkLimits.cut_off_s` have passed, whatever `know` is told meanwhile. A message of
    another protocol version or too large to send is reported here too, and never counts towards that.
    """

    peer: NodeId
    reason: str


LinkEvent = Received | Closed | Malformed


@dataclass(slots=True)
class LinkStats:
    """Counters since the link opened. Bytes are of headers and buffers, before encryption.

    Of messages dropped there is one counter for each reason that the link knows: what a peer says
    adds none. version: of another protocol version, which is nobody's fault. stalled: begun, and
    then nothing more of it came for too long. too_large: for us to send; nobody would read it.
    """

    bytes_sent: dict[Lane, int] = field(default_factory=lambda: {"control": 0, "bulk": 0})
    bytes_received: dict[Lane, int] = field(default_factory=lambda: {"control": 0, "bulk": 0})
    messages_sent: int = 0
    messages_received: int = 0
    dropped_malformed: int = 0
    dropped_version: int = 0
    dropped_full: int = 0
    dropped_stalled: int = 0
    dropped_too_large: int = 0
    dropped_unauthorised: int = 0


class Link(Protocol):
    """A node's connection to all its peers, two lanes each."""

    stats: LinkStats

    @property
    def endpoint(self) -> Endpoint:
        """Where this link listens."""
        ...

    def know(self, peer: NodeId, endpoint: Endpoint) -> None:
        """Learn or change where a peer listens, and admit its CURVE key. Idempotent.

        Of a peer that is cut off it is remembered until that is over.
        """
        ...

    def forget(self, peer: NodeId) -> None:
        """Close what is open to a peer, drop what is queued, admit its key no longer."""
        ...

    def send(self, peer: NodeId, message: Message) -> bool:
        """Queue a message on the lane its body names. Never waits.

        False if the peer is unknown, its queue full or the header too large: nothing was queued, the
        caller decides (re-route, drop, try later). True promises no delivery.
        Messages to one peer on one lane arrive in order, at most once.
        """
        ...

    async def recv(self) -> LinkEvent:
        """The next event. Cancelling loses nothing. Raises LinkClosed after `close`."""
        ...

    def poll(self) -> LinkEvent | None:
        """The next event if one is already here, without waiting."""
        ...

    async def close(self) -> None:
        """Send what is queued for at most a second, then close every socket."""
        ...


class LinkClosed(Exception):
    """`recv` on a closed link."""
