"""Carries a fault script out on a simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

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
)
from swarm.lab.schedule import FaultSchedule, Firing, timed
from swarm.lab.selectors import Standing, select
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

    def __init__(self, world: World, faults: Sequence[Fault], rng: Random) -> None:
        self._world, self._rng = world, rng
        options = world.options
        nodes = options.nodes or options.job.pipeline.nodes
        self._schedule = FaultSchedule(timed(faults, nodes=nodes, until_s=options.until_s, rng=rng))
        self._hit: dict[int, list[SimProcess]] = {}
        self._severed: dict[int, Severed] = {}
        self._kept_down: dict[NodeId, SimProcess] = {}

    async def play(self) -> None:
        """Do what is due, for ever."""
        while True:
            self._world.news.clear()
            for firing in self._schedule.due(virtual_now(), self._world.iteration):
                self._undo(firing) if firing.undo else self._begin(firing)
            due = self._schedule.next_s()
            wait_s = LOOK_S if due is None else max(0.0, due - virtual_now())
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._world.news.wait()

    def _begin(self, firing: Firing) -> None:
        match firing.fault:
            case Crash(node=who) | Restart(node=who):
                for process in self._remember(firing, who):
                    process.kill()
            case Pause(node=who):
                for process in self._remember(firing, who):
                    self._loop().freeze(process.node)
                    self._world.network.pause(process.node)
            case SlowLink(node=who, factor=factor, over_s=over_s):
                self._slow_links(self._remember(firing, who), factor, over_s)
            case Noise(node=who) as noise:
                self._make_noise(self._remember(firing, who), noise)
            case SlowCompute(node=who, factor=factor):
                self._slow_compute(self._remember(firing, who), factor)
            case Corrupt(node=who, messages=messages):
                for process in self._remember(firing, who):
                    self._world.network.corrupt(process.node, messages)
            case DiskFull(node=who):
                for process in self._remember(firing, who):
                    process.disk.full = True
            case ClockSkew(node=who, by_s=by_s):
                for process in self._remember(firing, who):
                    process.skew_s += by_s
            case Cut(between=between, one_way=one_way):
                one, other = self._sides(firing, between)
                self._severed[firing.index] = self._world.network.cut(one, other, not one_way)
            case Partition(groups=groups):
                sides = self._sides(firing, groups)
                self._severed[firing.index] = self._world.network.partition(sides)

    def _undo(self, firing: Firing) -> None:
        hit = self._hit.get(firing.index, [])
        self._note(f"{firing.fault.kind} ended", hit)
        match firing.fault:
            case Restart():
                for process in hit:
                    if not process.running:
                        self._start_again(process)
            case DiskFull():
                for process in hit:
                    process.disk.full = False
                    if self._kept_down.pop(process.node, None) is not None:
                        self._world.start(process)
            case ClockSkew(by_s=by_s):
                for process in hit:
                    process.skew_s -= by_s
            case Pause():
                for process in hit:
                    self._world.network.resume(process.node)
                    self._loop().thaw(process.node)
            case SlowLink():
                self._slow_links(hit, 1.0)
            case Noise():
                self._make_noise(hit, None)
            case SlowCompute():
                self._slow_compute(hit, 1.0)
            case Cut() | Partition():
                self._world.network.heal(self._severed.pop(firing.index))

    def _start_again(self, process: SimProcess) -> None:
        """A node that cannot write down its new incarnation does not start: then when it can."""
        if not process.disk.full:
            self._world.start(process)
        else:
            self._kept_down[process.node] = process

    def _remember(self, firing: Firing, selector: str) -> list[SimProcess]:
        """Whom a fault hits: those that run. They are kept for its end."""
        hit = [process for process in self._who(selector) if process.running]
        self._hit[firing.index] = hit
        self._note(firing.fault.kind, hit)
        return hit

    def _who(self, selector: str) -> list[SimProcess]:
        world = self._world
        standing = Standing(
            nodes=[node.node for node in world.nodes],
            live=[node.node for node in world.nodes if node.running],
            coordinator=world.coordinator.node if world.coordinator.running else None,
            holders=world.holders(),
            regions=world.regions(),
        )
        chosen = select(selector, standing, self._rng)
        return [process for process in world.processes if process.node in chosen]

    def _sides(self, firing: Firing, sides: Sequence[Sequence[str]]) -> list[list[NodeId]]:
        """The node ids on each side of a cut. A node on two sides stays on the first."""
        seen: dict[NodeId, SimProcess] = {}
        found: list[list[NodeId]] = []
        for selectors in sides:
            members = {p.node: p for selector in selectors for p in self._who(selector) if p.node not in seen}
            seen |= members
            found.append(list(members))
        self._hit[firing.index] = list(seen.values())
        self._note(firing.fault.kind, seen.values())
        return found

    def _slow_links(self, hit: Iterable[SimProcess], factor: float, over_s: float = 0.0) -> None:
        for process in hit:
            self._world.network.slow(process.node, factor, over_s=over_s)

    def _make_noise(self, hit: Iterable[SimProcess], noise: Noise | None) -> None:
        """Noise on all paths of a node, or none: then they are what they were made."""
        for process in hit:
            for ends, calm in self._world.shapes.items():
                if process.node in ends:
                    self._world.network.set_shape(*ends, calm if noise is None else _noisy(calm, noise))

    @staticmethod
    def _slow_compute(hit: Iterable[SimProcess], factor: float) -> None:
        for process in hit:
            if isinstance(process, SimNode):
                process.compute.slowdown = factor

    def _note(self, what: str, hit: Iterable[SimProcess]) -> None:
        for process in hit:
            self._world.emit(Event("fault", virtual_now(), process.node, {"what": what}))

    @staticmethod
    def _loop() -> VirtualTimeLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        return loop


def _noisy(shape: LinkShape, noise: Noise) -> LinkShape:
    return replace(shape, loss=noise.loss, duplication=noise.duplication, reordering=noise.reordering)
