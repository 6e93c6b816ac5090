"""What a ZeroMQ link has received and nobody has taken yet."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from transport.link import LinkEvent
from transport.segments import LinkLimits
from transport.zmq_peer import Peer


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event in the inbox, and what it holds: control bytes, or bytes of bulk buffers."""

    event: LinkEvent
    peer: Peer | None
    control_bytes: int = 0
    bulk_bytes: int = 0


class Inbox:
    """Events in the order they came. `arrived` is set whenever one is put in."""

    def __init__(self, limits: LinkLimits) -> None:
        self.arrived = asyncio.Event()
        self._limits = limits
        self._arrivals: deque[Arrival] = deque()
        self._control_bytes = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def is_full(self) -> bool:
        """Whether the link should stop reading. Bulk bytes are limited by credit, not here."""
        limits = self._limits
        return len(self) >= limits.inbox_messages_max or self._control_bytes >= limits.inbox_bytes_max

    def put(self, arrival: Arrival) -> None:
        """Add an event."""
        self._arrivals.append(arrival)
        self._control_bytes += arrival.control_bytes
        self.arrived.set()

    def pop(self) -> Arrival:
        """The oldest event."""
        arrival = self._arrivals.popleft()
        self._control_bytes -= arrival.control_bytes
        return arrival

    def drop(self, peer: Peer) -> None:
        """Take out what is of a peer that is gone."""
        self._arrivals = deque(arrival for arrival in self._arrivals if arrival.peer is not peer)
        self._control_bytes = sum(arrival.control_bytes for arrival in self._arrivals)
