"""What was refused: counted by reason, and told once of each sender."""

from __future__ import annotations

from swarm.events import Noted
from transport.machine import Effect

BLAMED_MAX = 256
"""(reason, sender) pairs told apart: a bound on memory and on the log, not on the counts."""


class Drops:
    """Counts by a reason of fixed text, for whoever sends can make up any number of others."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._told: dict[tuple[str, str], bool] = {}

    def add(self, what: str, sender: str = "") -> None:
        """One more was refused."""
        self.counts[what] = self.counts.get(what, 0) + 1
        if sender and len(self._told) < BLAMED_MAX:
            self._told.setdefault((what, sender), False)

    def blame(self) -> list[Effect]:
        """An event for each sender and reason that was not told yet."""
        new = [pair for pair, told in list(self._told.items()) if not told]
        self._told |= dict.fromkeys(new, True)
        return [Noted("dropped", {"what": what, "peer": sender[:12]}) for what, sender in new]
