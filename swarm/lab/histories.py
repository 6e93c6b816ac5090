"""What the cells of a simulated world decided, as their members showed it, and where that was not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from swarm.messages import CellRecord, origin_of
from swarm.pipeline.ledger import CLOSED_BEFORE
from transport.machine import NodeId


@dataclass(frozen=True, slots=True)
class Counted:
    """What a leader told of the microbatches of a slot that it has closed itself.

    silent: the first characters of the data nodes whose reports it had not.
    """

    cell: str
    slot: int
    tokens: int
    partial: int
    lost: int
    silent: tuple[str, ...]


@dataclass(slots=True)
class Histories:
    """The decided records of all cells, and who knew which of them.

    records: (cell, slot) -> different records that somebody holds to be decided; there may be one.
    steps: (cell, iteration) -> the slot that committed it. newest: cell -> its record of the highest slot.
    known: node -> the newest record that it has shown in its present life and family of cells.
    planned: (cell, slot, term) -> microbatches, as their leader says. counted: what leaders have
        told of closed slots since the checkers looked last; touched: what is new in `records` since then.
    undone, twice: sentences: where something went back, and where an iteration has two slots.
    """

    records: dict[tuple[str, int], list[CellRecord]] = field(default_factory=dict)
    steps: dict[tuple[str, int], int] = field(default_factory=dict)
    newest: dict[str, CellRecord] = field(default_factory=dict)
    known: dict[NodeId, CellRecord] = field(default_factory=dict)
    planned: dict[tuple[str, int, int], int] = field(default_factory=dict)
    counted: list[Counted] = field(default_factory=list)
    touched: dict[tuple[str, int], None] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    # -- what is shown -----------------------------------------------------------------------

    def show(self, node: NodeId, *records: CellRecord) -> None:
        """A member holds these records to be decided, and goes on from the last of them."""
        for record in records:
            self._keep(record)
        now, before = records[-1], self.known.get(node)
        if before is not None and kin(before.cell, now.cell) and now.iteration < before.iteration:
            self.undone.append(
                f"{node[:12]} had iteration {before.iteration} of {before.cell}, "
                f"and goes on with {now.iteration} of {now.cell} in slot {now.slot}"
            )
        self.known[node] = now

    def forget(self, node: NodeId) -> None:
        """A node begins a life, or is in no cell any more: what it held before it does not hold now.

        So a cell of survivors is held against what its own members had when they founded it. What a
        newcomer brings from an earlier life is no reason, nor is what a cell had of which nobody is
        left: that one is rebuilt from checkpoints, under a name of another family.
        """
        self.known.pop(node, None)

    def tell(self, kind: str, fields: Mapping[str, Any]) -> None:
        """A leader noted that it has planned or committed a slot."""
        if kind == "planned" and "microbatches" in fields:
            key = (str(fields["cell"]), int(fields["slot"]), int(fields["term"]))
            self.planned[key] = int(fields["microbatches"])
        if kind == "committed" and CLOSED_BEFORE not in fields.get("reasons", ()):
            numbers = (int(fields[name]) for name in ("slot", "tokens", "partial", "lost"))
            slot, tokens, partial, lost = numbers
            silent = tuple(fields["silent"])
            self.counted.append(Counted(str(fields["cell"]), slot, tokens, partial, lost, silent))

    def _keep(self, record: CellRecord) -> None:
        key = (record.cell, record.slot)
        self.touched[key] = None
        found = self.records.setdefault(key, [])
        if record not in found:
            found.append(record)
            self._compare(record)

    def _compare(self, record: CellRecord) -> None:
        """With the records of the same cell that were seen before."""
        cell, slot, iteration = record.cell, record.slot, record.iteration
        if record.act == "step" and (at := self.steps.setdefault((cell, iteration), slot)) != slot:
            self.twice.append(f"iteration {iteration} of {cell} was committed in slots {at} and {slot}")
        newest = self.newest.get(cell)
        if newest is None or slot > newest.slot:
            if newest is not None and iteration < newest.iteration:
                was = f"slot {newest.slot} had iteration {newest.iteration}"
                self.undone.append(f"{cell}: {was}, slot {slot} has {iteration}")
            self.newest[cell] = record

    # -- what the checkers ask ---------------------------------------------------------------

    def fresh(self) -> Iterator[CellRecord]:
        """Every decided record of the slots that were touched."""
        for key in self.touched:
            yield from self.records[key]

    def looked(self) -> None:
        """The checkers have looked at what was fresh; what was told of a record yet to be shown is kept."""
        self.touched.clear()
        self.counted = [told for told in self.counted if (told.cell, told.slot) not in self.records]

    def foundings_before(self, cell: str, slot: int) -> int:
        """How many slots in a row, up to the one before, were foundings: of this cell, then of its kin."""
        if not _founds(self.records.get((cell, slot - 1), ())):
            return 0
        founded = {at for (of, at), found in self.records.items() if _founds(found) and kin(of, cell)}
        return next(count for count in range(1, slot + 2) if slot - 1 - count not in founded)

    def plans_of(self, record: CellRecord) -> dict[tuple[str, int, int], int]:
        """How many microbatches were planned for a slot; what survivors carried on was planned before."""
        key = (record.cell, record.slot, record.term)
        if key in self.planned:
            return {key: self.planned[key]}
        open_then = range(record.slot - self.foundings_before(record.cell, record.slot), record.slot)
        return {key: n for key, n in self.planned.items() if kin(key[0], record.cell) and key[1] in open_then}

    def data_nodes(self, record: CellRecord) -> int:
        """How many data nodes the roster of a slot and the one before it name."""
        before = self.records.get((record.cell, record.slot - 1), [])
        return len({node for r in (record, *before) for node in r.roster[0]})


def _founds(records: Iterable[CellRecord]) -> bool:
    return any(record.act == "found" for record in records)


def kin(cell: str, other: str) -> bool:
    """Whether two cells have one history to begin with: survivors go on under a name of their own."""
    return origin_of(cell) == origin_of(other)
