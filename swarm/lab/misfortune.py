"""Carries a fault script out on a simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from swarm.daemon.links import forget_ports
from swarm.events import Event
from swarm.lab.faults import (
    ClockSkew,
    Corrupt,
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
    never_drawn,
    never_due,
    selectors_of,
)
from swarm.lab.schedule import FaultSchedule, Firing, timed
from swarm.lab.selectors import Standing, may_fit_later, select
from swarm.lab.sim_node import SimNode, SimProcess, virtual_now
from transport.machine import NodeId
from transport.sim_paths import Cut as Severed
from transport.sim_paths import LinkShape
from transport.virtual_time import VirtualTimeLoop

if TYPE_CHECKING:
    from swarm.lab.world import World

LOOK_S = 3600.0
"""How long the player sleeps when only a commit can wake it."""


class Misfortune:
    """What is done to a world, by whom it hits and when it ends."""

    def __init__(self, world: World, script: Sequence[Fault], drawn: Sequence[Fault], rng: Random) -> None:
        """script: what a person wrote. drawn: by churn or from a trace, however long the run."""
        self._world, self._rng = world, rng
        options = world.options
        nodes = options.nodes or options.job.pipeline.nodes
        faults: list[Fault] = []
        self._by_rate: list[tuple[Fault, range]] = []
        for fault in (*script, *drawn):
            first = len(faults)
            faults += timed((fault,), nodes=nodes, until_s=options.until_s, rng=rng)
            if fault.per_hour is not None and any(fault is each for each in script):
                self._by_rate.append((fault, range(first, len(faults))))
        self._schedule = FaultSchedule(faults)
        self._scripted = {i for i, fault in enumerate(faults) if any(fault is each for each in script)}
        self._drawn = {i for i, fault in enumerate(faults) if any(fault is each for each in drawn)}
        self._met_nobody: set[int] = set()
        self._hit: dict[int, list[SimProcess]] = {}
        self._in_force: list[tuple[int, NodeId]] = []
        self._severed: dict[int, Severed] = {}
        self._kept_down: dict[NodeId, SimProcess] = {}

    async def play(self) -> None:
        """Do what is due, for ever."""
        while True:
            self._world.news.clear()
            for firing in self._schedule.due(virtual_now(), self._world.iteration):
                if firing.undo:
                    self._undo(firing)
                elif self._fits_nobody_yet(firing):
                    self._schedule.put_off_again(firing, virtual_now())
                else:
                    self._begin(firing)
            due = self._schedule.next_s()
            wait_s = LOOK_S if due is None else max(0.0, due - virtual_now())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._world.news.wait()

    def not_happened(self) -> list[str]:
        """Sentences: the faults of the script that hit nobody, and those whose moment did not come.

        Of one by rate, it is enough that one of its hits did.
        """
        unmet = self._met_nobody | set(self._schedule.put_off)
        nobody = sorted(unmet & self._scripted)
        waiting = [index for index in self._schedule.waiting if index in self._scripted]
        faults = self._schedule.faults
        told = [*(hit_nobody(faults[i]) for i in nobody), *(never_due(faults[i]) for i in waiting)]
        for fault, hits in self._by_rate:
            due = set(hits) - set(self._schedule.waiting)
            if due <= unmet:
                told.append(hit_nobody(fault) if due else never_drawn(fault, len(hits)))
        return told

    def drawn(self) -> tuple[int, int]:
        """Of the faults that were drawn, how many began, and how many there are."""
        return len(self._drawn - set(self._schedule.waiting)), len(self._drawn)

    def _fits_nobody_yet(self, firing: Firing) -> bool:
        """Whether a fault names a part that nobody plays yet, such as a stage that is not placed."""
        chance = Random(0)  # not the world's own: to look changes nothing
        names = [who for who in selectors_of(firing.fault) if may_fit_later(who)]
        return any(not any(p.running for p in self._who(who, chance)) for who in names)

    def _begin(self, firing: Firing) -> None:
        match firing.fault:
            case Crash(node=who, silent=silent) | Restart(node=who, silent=silent):
                for process in self._remember(firing, who):
                    process.kill(silent=silent)
                    self._forget_pauses(process)
                    if isinstance(firing.fault, Restart) and firing.fault.moved:
                        forget_ports(process.directory)
            case Corrupt(node=who, messages=messages):
                for process in self._remember(firing, who):
                    self._world.network.corrupt(process.node, messages)
            case ClockSkew(node=who, by_s=by_s):
                for process in self._remember(firing, who):
                    process.skew_s += by_s
            case Cut(between=between, one_way=one_way):
                one, other = self._sides(firing, between)
                self._severed[firing.index] = self._world.network.cut(one, other, not one_way)
            case Partition(groups=groups):
                sides = self._sides(firing, groups)
                self._severed[firing.index] = self._world.network.partition(sides)
            case Pause(node=who) | DiskFull(node=who) | SlowLink(node=who) | SlowCompute(node=who):
                self._impose(firing, self._remember(firing, who))
            case Noise(node=who):
                self._impose(firing, self._remember(firing, who))

    def _undo(self, firing: Firing) -> None:
        hit = self._hit.get(firing.index, [])
        self._note(f"{firing.fault.kind} ended", hit)
        match firing.fault:
            case Restart():
                for process in hit:
                    if not process.running:
                        self._start_again(process)
            case ClockSkew(by_s=by_s):
                for process in hit:
                    process.skew_s -= by_s
            case Cut() | Partition():
                self._world.network.heal(self._severed.pop(firing.index))
            case _:
                for process in hit:
                    self._lift(firing, process)

    # -- faults that last: of several of one kind on a process, the newest holds ---------------------

    def _impose(self, firing: Firing, hit: Iterable[SimProcess]) -> None:
        over_s = firing.fault.over_s if isinstance(firing.fault, SlowLink) else 0.0
        for process in hit:
            self._in_force.append((firing.index, process.node))
            self._suffer(firing.fault.kind, process, over_s)

    def _lift(self, firing: Firing, process: SimProcess) -> None:
        """End one fault of a process; those of its kind that last longer go on."""
        kind, before = firing.fault.kind, self._newest(firing.fault.kind, process)
        ended = (firing.index, process.node)
        self._in_force = [one for one in self._in_force if one != ended]
        if kind == "noise" or self._newest(kind, process) is not before:
            self._suffer(kind, process)

    def _newest(self, kind: str, *processes: SimProcess) -> Fault | None:
        """What was done last of a kind to any of these processes and has not ended."""
        nodes = {process.node for process in processes}
        found = (self._schedule.faults[i] for i, node in reversed(self._in_force) if node in nodes)
        return next((fault for fault in found if fault.kind == kind), None)

    def _suffer(self, kind: str, process: SimProcess, over_s: float = 0.0) -> None:
        """Do to a process what is in force of a kind, reached within so many seconds."""
        newest = self._newest(kind, process)
        factor = newest.factor if isinstance(newest, SlowLink | SlowCompute) else 1.0
        match kind:
            case "pause":
                self._stand_still(process, newest is not None)
            case "disk_full":
                self._fill(process, newest is not None)
            case "slow_link":
                self._world.network.slow(process.node, factor, over_s=over_s)
            case "slow_compute" if isinstance(process, SimNode):
                process.compute.slowdown = factor
            case "noise":
                self._make_noise(process)

    def _stand_still(self, process: SimProcess, still: bool) -> None:
        if still:
            self._loop().freeze(process.node)
            self._world.network.pause(process.node)
        else:
            self._world.network.resume(process.node)
            self._loop().thaw(process.node)

    def _forget_pauses(self, process: SimProcess) -> None:
        """Only who lives stands still: its next life does not."""
        faults = self._schedule.faults
        ended = {i for i, node in self._in_force if node == process.node and faults[i].kind == "pause"}
        self._in_force = [(i, node) for i, node in self._in_force if node != process.node or i not in ended]

    def _fill(self, process: SimProcess, full: bool) -> None:
        process.disk.full = full
        if not full and self._kept_down.pop(process.node, None) is not None:
            self._world.start(process)

    def _make_noise(self, process: SimProcess) -> None:
        """The newest noise of either end on every path of a process; without any, what the path was made."""
        for other in self._world.processes:
            for ends in ((process.node, other.node), (other.node, process.node)):
                calm = self._world.shapes.get(ends)
                if calm is not None:
                    noise = self._newest("noise", process, other)
                    self._world.network.set_shape(*ends, _noisy(calm, noise))

    def _start_again(self, process: SimProcess) -> None:
        """A node that cannot write down its new incarnation does not start: then when it can."""
        if not process.disk.full:
            self._world.start(process)
        else:
            self._kept_down[process.node] = process

    def _remember(self, firing: Firing, selector: str) -> list[SimProcess]:
        """Whom a fault hits: those that run. They are kept for its end."""
        hit = [process for process in self._who(selector) if process.running]
        if not hit:
            self._met_nobody.add(firing.index)
        self._hit[firing.index] = hit
        self._note(firing.fault.kind, hit)
        return hit

    def _who(self, selector: str, rng: Random | None = None) -> list[SimProcess]:
        world = self._world
        standing = Standing(
            nodes=[node.node for node in world.nodes],
            live=[node.node for node in world.nodes if node.running],
            coordinator=world.coordinator.node if world.coordinator.running else None,
            holders=world.holders(),
            regions=world.regions(),
        )
        chosen = select(selector, standing, rng or self._rng)
        return [process for process in world.processes if process.node in chosen]

    def _sides(self, firing: Firing, sides: Sequence[Sequence[str]]) -> list[list[NodeId]]:
        """The node ids on each side of a cut. A node on two sides stays on the first."""
        seen: dict[NodeId, SimProcess] = {}
        found: list[list[NodeId]] = []
        for selectors in sides:
            members = {p.node: p for selector in selectors for p in self._who(selector) if p.node not in seen}
            seen |= members
            found.append(list(members))
        if not all(found):
            self._met_nobody.add(firing.index)
        self._hit[firing.index] = list(seen.values())
        self._note(firing.fault.kind, seen.values())
        return found

    def _note(self, what: str, hit: Iterable[SimProcess]) -> None:
        for process in hit:
            self._world.emit(Event("fault", virtual_now(), process.node, {"what": what}))

    @staticmethod
    def _loop() -> VirtualTimeLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return loop


def _noisy(shape: LinkShape, noise: Fault | None) -> LinkShape:
    if not isinstance(noise, Noise):
        return shape
    return replace(shape, loss=noise.loss, duplication=noise.duplication, reordering=noise.reordering)
