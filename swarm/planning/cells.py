"""Nodes to cells and stages: at the founding, for a newcomer to a cell, and for a standby.

Every decision is pure, deterministic, and returned with its reason. Extra nodes double body
stages before the ends: the body is where the work is, and each further data node enlarges the
batch by the job's `microbatches`, which changes the training and not only its speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Literal

from swarm.gossip.view import Member, View
from swarm.job import Job
from swarm.messages import CellRecord, Roster, origin_of
from transport.machine import NodeId


@dataclass(frozen=True, slots=True)
class Founder:
    """A node at the founding. speed_flops: measured, or 0 if not yet."""

    node: NodeId
    speed_flops: float = 0.0


@dataclass(frozen=True, slots=True)
class Founding:
    """A cell as it begins: its name, the holders of each stage, and why so."""

    cell: str
    roster: Roster
    reason: str


def genesis(founders: Sequence[Founder], job: Job, rng: Random | None = None) -> tuple[Founding, ...]:
    """Divide the founders into the job's cells, and each cell's nodes over its stages.

    Never more cells than founders, so that each can hold every stage. Cells get equally many
    nodes within one, and about equal speed. Nodes take stages in node-id order, or in the order
    `rng` shuffles them into, for experiments. Raises ValueError without founders.
    """
    if not founders:
        raise ValueError("a job cannot be founded by no nodes")
    ordered = sorted(founders, key=lambda founder: founder.node)
    cells = _divide(ordered, min(job.pipeline.cells, len(ordered)))
    foundings = []
    for index, cell in enumerate(cells):
        nodes = [founder.node for founder in cell]
        if rng is not None:
            rng.shuffle(nodes)
        reason = f"{len(nodes)} nodes hold {job.pipeline.stages} stages."
        foundings.append(Founding(f"c{index}", assign_stages(nodes, job.pipeline.stages), reason))
    return tuple(foundings)


def _divide(founders: Sequence[Founder], cells: int) -> list[list[Founder]]:
    """Fastest first, each to the cell with the fewest nodes, of those the slowest."""
    groups: list[list[Founder]] = [[] for _ in range(cells)]
    for founder in sorted(founders, key=lambda f: -f.speed_flops):
        smallest = min(groups, key=lambda group: (len(group), sum(f.speed_flops for f in group)))
        smallest.append(founder)
    return [sorted(group, key=lambda founder: founder.node) for group in groups]


def assign_stages(nodes: Sequence[NodeId], stages: int) -> Roster:
    """The holders of each stage when `nodes`, at least one, found a cell.

    With fewer nodes than stages each holds consecutive ones, so that a microbatch crosses the
    network once a node; the holder of the ends gets the smaller share, for it has the head too.
    With more nodes than stages the others double stages, body first.
    """
    if len(nodes) < stages:
        owner = [index for index in range(len(nodes)) for _ in _share(index, len(nodes), stages)]
        return tuple((nodes[index],) for index in owner)
    holders: list[list[str]] = [[node] for node in nodes[:stages]]
    for node, stage in zip(nodes[stages:], _doubling_order(stages), strict=False):
        holders[stage].append(node)
    return tuple(tuple(sorted(held)) for held in holders)


def _share(index: int, nodes: int, stages: int) -> range:
    return range(index * stages // nodes, (index + 1) * stages // nodes)


def _doubling_order(stages: int) -> Iterator[int]:
    return cycle([*range(1, stages), 0])


@dataclass(frozen=True, slots=True)
class Place:
    """The stage a newcomer takes, from whom (None if nobody gives it up), and why."""

    stage: int
    replaces: str | None
    reason: str


def place_newcomer(roster: Sequence[Sequence[str]], node: str) -> Place:
    """Which stage a newcomer to a cell takes: a lost one, else one of an overloaded node, else a copy.

    A lost stage 0 comes first, because nothing starts or ends without it. The node with most
    stages gives up its highest that nobody else holds. Raises ValueError for a node that is
    in the roster already.
    """
    if any(node in holders for holders in roster):
        raise ValueError(f"{node[:8]} is no newcomer: it holds a stage of this cell")
    for stage, holders in enumerate(roster):
        if not holders:
            return Place(stage, None, f"Stage {stage} has no holder.")
    held = _stages_by_node(roster)
    busiest = min(held, key=lambda holder: (-len(held[holder]), holder))
    if len(held[busiest]) > 1:
        alone = [stage for stage in held[busiest] if len(roster[stage]) == 1]
        stage = max(alone or held[busiest])
        reason = f"{busiest[:8]} holds {len(held[busiest])} stages and hands over stage {stage}."
        return Place(stage, busiest, reason)
    stage = min(range(len(roster)), key=lambda s: (len(roster[s]), s == 0, s))
    return Place(stage, None, f"Stage {stage} has the fewest holders, {len(roster[stage])}.")


def _stages_by_node(roster: Iterable[Sequence[str]]) -> dict[str, list[int]]:
    held: dict[str, list[int]] = {}
    for stage, holders in enumerate(roster):
        for holder in holders:
            held.setdefault(holder, []).append(stage)
    return held


@dataclass(frozen=True, slots=True)
class CellChoice:
    """What a standby does: join `cell`, found a new one, or wait; and why."""

    act: Literal["join", "found", "wait"]
    cell: str | None
    reason: str


def choose_cell(view: View, job: Job, node: NodeId) -> CellChoice:
    """What standby `node` does, so that all standbys with this view choose without talking.

    The lowest standby founds a cell when there are fewer than the job wants, and so alone that
    no two are founded at once; everyone else joins the cell with the fewest live members. The
    name of a new cell is the founder's business: it must never have been used before.
    """
    present = _cells_not_dead(view)
    lowest = min((member.node for member in view.standby()), default=node)
    if len(present) < job.pipeline.cells and node <= lowest:
        reason = f"There are {len(present)} of {job.pipeline.cells} cells, and this is the lowest standby."
        return CellChoice("found", None, reason)
    live = {cell: len(view.cell(cell)) for cell in view.cells()}
    if not live:
        why = (
            f"{lowest[:8]} is to found one" if not present else "those suspected of being dead may yet answer"
        )
        return CellChoice("wait", None, f"No cell is surely alive; {why}.")
    cell = min(live, key=lambda name: (live[name], name))
    return CellChoice("join", cell, f"Cell {cell} has the fewest live members, {live[cell]}.")


def cell_to_copy(view: View, job: Job) -> tuple[Member, ...]:
    """The live members of the cell whose state a new one begins with; () where there is none.

    Cells of at most half the members of the largest do not count, nor do counts that cannot be
    true; of the rest it is the one in the middle. They are within a round of each other, and the
    furthest would be whichever one member had made up.
    """
    last = job.inner.iterations
    cells = [
        tuple(m for m in view.cell(cell) if m.facts.round <= m.facts.iteration <= last)
        for cell in view.cells()
    ]
    largest = max(map(len, cells), default=0)
    large = [members for members in cells if 2 * len(members) > largest]
    large.sort(key=lambda members: usual(m.facts.iteration for m in members))
    return large[(len(large) - 1) // 2] if large else ()


def went_on_as(view: View, record: CellRecord, node: NodeId) -> str:
    """The cell that this one has become without `node`, a member of its last record; empty if none.

    Half of that record's members say that they went on under one later name, so no majority of this
    cell will ever be again; and what `node` holds is held there, so nothing is lost with it.
    """
    members = {holder for row in record.roster for holder in row}
    mine = {stage for stage, row in enumerate(record.roster) if node in row}
    for name in view.cells():
        if not mine or not _founded_after(name, record):
            continue  # asked at every change of the view, and nearly always of such names alone
        there = view.cell(name)
        gone = members.intersection(member.node for member in there) - {node}
        held = {stage for member in there for stage in member.facts.stages}
        if mine <= held and 2 * len(gone) >= len(members):
            return name
    return ""


def _founded_after(name: str, record: CellRecord) -> bool:
    """Whether survivors took this name at the record's slot or later: see `Election.remainder`."""
    slot = name.rpartition(".")[2]
    kin = name != record.cell and origin_of(name) == origin_of(record.cell)
    return kin and "~" in name and slot.isdecimal() and int(slot) >= record.slot


def usual(counts: Iterable[int]) -> int:
    """The lower median of at least one count: no single one of three moves it beyond the others'."""
    ordered = sorted(counts)
    return ordered[(len(ordered) - 1) // 2]


def _cells_not_dead(view: View) -> set[str]:
    """Cells that may still be there: a mere suspicion must not have a cell founded in its place."""
    return {member.facts.cell for member in view.members.values() if _may_train(member)}


def _may_train(member: Member) -> bool:
    return bool(member.facts.cell) and member.status in ("alive", "suspect")
