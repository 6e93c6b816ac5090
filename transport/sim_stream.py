"""Messages on their way from one simulated link to another, and an account of every byte of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Literal

from transport.wire import Lane

if TYPE_CHECKING:
    from transport.sim_link import SimLink

DropCause = Literal["unheard", "unsent", "cut", "closed", "malformed", "unauthorised"]
"""Why bytes did not reach an application: nobody listened at that address; their sender went away
before they had left; a connection gave up behind a cut; their receiver had gone; refused on arrival."""


@dataclass(slots=True, eq=False)
class Packet:
    """A message on its way. leaves, due: when it has left its sender, when it arrives; inf: not known yet."""

    header: bytes
    buffers: tuple[memoryview, ...]
    nbytes: int
    leaves: float = inf
    due: float = inf


@dataclass(slots=True)
class ByteCount:
    """What became of the bytes that were sent. Copies that the network made count as sent, too.

    delivered: handed to the receiver's application side, taken from there or not.
    """

    sent: int = 0
    delivered: int = 0
    dropped: dict[DropCause, int] = field(default_factory=dict)

    def drop(self, cause: DropCause, nbytes: int) -> None:
        """So many bytes are lost."""
        self.dropped[cause] = self.dropped.get(cause, 0) + nbytes

    def add(self, other: ByteCount) -> None:
        """Count what another counted."""
        self.sent += other.sent
        self.delivered += other.delivered
        for cause, nbytes in other.dropped.items():
            self.drop(cause, nbytes)

    @property
    def open(self) -> int:
        """Bytes that must be under way: sent, and neither delivered nor dropped."""
        return self.sent - self.delivered - sum(self.dropped.values())


@dataclass(slots=True, eq=False)
class Stream:
    """Messages of one link to another on one lane: under way, or arrived and not yet taken.

    unsent: bulk that has not left its sender; its first message is being transferred.
    packets: what has a time of arrival, in order. strays: copies, and what others may overtake.
    kept_messages, kept_bytes: all of these, and what has arrived and was not taken.
    """

    sender: SimLink
    receiver: SimLink
    lane: Lane
    unsent: deque[Packet] = field(default_factory=deque)
    packets: deque[Packet] = field(default_factory=deque)
    strays: dict[Packet, None] = field(default_factory=dict)
    kept_messages: int = 0
    kept_bytes: int = 0
    count: ByteCount = field(default_factory=ByteCount)

    def keep(self, packet: Packet) -> None:
        """Count a message as sent; it is kept until `release`."""
        self.kept_messages += 1
        self.kept_bytes += packet.nbytes
        self.count.sent += packet.nbytes

    def release(self, nbytes: int) -> None:
        """Make room: the receiver has taken this much, or it is lost."""
        self.kept_messages -= 1
        self.kept_bytes -= nbytes

    def lose(self, nbytes: int, cause: DropCause) -> None:
        """A message is lost."""
        self.release(nbytes)
        self.count.drop(cause, nbytes)

    def drop_unsent(self, now: float) -> None:
        """Lose what has not left its sender by now."""
        while self.unsent:
            self.lose(self.unsent.pop().nbytes, "unsent")
        while self.packets and self.packets[-1].leaves > now:
            self.lose(self.packets.pop().nbytes, "unsent")
        for packet in [stray for stray in self.strays if stray.leaves > now]:
            del self.strays[packet]
            self.lose(packet.nbytes, "unsent")

    def drop_all(self, cause: DropCause) -> None:
        """Lose everything that is under way."""
        for packet in self.under_way():
            self.lose(packet.nbytes, cause)
        self.unsent.clear()
        self.packets.clear()
        self.strays.clear()

    def under_way(self) -> Iterator[Packet]:
        """Every message that has not arrived."""
        yield from self.packets
        yield from self.unsent
        yield from self.strays

    def due(self, now: float) -> list[Packet]:
        """Take what has arrived by now. In any byte stream, what delays one message delays those behind."""
        found = [stray for stray in self.strays if stray.due <= now] if self.strays else []
        for stray in found:
            del self.strays[stray]
        while self.packets and self.packets[0].due <= now:
            found.append(self.packets.popleft())
        return found

    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not (self.packets or self.unsent or self.strays)
