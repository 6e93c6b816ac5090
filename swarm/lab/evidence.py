"""What a simulated world showed of itself, kept for the checkers."""

from __future__ import annotations

import re
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.daemon.bridge import FactsChanged
from swarm.events import Event
from swarm.lab.beginnings import Beginnings
from swarm.lab.histories import Histories
from swarm.lab.sim_node import virtual_now
from swarm.lab.sources import Sources
from transport.machine import NodeId
from transport.wire import Body

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode, SimProcess

RESYNC_S = 30.0
"""Within which a holder that missed a step has taken the state again."""
HINDERS = frozenset(("pause", "cut", "partition", "slow_link", "noise"))
"""Faults during which a node need not be heard."""
MISSED = re.compile(r"step of stage (\d+), slot ")


@dataclass(slots=True)
class Evidence:
    """What the training halves showed of what they applied, kept for the checkers.

    histories: what the cells decided. sources: where lost stages came back from.
    beginnings: whether the job was begun again while somebody went on with it.
    hashes: (cell, slot, stage) -> node -> hash of its weights.
    excused: (node, stage) -> until when it may differ: it has said that it missed a step, and
        takes the state again as soon as it can reach somebody who did not.
    failures: sentences, whom an error ended.
    hindered: node -> faults that hinder it from hearing or answering now, each with the life in which
        it began: a pause ends with that. calm_since: node -> when
        the last fault of any kind touched it, or it started.
    lives: node -> how often it started: two lives may have the same incarnation, refuted or written.
    versions: (viewer, its life, member) -> newest (incarnation, seq) that it has shown.
    looked: checker -> at how many things it has looked, by its name.
    """

    histories: Histories = field(default_factory=Histories)
    sources: Sources = field(default_factory=Sources)
    beginnings: Beginnings = field(default_factory=Beginnings)
    hashes: dict[tuple[str, int, int], dict[str, str]] = field(default_factory=dict)
    excused: dict[tuple[str, int], float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    hindered: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    calm_since: dict[str, float] = field(default_factory=dict)
    lives: dict[str, int] = field(default_factory=dict)
    versions: dict[tuple[str, int, str], tuple[int, int]] = field(default_factory=dict)
    looked: Counter[str] = field(default_factory=Counter)

    def hear(self, node: SimNode, body: Body) -> None:
        """A training half told its gossip half something; facts follow every applied record."""
        trainer = node.training.trainer if node.training else None
        if not isinstance(body, FactsChanged):
            return
        if trainer is None:
            self.histories.forget(node.node)
        if trainer is None or body.facts.cell != trainer.cell:
            return
        self.histories.show(node.node, trainer.reached, trainer.record)
        key = (trainer.reached.cell, trainer.reached.slot)
        for stage, digest in body.facts.hashes.items():
            if self.excused.get((node.node, int(stage)), 0.0) <= virtual_now():
                self.hashes.setdefault((*key, int(stage)), {})[node.node] = digest

    def see(self, event: Event) -> None:
        """A process noted a fact."""
        self.histories.tell(event.kind, event.fields)
        self.sources.see(event)
        self.beginnings.see(event)
        if event.kind == "started":
            self.lives[event.node] = self.lives.get(event.node, 0) + 1
            self.histories.forget(NodeId(event.node))
        if event.kind in ("fault", "started"):
            self.calm_since[event.node] = event.time
        if event.kind == "fault":
            self._hinder(event.node, str(event.fields["what"]))
        missed = MISSED.match(str(event.fields.get("what", ""))) if event.kind == "dropped" else None
        if missed:
            self.excused[event.node, int(missed[1])] = event.time + RESYNC_S

    def _hinder(self, node: str, what: str) -> None:
        suffers, kind = self.hindered.setdefault(node, []), what.removesuffix(" ended")
        if kind not in HINDERS:
            return
        if what == kind:
            suffers.append((kind, self.lives.get(node, 0)))
        elif begun := [fault for fault in suffers if fault[0] == kind]:
            suffers.remove(begun[0])

    def calm_s(self, node: str, now: float) -> float:
        """For how long nothing has been done to a node; 0 while something hinders it."""
        return 0.0 if self.hinders(node) else now - self.calm_since.get(node, 0.0)

    def hinders(self, node: str) -> set[str]:
        """The kinds of faults that hinder a node now."""
        life = self.lives.get(node, 0)
        return {kind for kind, began in self.hindered.get(node, ()) if kind != "pause" or began == life}

    def fail(self, process: SimProcess, error: Exception) -> None:
        """An error ended a process."""
        self.failures.append(f"{process.node[:12]} died of {what_ended(error)}")


def what_ended(error: Exception) -> str:
    """An error in a sentence: the innermost one, and where it was raised."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{where.filename.rpartition('/')[2]}:{where.lineno} in {where.name}"
    return f"{type(error).__name__}: {error} ({place})"
