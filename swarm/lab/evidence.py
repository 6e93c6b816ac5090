"""What a simulated world showed of itself, kept for the checkers."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.daemon.bridge import FactsChanged
from swarm.events import Event
from swarm.job import Job
from swarm.lab.sim_node import virtual_now
from swarm.messages import CellRecord, origin_of
from swarm.pipeline.trainer import Trainer
from transport.wire import Body

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode, SimProcess

RESYNC_S = 30.0
"""Within which a holder that missed a step has taken the state again."""
HINDERS = frozenset(("pause", "cut", "partition", "slow_link", "noise"))
"""Faults during which a node need not be heard."""
MISSED = re.compile(r"(?:step|round) of stage (\d+), slot ")


@dataclass(slots=True)
class Evidence:
    """What the training halves showed of what they applied, kept for the checkers.

    records: (cell, slot) -> different records that somebody holds to be decided; there may be one.
    hashes: (cell, slot, stage) -> node -> hash of its weights.
    newest: cell -> its record of the highest slot. undone: sentences, where that went back.
    excused: (node, stage) -> until when it may differ: it has said that it missed a step, and
        takes the state again as soon as it can reach somebody who did not.
    failures: sentences, whom an error ended.
    hindered: node -> faults that hinder it from hearing or answering now. calm_since: node -> when
        the last fault of any kind touched it, or it started.
    lives: node -> how often it started: two lives may have the same incarnation, refuted or written.
    versions: (viewer, its life, member) -> newest (incarnation, seq) that it has shown.
    touched: what is new in `records` since the checkers looked last.
    stuck: sentences, cells that could train to the end and have not, when the world ended.
    complete, extinct: whether every stage had a running holder once; and whether, after that, the
        ends or the whole body had none, so that nothing is left to rebuild the model from.
    """

    records: dict[tuple[str, int], list[CellRecord]] = field(default_factory=dict)
    hashes: dict[tuple[str, int, int], dict[str, str]] = field(default_factory=dict)
    newest: dict[str, CellRecord] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    excused: dict[tuple[str, int], float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    hindered: dict[str, list[str]] = field(default_factory=dict)
    calm_since: dict[str, float] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)
    versions: dict[tuple[str, int, str], tuple[int, int]] = field(default_factory=dict)
    touched: dict[tuple[str, int], None] = field(default_factory=dict)
    stuck: tuple[str, ...] = ()
    complete: bool = False
    extinct: bool = False

    def hear(self, node: SimNode, body: Body) -> None:
        """A training half told its gossip half something; facts follow every applied record."""
        trainer = node.training.trainer if node.training else None
        if not isinstance(body, FactsChanged) or trainer is None or body.facts.cell != trainer.cell:
            return
        for record in (trainer.reached, trainer.record):
            self._keep(record)
        key = (trainer.reached.cell, trainer.reached.slot)
        for stage, digest in body.facts.hashes.items():
            if self.excused.get((node.node, int(stage)), 0.0) <= virtual_now():
                self.hashes.setdefault((*key, int(stage)), {})[node.node] = digest

    def see(self, event: Event) -> None:
        """A process noted a fact."""
        if event.kind == "started":
            self.lives[event.node] = self.lives.get(event.node, 0) + 1
        if event.kind in ("fault", "started"):
            self.calm_since[event.node] = event.time
        if event.kind == "fault":
            self._hinder(event.node, str(event.fields["what"]))
        missed = MISSED.match(str(event.fields.get("what", ""))) if event.kind == "dropped" else None
        if missed:
            self.excused[event.node, int(missed[1])] = event.time + RESYNC_S

    def _hinder(self, node: str, what: str) -> None:
        suffers, kind = self.hindered.setdefault(node, []), what.removesuffix(" ended")
        if kind in HINDERS and what != kind and kind in suffers:
            suffers.remove(kind)
        elif kind in HINDERS and what == kind:
            suffers.append(kind)

    def calm_s(self, node: str, now: float) -> float:
        """For how long nothing has been done to a node; 0 while something hinders it."""
        return 0.0 if self.hindered.get(node) else now - self.calm_since.get(node, 0.0)

    def look(self, held: Collection[int], stages: int) -> None:
        """Stages that somebody holds at this moment."""
        body = {stage for stage in held if stage}
        self.complete |= len(held) == stages
        self.extinct |= self.complete and (0 not in held or (stages > 1 and not body))

    def end(self, nodes: Iterable[SimNode], job: Job) -> None:
        """The world ends: who could still have trained?"""
        cells: dict[str, list[Trainer]] = {}
        for node in nodes:
            if node.trainer is not None:
                cells.setdefault(node.trainer.cell, []).append(node.trainer)
        self.stuck = tuple(
            f"cell {cell} has {len(here)} members of its roster and every stage, and is at iteration {at}"
            for cell, here in cells.items()
            if can_go_on(here, job) and (at := max(t.record.iteration for t in here)) < job.inner.iterations
        )

    def fail(self, process: SimProcess, error: Exception) -> None:
        """An error ended a process."""
        self.failures.append(f"{process.node[:12]} died of {what_ended(error)}")

    def _keep(self, record: CellRecord) -> None:
        key = (record.cell, record.slot)
        self.touched[key] = None
        found = self.records.setdefault(key, [])
        if record not in found:
            found.append(record)
        newest = self.newest.get(record.cell)
        if newest is None or record.slot > newest.slot:
            if newest is not None and record.iteration < newest.iteration:
                was = f"slot {newest.slot} had iteration {newest.iteration}"
                self.undone.append(f"{record.cell}: {was}, slot {record.slot} has {record.iteration}")
            self.newest[record.cell] = record

    def fresh(self) -> Iterator[CellRecord]:
        """Every decided record of the slots that were touched."""
        for key in self.touched:
            yield from self.records[key]

    def foundings_before(self, cell: str, slot: int) -> int:
        """How many slots in a row, up to the one before, were foundings: of this cell, then of its kin."""
        if not _founds(self.records.get((cell, slot - 1), ())):
            return 0
        founded = {at for (of, at), found in self.records.items() if _founds(found) and _kin(of, cell)}
        return next(count for count in range(1, slot + 2) if slot - 1 - count not in founded)

    def data_nodes(self, record: CellRecord) -> int:
        """How many data nodes the roster of a slot and the one before it name."""
        before = self.records.get((record.cell, record.slot - 1), [])
        return len({node for r in (record, *before) for node in r.roster[0]})


def what_ended(error: Exception) -> str:
    """An error in a sentence: the innermost one, and where it was raised."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{where.filename.rpartition('/')[2]}:{where.lineno} in {where.name}"
    return f"{type(error).__name__}: {error} ({place})"


def _founds(records: Iterable[CellRecord]) -> bool:
    return any(record.act == "found" for record in records)


def _kin(cell: str, other: str) -> bool:
    return origin_of(cell) == origin_of(other)


def can_go_on(here: Sequence[Trainer], job: Job) -> bool:
    """Whether these members of a cell are a majority of its last roster and hold every stage."""
    newest = max((trainer.record for trainer in here), key=lambda record: record.slot)
    roster = {node for row in newest.roster for node in row}
    held = {stage for trainer in here for stage in trainer.computing.stages}
    return (
        2 * len(roster & {trainer.me for trainer in here}) > len(roster) and len(held) == job.pipeline.stages
    )
