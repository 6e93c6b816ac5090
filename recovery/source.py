"""A donor as a taker of state knows it: what it was asked for, how far it is, and how long to wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from transport.machine import NodeId
from transport.patience import Patience


@dataclass(slots=True)
class Source:
    """What a taker knows of a donor.

    owed: the chunks that it has still to send, oldest first. asked_at: when each chunk that has not
    come was first asked of it. patience: from how long chunks took from then until they came, which
    has their time in the donor's line in it: between the chunks of one taker come those of others.
    """

    peer: NodeId
    patience: Patience
    state: Literal["unasked", "asked", "queued", "serving", "spare", "dropped"] = "unasked"
    owed: dict[int, None] = field(default_factory=dict)
    asked_at: dict[int, float] = field(default_factory=dict)
    heard_at: float = 0.0
    strikes: int = 0
    wants: int = 0
    sent: int = 0
    reason: str = "was not asked"

    def room(self, window: int) -> int:
        """How many more chunks may be asked of it: one at first, so that the first measure is soon there."""
        return min(window, 1 + self.sent) - len(self.owed)

    def ask(self, index: int, now: float) -> None:
        """It owes this chunk from now on."""
        if not self.owed:
            self.heard_at = now
        self.owed[index] = None
        self.asked_at.setdefault(index, now)

    def came(self, index: int, now: float) -> list[int]:
        """A chunk came. Returns what it owed before this one: that got lost, since lanes keep order."""
        if index in self.asked_at:
            self.patience.add(now - self.asked_at.pop(index))
        self.heard_at, self.strikes = now, 0
        self.sent += 1
        if index not in self.owed:
            return []
        owed = list(self.owed)
        lost = owed[: owed.index(index)]
        for passed in (*lost, index):
            del self.owed[passed]
        return lost

    def take_back(self) -> list[int]:
        """What it owed, and owes no more."""
        owed = list(self.owed)
        self.owed.clear()
        return owed

    def due(self, manifest_wait_s: float) -> float | None:
        """When its silence is too long, None if nothing is expected of it."""
        if self.state in ("asked", "queued"):
            return self.heard_at + manifest_wait_s
        if self.state == "serving" and self.owed:
            return self.heard_at + self.patience.limit_s() * (1 << self.strikes)
        return None
