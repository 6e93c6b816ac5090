"""What a leader remembers of those it asked to hold something, because what members say may be wrong.

Facts that a member advertises are its own words: that it is a standby, that it has a stage, that
a cell is there. A leader acts on them, and on whether acting on them has led to anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm.gossip.view import View
from swarm.planning.placement import Asked, How
from transport.machine import NodeId

REFUSED_S, REFUSED_MAX_S = 20.0, 3600.0
"""How long a node that could not take a stage is not asked again, doubled with each time in a row.

A cell pauses for a taker, so whoever never takes anything must cost it ever fewer pauses.
"""
PAUSES_APART = 20.0
"""After a pause in vain at least so many times its length passes before the next: a twentieth is lost."""
PASSED_OVER_S = 60.0
"""A standby that nobody took for so long is any cell's: the one it should join may be an invention."""


class Asking:
    """Refusals, failures and waits of one cell's leader."""

    def __init__(self) -> None:
        self._until: dict[NodeId, float] = {}
        self._refusals: dict[NodeId, int] = {}
        self._failed: dict[tuple[int, How], int] = {}
        self._standing: dict[NodeId, float] = {}

    def observe(self, view: View, now: float) -> None:
        """The view changed: who waits, since when, and who is gone and needs no memory."""
        waiting = {m.node for m in view.standby() if m.facts.state == "standby"}
        self._standing = {node: self._standing.get(node, now) for node in waiting}
        self._refusals = {n: times for n, times in self._refusals.items() if n in view.members}
        self._until = {n: until for n, until in self._until.items() if n in view.members}

    def refused(self, node: NodeId, now: float, *, paused_s: float = 0.0) -> None:
        """A node could not take what it was ordered to, or never said. paused_s: what its cell waited."""
        self._refusals[node] = times = self._refusals.get(node, 0) + 1
        doubled_s = min(REFUSED_MAX_S, REFUSED_S * 2.0 ** min(times - 1, 10))
        self._until[node] = now + max(doubled_s, PAUSES_APART * paused_s)

    def took(self, node: NodeId) -> None:
        """A roster names what this node has taken."""
        self._refusals.pop(node, None)

    def failed(self, stage: int, how: How) -> None:
        """An order for a lost stage came to nothing: perhaps its source is empty."""
        self._failed[stage, how] = self._failed.get((stage, how), 0) + 1

    def found(self, stage: int) -> None:
        """A stage has a holder again."""
        self._failed = {key: count for key, count in self._failed.items() if key[0] != stage}

    def asked(self, busy: Iterable[NodeId], leaving: Iterable[NodeId], now: float) -> Asked:
        """All of it, for the placement."""
        refused = {node for node, until in self._until.items() if until > now}
        waited = {node for node, since in self._standing.items() if now - since >= PASSED_OVER_S}
        return Asked(
            busy=frozenset({*busy, *refused}),
            leaving=frozenset(leaving),
            failed=dict(self._failed),
            passed_over=frozenset(waited),
        )
