"""Who shall lead a cell, as one member sees it, and the votes that a candidate collects.

The order of succession is a function of the roster and the view: live holders of the ends by
id, then the others by id. Being first is no right to lead: whoever is in office stays, and only
a majority's promises make a leader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from swarm.messages import CellRecord, Promise, Query, origin_of
from swarm.pipeline.records import (
    CheckRecord,
    founding,
    is_majority,
    read_record,
    roster_nodes,
    stages_of,
    wrong_with_record,
)
from transport.machine import NodeId
from transport.wire import Signed, WireError

Live = Callable[[NodeId], bool]


def succession(record: CellRecord, live: Live) -> list[NodeId]:
    """Live members of a cell in the order in which they may lead."""
    present = [node for node in roster_nodes(record.roster) if live(node)]
    return sorted(present, key=lambda node: (node not in record.roster[0], node))


class Election:
    """The terms a node has seen, who is in office, and its own candidacy if it has one."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self.term = 0
        self.office: NodeId | None = None
        self.why = ""
        self.promises: dict[NodeId, Promise] = {}
        self.strangers: set[NodeId] = set()
        """Asked members that answered that they are not in this cell any more."""
        self._lacking_since: float | None = None

    def heard(self, leader: NodeId, term: int) -> None:
        """A leadership that this node's follower answered to."""
        self.term, self.office, self._lacking_since = max(self.term, term), leader, None

    def decided(self, record: CellRecord) -> None:
        """A record of this leadership was decided; one proposed again is of an older one."""
        if record.term >= self.term or self.office is None:
            self.heard(NodeId(record.leader), record.term)

    def in_office(self, ranking: list[NodeId]) -> bool:
        """Whether somebody else leads and is there."""
        return self.office is not None and self.office != self.me and self.office in ranking

    def stand(self, record: CellRecord, why: str) -> Query:
        """Become a candidate in a new term."""
        self.term += 1
        self.office, self.why = None, why
        self.promises.clear()
        self.strangers.clear()
        return Query(cell=record.cell, slot=record.slot, term=self.term)

    def promised(
        self, peer: NodeId, promise: Promise, record: CellRecord, digest: str, check: CheckRecord
    ) -> bool:
        """Count a promise, if its sender has a voice and did not make up what it accepted."""
        accepted = promise.accepted
        forged = accepted and _is_next(accepted, record, digest) and not check(accepted)
        if forged or not stages_of(record.roster, peer):
            return False
        self.promises[peer] = promise
        return True

    def won(self, record: CellRecord) -> bool:
        """Whether a majority of the last record's roster has promised."""
        return is_majority(self.promises, record.roster)

    def unfinished(self, record: CellRecord, digest: str) -> Signed | None:
        """What the promises say may have been decided already, of the newest leadership."""
        found: list[tuple[tuple[int, str], Signed]] = []
        for promise in self.promises.values():
            accepted, ballot = promise.accepted, promise.ballot
            if accepted is not None and ballot is not None and _is_next(accepted, record, digest):
                found.append((ballot, accepted))
        return max(found, key=lambda pair: pair[0])[1] if found else None

    def silent(self, record: CellRecord) -> list[NodeId]:
        """Members that neither promised nor said that they are not in this cell."""
        known: Mapping[NodeId, object] = self.promises
        return [n for n in roster_nodes(record.roster) if n not in known and n not in self.strangers]

    def lacking_since(self, now: float) -> float:
        """Since when nobody who could make a majority is left, with no leadership in between.

        What is in no row of those who are left is lost since then, though the last roster names a
        holder: that one is back without its memory.
        """
        if self._lacking_since is None:
            self._lacking_since = now
        return self._lacking_since

    def remainder(self, record: CellRecord, digest: str) -> CellRecord:
        """The founding record of the new cell that those who promised are from now on.

        Its name holds the founder and the slot, so that it was never used before.
        """
        name = f"{origin_of(record.cell)}~{self.me[:8]}.{record.slot}"
        roster = tuple(tuple(n for n in row if n in self.promises) for row in record.roster)
        return founding(record, digest, name, roster, self.term, self.me)


def _is_next(accepted: Signed, record: CellRecord, digest: str) -> bool:
    """Whether an accepted record is of the slot in question: a member that is behind has older ones."""
    try:
        read = read_record(accepted)
    except WireError:
        return False
    next_one = (read.cell, read.slot, read.previous) == (record.cell, record.slot + 1, digest)
    return next_one and not wrong_with_record(accepted, read, record)
