"""Where lost stages came back from, held against what was in reach of those who decided it.

A source is in reach of a member while its view shows the source alive with what is wanted, and
the source really has it. It was at hand for a recovery if it was in reach of every member of the
cell without a break, from before the stage was lost until it was back: whoever led, and
whenever it decided, it had the choice. To have taken a worse one then is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarm.events import Event
from swarm.gossip.view import Facts
from swarm.job import Job
from swarm.messages import Roster, origin_of
from transport.machine import NodeId

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode, SimProcess

ORDERS = {
    "auto": ("holder", "other_cell", "plus_copy", "checkfree", "checkpoint", "seed"),
    "checkfree": ("holder", "checkfree", "plus_copy", "other_cell", "checkpoint", "seed"),
}
"""By the job's policy: the sources of a lost stage, the best first."""
COPY, ARCHIVE = -1, -2
"""What a source may have besides a stage, which is a number from 0 on: a copy of the ends, checkpoints."""
ORDER_AGE_S = 60.0
"""How old an order may be that comes to a taker: it was held up on its way, or with either of them."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A lost stage that a taker has rebuilt or got: in which cell, how, and for which reason."""

    taker: NodeId
    cell: str
    stage: int
    how: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reach:
    """Since when, by the checkers' looks, a source was in reach, as a member of which family of cells."""

    origin: str
    since: float


@dataclass(slots=True)
class Sources:
    """What was in reach of whom, by looking every second, and how lost stages came back.

    reach: (member, source, stage or `COPY` or `ARCHIVE`) -> since when. doubted: (member, source)
        that were apart in between.
    held: (cell, stage) -> when it was last seen with a holder. born: cell -> the last look without it.
    idle: (node, stage) -> when it was last seen not to fetch the stage.
    placed: to be judged. failed: stage -> when an order for it last came to nothing.
    """

    reach: dict[tuple[NodeId, NodeId, int], Reach] = field(default_factory=dict)
    doubted: set[tuple[NodeId, str]] = field(default_factory=set)
    held: dict[tuple[str, int], float] = field(default_factory=dict)
    born: dict[str, float] = field(default_factory=dict)
    idle: dict[tuple[NodeId, int], float] = field(default_factory=dict)
    placed: list[Placed] = field(default_factory=list)
    failed: dict[int, float] = field(default_factory=dict)
    looked_at: float = 0.0

    def see(self, event: Event) -> None:
        """A process noted a fact: a stage is back, an order failed, or somebody is not alive in a view."""
        node, fields = NodeId(event.node), event.fields
        if event.kind == "placed" and "how" in fields and "stages" in fields:
            told = (str(fields[name]) for name in ("how", "reason"))
            self.placed += [Placed(node, fields["cell"], stage, *told) for stage in fields["stages"]]
        if event.kind == "dropped" and str(fields.get("what", "")).startswith("order for stage "):
            self.failed[int(str(fields["what"]).rpartition(" ")[2])] = event.time
        if event.kind == "member" and fields["status"] != "alive":
            self.doubted.add((node, str(fields["member"])))

    def look(
        self,
        nodes: Sequence[SimNode],
        coordinator: SimProcess,
        rosters: Mapping[str, Roster],
        job: Job,
        now: float,
    ) -> list[str]:
        """Look around, and judge what came back since the last look, in sentences."""
        members = [node for node in nodes if node.trainer is not None]
        self._look_for_sources(members, coordinator, now)
        judged = [
            sentence for placed in self.placed for sentence in self._judge(placed, members, rosters, job)
        ]
        self.placed.clear()
        self._look_for_losses(members, nodes, rosters, range(job.pipeline.stages), now)
        self.looked_at = now
        return judged

    # -- looking -----------------------------------------------------------------------------

    def _look_for_sources(self, members: Sequence[SimNode], coordinator: SimProcess, now: float) -> None:
        has = {node.node: _has(node) for node in members}
        if coordinator.running:
            has[coordinator.node] = {ARCHIVE: ""}
        reach: dict[tuple[NodeId, NodeId, int], Reach] = {}
        for member in members:
            for source, row in member.view.members.items():
                apart = not row.live or (member.node, source[:12]) in self.doubted
                for what, origin in has.get(source, {}).items():
                    key = (member.node, source, what)
                    before = self.reach.get(key)
                    if not row.live or not _shows(row.facts, what, origin):
                        continue
                    unbroken = before is not None and before.origin == origin and not apart
                    reach[key] = before if unbroken and before else Reach(origin, now)
        self.reach = reach
        self.doubted.clear()

    def _look_for_losses(
        self,
        members: Sequence[SimNode],
        nodes: Sequence[SimNode],
        rosters: Mapping[str, Roster],
        stages: range,
        now: float,
    ) -> None:
        for node in members:
            assert node.trainer is not None
            cell = node.trainer.cell
            self.born.setdefault(cell, self.looked_at)
            # A taker has the stage before it counts: a copy of its order may still place it again.
            for stage, row in enumerate(rosters.get(cell, ())):
                if node.node in row and stage in node.trainer.computing.stages:
                    self.held[cell, stage] = now
        for node in nodes:
            busy = node.training.restoring.busy if node.training else ()
            for stage in stages:
                if stage not in busy:
                    self.idle[node.node, stage] = now

    # -- judging -----------------------------------------------------------------------------

    def _judge(
        self, placed: Placed, nodes: Sequence[SimNode], rosters: Mapping[str, Roster], job: Job
    ) -> Iterator[str]:
        roster = rosters.get(placed.cell, ())
        here = [node.node for node in nodes if node.trainer and node.trainer.cell == placed.cell]
        named = {node for row in roster for node in row}
        members = [node for node in here if node != placed.taker or node in named]
        if not members:
            return
        order, seeded = ORDERS[job.recovery.policy], placed.how == "seed"
        for how in order[: order.index(placed.how)]:
            # What proved empty is passed over, as it says; but what is taken then is never the seed.
            passed = f" {how}" in placed.reason.partition("Tried in vain before:")[2] or self._vain(placed)
            if passed and not seeded:
                continue
            for source in self._at_hand(how, placed, members, roster, job):
                what = (
                    f"stage {placed.stage} of {placed.cell} came back to {placed.taker[:12]} by {placed.how}"
                )
                yield f"{what}, while {source[:12]} was there for {how} all the time"
                return

    def _vain(self, placed: Placed) -> bool:
        """Whether an order for the stage came to nothing since it was lost."""
        return self.failed.get(placed.stage, -1.0) >= self._begun(placed)

    def _begun(self, placed: Placed) -> float:
        """Before anybody ordered this recovery: the stage was held, or the cell had no such name yet."""
        held = self.held.get((placed.cell, placed.stage), 0.0)
        lost = max(held, self.born.get(placed.cell, self.looked_at))
        return min(lost, self.idle.get((placed.taker, placed.stage), 0.0))

    def _at_hand(
        self, how: str, placed: Placed, members: Sequence[NodeId], roster: Roster, job: Job
    ) -> Iterator[NodeId]:
        """Who could have given the stage in this way from before its loss until now, as all members saw."""
        origin, begun = origin_of(placed.cell), self._begun(placed)
        if how == "holder":
            begun = self.idle.get((placed.taker, placed.stage), 0.0) - ORDER_AGE_S
        for (member, source, what), reach in self.reach.items():
            if member != members[0] or not _gives(how, what, placed.stage, job):
                continue
            if how == "holder" and source == placed.taker:
                continue
            ours = reach.origin == origin and source in _rows(how, what, placed.stage, roster)
            if how == "checkpoint" or (reach.origin != origin if how == "other_cell" else ours):
                seen = (self.reach.get((each, source, what)) for each in members)
                if all(each is not None and each.since <= begun for each in seen):
                    yield source


