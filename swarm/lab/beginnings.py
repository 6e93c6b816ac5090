"""Whether a job was begun again from its checkpoints while somebody went on with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.events import Event
from swarm.job import Job
from swarm.lab.remains import can_go_on
from transport.machine import NodeId

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode, SimProcess

SEEN_S = 10.0
"""A cell that the coordinator has seen whole for so long is no news to it: it waits longer for an outage."""


@dataclass(slots=True)
class Beginnings:
    """The cells that the coordinator saw at work, and those with which it has begun the job again.

    whole: cell -> since when its members could go on by themselves and the coordinator saw them all.
    begun: (who says so, name) of cells that took the place of others, to be judged.
    """

    whole: dict[str, float] = field(default_factory=dict)
    begun: list[tuple[NodeId, str]] = field(default_factory=list)

    def see(self, event: Event) -> None:
        """A process noted a fact."""
        if event.kind == "cell":
            self.begun.append((NodeId(event.node), str(event.fields["new"])))

    def again(self, coordinator: SimProcess) -> list[str]:
        """Names of cells with which the coordinator has begun the job again; survivors name theirs alone."""
        return [name for node, name in self.begun if node == coordinator.node]

    def look(self, nodes: Sequence[SimNode], coordinator: SimProcess, job: Job, now: float) -> list[str]:
        """Look around, and judge what was begun since the last look, in sentences."""
        whole = {cell: self.whole.get(cell, now) for cell in _whole(nodes, coordinator, job)}
        at_work = [cell for cell, since in whole.items() if now - since > SEEN_S]
        wrong = [
            f"the job was begun again as {name}, while the coordinator saw {cell} at work"
            for name in self.again(coordinator)
            for cell in at_work
        ]
        self.whole = whole
        self.begun.clear()
        return wrong


def _whole(nodes: Sequence[SimNode], coordinator: SimProcess, job: Job) -> list[str]:
    """Cells whose members, as far as the coordinator sees them there, are a majority with every stage."""
    cells: dict[str, list[SimNode]] = {}
    for node in nodes:
        row = coordinator.view.members.get(node.node) if coordinator.running else None
        if node.trainer is not None and row is not None and row.live and row.facts.cell == node.trainer.cell:
            cells.setdefault(node.trainer.cell, []).append(node)
    trainers = {cell: [node.trainer for node in here if node.trainer] for cell, here in cells.items()}
    return [cell for cell, here in trainers.items() if can_go_on(here, job)]
