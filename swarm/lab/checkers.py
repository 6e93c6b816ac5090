"""What must hold in every simulated world at every moment, whatever was done to it.

A checker looks at a world and says what is broken, in sentences; none means that all is well.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.daemon.bridge import FactsChanged
from swarm.events import Event
from swarm.lab.sim_node import virtual_now
from swarm.messages import CellRecord
from transport.sim_network import QueueLimits
from transport.wire import Body

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode, SimProcess
    from swarm.lab.world import World

RESYNC_S = 30.0
"""Within which a holder that missed a step has taken the state again."""
MISSED = re.compile(r"(?:step|round) of stage (\d+), slot ")
SETTLE_S = 60.0
"""From the last disturbance until every view must tell the truth."""


@dataclass(slots=True)
class Evidence:
    """What the training halves showed of what they applied, kept for the checkers.

    records: (cell, slot) -> different records that somebody holds to be decided; there may be one.
    hashes: (cell, slot, stage) -> node -> hash of its weights.
    newest: cell -> its record of the highest slot. undone: sentences, where that went back.
    excused: (node, stage) -> until when it may differ: it has said that it missed a step, and
        takes the state again as soon as it can reach somebody who did not.
    failures: sentences, whom an error ended.
    touched: what is new in `records` since the checkers looked last.
    """

    records: dict[tuple[str, int], list[CellRecord]] = field(default_factory=dict)
    hashes: dict[tuple[str, int, int], dict[str, str]] = field(default_factory=dict)
    newest: dict[str, CellRecord] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    excused: dict[tuple[str, int], float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    touched: dict[tuple[str, int], None] = field(default_factory=dict)

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
        missed = MISSED.match(str(event.fields.get("what", ""))) if event.kind == "dropped" else None
        if missed:
            self.excused[event.node, int(missed[1])] = event.time + RESYNC_S

    def fail(self, process: SimProcess, error: Exception) -> None:
        """An error ended a process: the innermost one, and where it was raised."""
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno} in {where.name}"
        self.failures.append(f"{process.node[:12]} died of {type(error).__name__}: {error} ({place})")

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

    def data_nodes(self, record: CellRecord) -> int:
        """How many data nodes may have fed a slot: those of its roster and of the one before.

        A survivor's new cell may finish the slot that was open when the old one lost its majority:
        the record that founded it has survivors only, so the old cell's last one counts too.
        """
        before = list(self.records.get((record.cell, record.slot - 1), []))
        if any(r.act == "found" for r in before):
            family = record.cell.split("~")[0]
            for (cell, slot), found in self.records.items():
                if slot == record.slot - 2 and cell.split("~")[0] == family:
                    before += found
        return len({node for r in (record, *before) for node in r.roster[0]})


Checker = Callable[["World"], Iterator[str]]


def one_record_per_slot(world: World) -> Iterator[str]:
    """No slot of a cell ever has two decided records."""
    for cell, slot in world.evidence.touched:
        found = world.evidence.records[cell, slot]
        if len(found) > 1:
            yield f"slot {slot} of cell {cell} has {len(found)} decided records"


def holders_are_identical(world: World) -> Iterator[str]:
    """Holders of a stage that applied the same slot have equal weights, bit for bit."""
    for cell, slot in world.evidence.touched:
        for stage in range(world.job.pipeline.stages):
            found = world.evidence.hashes.get((cell, slot, stage), {})
            if len(set(found.values())) > 1:
                yield f"holders of stage {stage} differ after slot {slot} of cell {cell}"


def nothing_committed_is_undone(world: World) -> Iterator[str]:
    """A later slot of a cell never has an earlier iteration."""
    yield from world.evidence.undone


def nobody_dies_of_an_error(world: World) -> Iterator[str]:
    """No process ends but by a fault or by its own decision to leave."""
    yield from world.evidence.failures


def tokens_are_counted_once(world: World) -> Iterator[str]:
    """No record counts more tokens than its plan had, nor a part of a microbatch."""
    job = world.job
    batch = job.pipeline.microbatch * job.data.sequence
    for record in world.evidence.fresh():
        planned = batch * job.pipeline.microbatches * world.evidence.data_nodes(record)
        counts = [record.tokens, *(total.tokens for total in record.sums)]
        if record.act == "step" and any(count > planned or count % batch for count in counts):
            yield f"slot {record.slot} of {record.cell} counts {counts} tokens of {planned} planned"


def only_the_admitted_are_seen(world: World) -> Iterator[str]:
    """Nobody without a certificate of the job is in anybody's view."""
    admitted = {process.node for process in world.processes}
    for process in world.processes:
        for stranger in sorted(set(process.view.members) - admitted):
            yield f"{process.node[:12]} has the stranger {stranger[:12]} in its view"


def queues_are_bounded(world: World) -> Iterator[str]:
    """What any link keeps for one peer and lane stays within the network's limits."""
    limits: QueueLimits = world.queues
    for process in world.processes:
        for link in process.links:
            for stream in link.streams.values():
                kept = (stream.kept_messages, stream.kept_bytes)
                if not limits.admit(stream.lane, *kept):
                    yield f"{process.node[:12]} keeps {kept} (messages, bytes) for {stream.receiver.me[:12]}"


def views_tell_the_truth(world: World) -> Iterator[str]:
    """Long enough after the last disturbance everybody knows who is there and who is not."""
    if world.quiet_s() < SETTLE_S:
        return
    for process in world.live():
        for other in world.processes:
            status = process.view.status(other.node)
            if other.running and status != "alive":
                yield f"{process.node[:12]} sees {other.node[:12]} as {status}, but it lives"
            if not other.running and status not in ("dead", "left", None):
                yield f"{process.node[:12]} sees {other.node[:12]} as {status}, but it is gone"


CHECKERS: tuple[Checker, ...] = (
    one_record_per_slot,
    holders_are_identical,
    nothing_committed_is_undone,
    nobody_dies_of_an_error,
    tokens_are_counted_once,
    only_the_admitted_are_seen,
    queues_are_bounded,
    views_tell_the_truth,
)
