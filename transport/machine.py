"""The shape of every machine: events and the time in, effects out.

A machine decides; it never opens a socket, sleeps, reads a clock or draws randomness
that it was not given. The same object therefore runs over real sockets, in the simulated
world and in a test with a made-up `now`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from transport.wire import Message

NodeId = NewType("NodeId", str)
"""Hex BLAKE2b-256 of a node's Ed25519 public key: 64 characters."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Something a machine wants done. Subclasses say what; the driver does it."""


@dataclass(frozen=True, slots=True)
class Send(Effect):
    """Queue `message` for `peer`. Delivery is never promised; machines keep deadlines."""

    peer: NodeId
    message: Message


class Machine(Protocol):
    """What a driver needs of a machine. Times are seconds of one monotonic clock."""

    def handle(self, peer: NodeId, message: Message, now: float) -> Sequence[Effect]:
        """Take in one message from an authenticated peer."""
        ...

    def tick(self, now: float) -> Sequence[Effect]:
        """Do what is due at `now`. Calling it early or twice is harmless."""
        ...

    def deadline(self) -> float | None:
        """When `tick` next has something to do, or None if only a message can wake it."""
        ...
