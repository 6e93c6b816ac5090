"""Carries a fault script out on real processes: signals, new starts, limits, cuts of the emulated network"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from random import Random

from swarm.daemon.archive import newest_whole
from swarm.daemon.links import forget_ports
from swarm.lab.chaos_lasting import Lasting, Sufferings
from swarm.lab.faults import (
    Crash,
    Cut,
    Fault,
    Partition,
    Restart,
    hit_nobody,
    never_drawn,
    never_due,
    selectors_of,
)
from swarm.lab.processes import Child, RealSwarm
from swarm.lab.schedule import FaultSchedule, Firing, timed
from swarm.lab.selectors import Standing, may_fit_later, select
from swarm.lab.wan import WideArea

COORDINATOR = "coordinator"


class Player:
    """What is done to a swarm, to whom, and what has to be undone.
    holders: of each stage, by the processes' own status; its owner keeps it fresh. regions: of
    each node, by name, if it has one. ids: node id
    of each process that ever ran. killed: process ids. begun: how many faults of each kind hit
    somebody. met_nobody: which did not, by their index with the hits drawn for those by rate.
    """

    def __init__(
        self,
        swarm: RealSwarm,
        wan: WideArea | None,
        script: Sequence[Fault],
        nodes: Sequence[str],
        rng: Random,
        tasks: asyncio.TaskGroup,
        until_s: float,
    ) -> None:
        """until_s: how long the run is to be, which hits by rate are drawn for."""
        self._swarm, self._wan, self._nodes, self._rng = swarm, wan, nodes, rng
        faults: list[Fault] = []
        self._hits: list[tuple[Fault, range]] = []
        for fault in script:
            first = len(faults)
            faults += timed((fault,), nodes=len(nodes), until_s=until_s, rng=rng)
            self._hits.append((fault, range(first, len(faults))))
        self._schedule = FaultSchedule(faults)
        self._hit: dict[int, list[Child]] = {}
        self._sufferings = Sufferings(swarm, self._network, tasks)
        self._kept_down: set[str] = set()
        self.holders: Mapping[int, Sequence[str]] = {}
        self.regions: Mapping[str, str] = {}
        self.ids: dict[str, str] = {}
        self.killed: set[int] = set()
        self.begun: dict[str, int] = {}
        self.met_nobody: set[int] = set()

    @property
    def paused(self) -> set[str]:
        """Names of those that stand still."""
        return self._sufferings.paused

    async def step(self, now_s: float, iteration: int) -> None:
        """Do what is due."""
        self.ids |= {name: child.node for name, child in self._swarm.children.items() if child.node}
        for firing in self._schedule.due(now_s, iteration):
            if firing.undo:
                await self._undo(firing)
            elif self._fits_nobody_yet(firing):
                self._schedule.put_off_again(firing, now_s)
            else:
                await self._begin(firing)

    def not_happened(self) -> list[str]:
        """Sentences: the faults of the script that hit nobody, and those whose moment did not come.

        Of one by rate, it is enough that one of its hits did.
        """
        unmet, told = self.met_nobody | set(self._schedule.put_off), []
        for fault, hits in self._hits:
            due = set(hits) - set(self._schedule.waiting)
            if due and due <= unmet:
                told.append(hit_nobody(fault))
            elif not due:
                told.append(never_due(fault) if fault.per_hour is None else never_drawn(fault, len(hits)))
        return told

    def _fits_nobody_yet(self, firing: Firing) -> bool:
        """Whether a fault names a part that nobody plays yet, such as a stage that is not placed."""
        alive, chance = self._swarm.alive, Random(0)  # not its own: to look changes nothing
        names = [who for who in selectors_of(firing.fault) if may_fit_later(who)]
        return any(not set(self._who(who, chance)).intersection(alive) for who in names)

    def release(self) -> None:
        """Let everything that was stopped or slowed go on, so that it can be asked to leave."""
        self._sufferings.release()

    # -- one fault --------------------------------------------------------------------------

    async def _begin(self, firing: Firing) -> None:
        match firing.fault:
            case Crash(node=who, silent=silent) | Restart(node=who, silent=silent):
                hit = self._remember(firing, who)
                if silent and hit:
                    names = [child.name for child in hit]
                    rest = [name for name in self._swarm.children if name not in names]
                    await self._network().cut(_cut_name(firing), [names, rest])
                for child in hit:
                    self._sufferings.end_life(child.name)
                    self.killed.add(child.pid)
                    self._swarm.kill(child.name)
                    if isinstance(firing.fault, Restart) and firing.fault.moved:
                        forget_ports(child.directory)
            case Cut(between=sides, one_way=one_way):
                await self._cut(firing, sides, one_way=one_way)
            case Partition(groups=sides):
                await self._cut(firing, sides)
            case lasting if isinstance(lasting, Lasting):
                for child in self._remember(firing, lasting.node):
                    await self._sufferings.impose(firing.index, lasting, child.name)

    async def _undo(self, firing: Firing) -> None:
        hit = self._hit.get(firing.index, [])
        match firing.fault:
            case Restart(silent=silent):
                if silent and hit:
                    await self._network().heal(_cut_name(firing))
                for child in hit:
                    await self._start_again(child.name)
            case Cut() | Partition():
                await self._network().heal(_cut_name(firing))
                self._swarm.note("healed", cut=_cut_name(firing))
            case lasting if isinstance(lasting, Lasting):
                for child in hit:
                    await self._sufferings.lift(firing.index, lasting, child.name)
                    if child.name in self._kept_down:
                        await self._start_again(child.name)

    def _remember(self, firing: Firing, selector: str) -> list[Child]:
        """Whom a fault hits: those that run. They are kept for its end."""
        hit = [self._swarm.children[name] for name in self._who(selector) if name in self._swarm.alive]
        self._hit[firing.index] = hit
        self._count(firing, hit)
        return hit

    def _who(self, selector: str, rng: Random | None = None) -> tuple[str, ...]:
        alive = self._swarm.alive
        standing = Standing(
            nodes=self._nodes,
            live=[name for name in self._nodes if name in alive],
            coordinator=COORDINATOR if COORDINATOR in alive else None,
            holders=self.holders,
            regions=_by_region(self.regions, alive),
        )
        return select(selector, standing, rng or self._rng)

    def _count(self, firing: Firing, hit: Collection[object]) -> None:
        if hit:
            self.begun[firing.fault.kind] = self.begun.get(firing.fault.kind, 0) + 1
        else:
            self.met_nobody.add(firing.index)

    # -- how --------------------------------------------------------------------------------

    async def _start_again(self, name: str) -> None:
        """With what is on its disk; the coordinator as a person would start it after a power cut.

        A process that cannot write down its new incarnation does not start: then when it can.
        """
        self._kept_down.discard(name)
        if name in self._swarm.alive:
            return
        if self._sufferings.newest("disk_full", name) is not None:
            self._kept_down.add(name)
            return
        if name == COORDINATOR:
            await self._start_coordinator()
        else:
            await self._swarm.start_node(name)
        await self._sufferings.begin_life(name)

    async def _start_coordinator(self) -> None:
        checkpoints, stages = self._swarm.job_directory / "checkpoints", self._swarm.job.pipeline.stages
        kept = (await asyncio.to_thread(newest_whole, checkpoints, stages)).iteration
        if kept:
            self._swarm.note("resuming", name=COORDINATOR)
        await self._swarm.start_coordinator(resume=kept > 0)

    async def _cut(self, firing: Firing, sides: Sequence[Sequence[str]], *, one_way: bool = False) -> None:
        """A process on two sides stays on the first. One that is down now is cut off when it returns."""
        seen: set[str] = set()
        found: list[list[str]] = []
        for selectors in sides:
            members = dict.fromkeys(name for selector in selectors for name in self._who(selector))
            found.append([name for name in members if name not in seen])
            seen |= members.keys()
        self._count(firing, seen if all(found) else ())
        await self._network().cut(_cut_name(firing), found, one_way=one_way)
        nodes = [[self.ids[name] for name in side if name in self.ids] for side in found]
        self._swarm.note("cut", cut=_cut_name(firing), sides=nodes, names=found, one_way=one_way)

    def _network(self) -> WideArea:
        assert self._wan is not None, "scripts with cuts are refused without one"
        return self._wan


def _by_region(regions: Mapping[str, str], alive: Collection[str]) -> dict[str, list[str]]:
    """Live nodes of each region."""
    found: dict[str, list[str]] = {}
    for name, region in regions.items():
        if name in alive:
            found.setdefault(region, []).append(name)
    return found


def _cut_name(firing: Firing) -> str:
    return f"{firing.fault.kind}-{firing.index}"
