"""Carries a fault script out on real processes: signals, new starts, limits, cuts of the emulated network"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Collection, Mapping, Sequence
from random import Random

from swarm.daemon.archive import newest_whole
from swarm.daemon.links import forget_ports
from swarm.lab.faults import (
    Crash,
    Cut,
    DiskFull,
    Fault,
    Noise,
    Partition,
    Pause,
    Restart,
    SlowCompute,
    SlowLink,
    hit_nobody,
    selectors_of,
)
from swarm.lab.processes import Child, RealSwarm
from swarm.lab.schedule import FaultSchedule, Firing
from swarm.lab.selectors import Standing, may_fit_later, select
from swarm.lab.wan import WideArea

TURN_S = 0.1
"""A slowed training process is stopped for a part of every turn: shorter than any time-out,
longer than the scheduler's own turns."""
COORDINATOR = "coordinator"
OF_THE_NETWORK = ("slow_link", "noise")
"""Kinds that outlive the process that they hit."""


class Player:
    """What is done to a swarm, to whom, and what has to be undone.

    holders: of each stage, by the processes' own status; its owner keeps it fresh. regions: of
    each node, by name, if it has one. ids: node id
    of each process that ever ran. killed: process ids. begun: how many faults of each kind hit
    somebody. missed: sentences, which did not.
    """

    def __init__(
        self,
        swarm: RealSwarm,
        wan: WideArea | None,
        faults: Sequence[Fault],
        nodes: Sequence[str],
        rng: Random,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._swarm, self._wan, self._nodes, self._rng, self._tasks = swarm, wan, nodes, rng, tasks
        self._schedule = FaultSchedule(faults)
        self._hit: dict[int, list[Child]] = {}
        self._slowing: dict[int, list[asyncio.Task[None]]] = {}
        self.paused: set[str] = set()
        self.holders: Mapping[int, Sequence[str]] = {}
        self.regions: Mapping[str, str] = {}
        self.ids: dict[str, str] = {}
        self.killed: set[int] = set()
        self.begun: dict[str, int] = {}
        self.missed: list[str] = []
        self._in_force: list[tuple[Firing, str]] = []

    @property
    def next_s(self) -> float | None:
        """When the next fault begins or ends, as far as time alone decides."""
        return self._schedule.next_s()

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
        """Sentences: the faults that were due and hit nobody, and those that still wait for somebody."""
        waiting = (self._schedule.faults[index] for index in sorted(self._schedule.put_off))
        return [*self.missed, *(hit_nobody(fault) for fault in waiting)]

    def _fits_nobody_yet(self, firing: Firing) -> bool:
        """Whether a fault names a part that nobody plays yet, such as a stage that is not placed."""
        alive, chance = self._swarm.alive, Random(0)  # not its own: to look changes nothing
        names = [who for who in selectors_of(firing.fault) if may_fit_later(who)]
        return any(not set(self._who(who, chance)).intersection(alive) for who in names)

    def release(self) -> None:
        """Let everything that was stopped or slowed go on, so that it can be asked to leave."""
        for tasks in self._slowing.values():
            for task in tasks:
                task.cancel()
        for name in sorted(self.paused):
            self._proceed(self._swarm.children[name])

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
                    self.paused.discard(child.name)
                    self._in_force = [
                        one
                        for one in self._in_force
                        if one[1] != child.name or one[0].fault.kind in OF_THE_NETWORK
                    ]
                    self.killed.add(child.pid)
                    self._swarm.kill(child.name)
                    if isinstance(firing.fault, Restart) and firing.fault.moved:
                        forget_ports(child.directory)
            case Pause(node=who):
                for child in self._impose(firing, who):
                    self.paused.add(child.name)
                    self._swarm.pause(child.name)
            case SlowCompute(node=who, factor=factor):
                self._slowing[firing.index] = [
                    self._tasks.create_task(self._slow(child, factor))
                    for child in self._remember(firing, who)
                ]
            case DiskFull(node=who):
                for child in self._impose(firing, who):
                    self._swarm.note_fault(child, "disk_full")
                    limit_files(child, full=True)
            case SlowLink(node=who, factor=factor, over_s=over_s):
                for child in self._impose(firing, who):
                    self._swarm.note_fault(child, "slow_link")
                    await self._network().slow(child.name, factor, over_s=over_s)
            case Noise(node=who) as noise:
                for child in self._impose(firing, who):
                    self._swarm.note_fault(child, "noise")
                    await self._disturb(child, noise)
            case Cut(between=sides, one_way=one_way):
                await self._cut(firing, sides, one_way=one_way)
            case Partition(groups=sides):
                await self._cut(firing, sides)

    async def _undo(self, firing: Firing) -> None:
        hit = self._hit.get(firing.index, [])
        match firing.fault:
            case Restart(silent=silent):
                if silent and hit:
                    await self._network().heal(_cut_name(firing))
                for child in hit:
                    await self._start_again(child.name)
            case Pause():
                for child in hit:
                    if self._lift(firing, child) is None:
                        self._proceed(child)
            case SlowCompute():
                for task in self._slowing.pop(firing.index, []):
                    task.cancel()
            case DiskFull():
                for child in hit:
                    if self._lift(firing, child) is None:
                        limit_files(child, full=False)
                        self._swarm.note_fault(child, "disk_free")
            case SlowLink():
                for child in hit:
                    newest = self._lift(firing, child)
                    factor = newest.factor if isinstance(newest, SlowLink) else 1.0
                    await self._network().slow(child.name, factor)
                    if factor == 1.0:
                        self._swarm.note_fault(child, "link_restored")
            case Noise():
                for child in hit:
                    newest = self._lift(firing, child)
                    await self._disturb(child, newest)
                    if newest is None:
                        self._swarm.note_fault(child, "noise_over")
            case Cut() | Partition():
                await self._network().heal(_cut_name(firing))
                self._swarm.note("healed", cut=_cut_name(firing))

    def _remember(self, firing: Firing, selector: str) -> list[Child]:
        """Whom a fault hits: those that run. They are kept for its end."""
        hit = [self._swarm.children[name] for name in self._who(selector) if name in self._swarm.alive]
        self._hit[firing.index] = hit
        self._count(firing, hit)
        return hit

    def _impose(self, firing: Firing, selector: str) -> list[Child]:
        """Whom a fault hits that lasts: of several of one kind on a process the newest holds."""
        hit = self._remember(firing, selector)
        self._in_force += [(firing, child.name) for child in hit]
        return hit

    def _lift(self, firing: Firing, child: Child) -> Fault | None:
        """End one fault of a process; what of its kind goes on."""
        self._in_force = [
            (each, name) for each, name in self._in_force if (each.index, name) != (firing.index, child.name)
        ]
        rest = [each.fault for each, name in self._in_force if name == child.name]
        return next((fault for fault in reversed(rest) if fault.kind == firing.fault.kind), None)

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
            self.missed.append(hit_nobody(firing.fault))

    # -- how --------------------------------------------------------------------------------

    async def _disturb(self, child: Child, noise: Fault | None) -> None:
        if isinstance(noise, Noise):
            await self._network().disturb(child.name, noise.loss, noise.duplication, noise.reordering)
        else:
            await self._network().disturb(child.name)

    async def _start_again(self, name: str) -> None:
        """With what is on its disk; the coordinator as a person would start it after a power cut."""
        if name in self._swarm.alive:
            return
        if name != COORDINATOR:
            await self._swarm.start_node(name)
            return
        checkpoints, stages = self._swarm.job_directory / "checkpoints", self._swarm.job.pipeline.stages
        kept = (await asyncio.to_thread(newest_whole, checkpoints, stages)).iteration
        if kept:
            self._swarm.note("resuming", name=name)
        await self._swarm.start_coordinator(resume=kept > 0)

    def _proceed(self, child: Child) -> None:
        if child.name in self.paused and self._is_running(child):
            self._swarm.proceed(child.name)
        self.paused.discard(child.name)

    def _is_running(self, child: Child) -> bool:
        """Whether it is still the same process."""
        return child.name in self._swarm.alive and self._swarm.children[child.name].pid == child.pid

    async def _slow(self, child: Child, factor: float) -> None:
        """Stop the training process for all but 1/factor of every turn; gossip is left alone."""
        work_pid = child.info.get("work_pid")
        if work_pid is None:
            return
        self._swarm.note_fault(child, "slow_compute")
        try:
            while self._is_running(child):
                if child.name not in self.paused:
                    _signal(work_pid, signal.SIGSTOP)
                await asyncio.sleep(TURN_S * (1 - 1 / factor))
                if child.name not in self.paused:
                    _signal(work_pid, signal.SIGCONT)
                await asyncio.sleep(TURN_S / factor)
        finally:
            if self._is_running(child):
                if child.name not in self.paused:
                    _signal(work_pid, signal.SIGCONT)
                self._swarm.note_fault(child, "compute_restored")

    async def _cut(self, firing: Firing, sides: Sequence[Sequence[str]], *, one_way: bool = False) -> None:
        """A process on two sides stays on the first. One that is down now is cut off when it returns."""
        seen: set[str] = set()
        found: list[list[str]] = []
        for selectors in sides:
            members = dict.fromkeys(name for selector in selectors for name in self._who(selector))
            found.append([name for name in members if name not in seen])
            seen |= members.keys()
        self._count(firing, seen)
        await self._network().cut(_cut_name(firing), found, one_way=one_way)
        nodes = [[self.ids[name] for name in side if name in self.ids] for side in found]
        self._swarm.note("cut", cut=_cut_name(firing), sides=nodes, names=found, one_way=one_way)

    def _network(self) -> WideArea:
        assert self._wan is not None, "scripts with cuts are refused without one"
        return self._wan


def limit_files(child: Child, *, full: bool) -> None:
    """Let the processes of a node write nothing more to any file, or let them again.

    The kernel refuses every write to a regular file then, sockets are not touched.
    """
    for pid in (child.info.get("pid"), child.info.get("work_pid")):
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else most, most))


def _by_region(regions: Mapping[str, str], alive: Collection[str]) -> dict[str, list[str]]:
    """Live nodes of each region."""
    found: dict[str, list[str]] = {}
    for name, region in regions.items():
        if name in alive:
            found.setdefault(region, []).append(name)
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _cut_name(firing: Firing) -> str:
    return f"{firing.fault.kind}-{firing.index}"
