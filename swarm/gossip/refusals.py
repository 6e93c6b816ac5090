"""What was not believed, by reason: counted, told once, bounded."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.events import Noted
from transport.machine import Effect, NodeId

REASONS_MAX = 64
"""Reasons that are counted apart; their text is partly the sender's."""


class Refusals:
    """Counts of one node."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def note(self, reason: str, peer: NodeId) -> Sequence[Effect]:
        """Something that this peer said is dropped."""
        if reason not in self.counts and len(self.counts) >= REASONS_MAX:
            reason = "other reasons"
        self.counts[reason] = self.counts.get(reason, 0) + 1
        first = self.counts[reason] == 1
        return [Noted("dropped", {"what": "gossip", "peer": peer[:12], "why": reason})] if first else []