def _has(node: SimNode) -> dict[int, str]:
    """What a member of a cell can give, each with the family of its cell."""
    assert node.trainer is not None
    origin, computing = origin_of(node.trainer.cell), node.trainer.computing
    copy = {COPY: origin} if computing.ends_copy is not None else {}
    return dict.fromkeys(computing.stages, origin) | copy


def _shows(facts: Facts, what: int, origin: str) -> bool:
    """Whether a member's facts tell of what it can give."""
    if what == ARCHIVE:
        return facts.iteration > 0 and facts.state != "standby"
    told = facts.state in ("training", "finished") and origin_of(facts.cell) == origin
    return told and (what == COPY or what in facts.stages)


def _gives(how: str, what: int, stage: int, job: Job) -> bool:
    """Whether having this is to be a source of the stage in that way."""
    match how:
        case "holder" | "other_cell":
            return what == stage
        case "plus_copy":
            return stage == 0 and what == COPY and job.recovery.plus_copies
        case "checkfree":
            return stage > 0 and what not in (0, stage) and what > 0
        case "checkpoint":
            return what == ARCHIVE
    return False


def _rows(how: str, what: int, stage: int, roster: Roster) -> Sequence[str]:
    """The members of the cell that may give it so: those that its roster names for it."""
    if how == "plus_copy":
        return (*roster[1], *roster[-1]) if len(roster) > 1 else ()
    return roster[stage if how == "holder" else what] if roster and what >= 0 else ()
