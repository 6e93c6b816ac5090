"""What real processes suffer for a while: of several faults of a kind on a process the newest holds"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Callable

from swarm.lab.faults import DiskFull, Noise, Pause, SlowCompute, SlowLink
from swarm.lab.processes import Child, RealSwarm
from swarm.lab.wan import WideArea

TURN_S = 0.1
"""A slowed training process is stopped for a part of every turn: shorter than any time-out,
longer than the scheduler's own turns."""
OVER = {
    "slow_compute": "compute_restored",
    "disk_full": "disk_free",
    "slow_link": "link_restored",
    "noise": "noise_over",
}
"""What is noted when the last fault of a kind on a process has ended. Who stands still says so itself."""
Lasting = Pause | SlowCompute | DiskFull | SlowLink | Noise


class Sufferings:
    """What is in force on which process, and that it is done.

    A pause ends with the life of its process. All else goes on, as in the simulated world, when
    that is killed and starts again. paused: names of those that stand still.
    """

    def __init__(self, swarm: RealSwarm, network: Callable[[], WideArea], tasks: asyncio.TaskGroup) -> None:
        self._swarm, self._network, self._tasks = swarm, network, tasks
        self._in_force: list[tuple[int, Lasting, str]] = []
        self._slowing: dict[int, asyncio.Task[None]] = {}
        self.paused: set[str] = set()

    async def impose(self, index: int, fault: Lasting, name: str) -> None:
        """Begin a fault, known by its index in the script, on a process."""
        self._in_force.append((index, fault, name))
        if fault.kind in OVER:
            self._swarm.note_fault(self._swarm.children[name], fault.kind)
        await self._suffer(fault.kind, name, fault.over_s if isinstance(fault, SlowLink) else 0.0)

    async def lift(self, index: int, fault: Lasting, name: str) -> None:
        """End a fault of a process; those of its kind that last longer go on."""
        before = self.newest(fault.kind, name)
        self._in_force = [one for one in self._in_force if (one[0], one[2]) != (index, name)]
        newest = self.newest(fault.kind, name)
        if newest is before:
            return
        await self._suffer(fault.kind, name)
        if newest is None and fault.kind in OVER:
            self._swarm.note_fault(self._swarm.children[name], OVER[fault.kind])

    def newest(self, kind: str, name: str) -> Lasting | None:
        """What was done last of a kind to a process and has not ended."""
        found = (fault for _, fault, whom in reversed(self._in_force) if whom == name)
        return next((fault for fault in found if fault.kind == kind), None)

    def end_life(self, name: str) -> None:
        """A process is killed: its next life does not stand still."""
        self.paused.discard(name)
        self._in_force = [one for one in self._in_force if one[2] != name or not isinstance(one[1], Pause)]

    async def begin_life(self, name: str) -> None:
        """A process has started again: what computed slowly does so still. Links outlive who uses them."""
        await self._suffer("slow_compute", name)

    def release(self) -> None:
        """Let everything that was stopped or slowed go on, so that it can be asked to leave."""
        for task in self._slowing.values():
            task.cancel()
        for name in sorted(self.paused):
            self._proceed(name)

    # -- how --------------------------------------------------------------------------------

    async def _suffer(self, kind: str, name: str, over_s: float = 0.0) -> None:
        """Do to a process what is in force of a kind, reached within so many seconds."""
        newest, child = self.newest(kind, name), self._swarm.children[name]
        match kind:
            case "pause" if newest is None:
                self._proceed(name)
            case "pause":
                self.paused.add(name)
                self._swarm.pause(name)
            case "disk_full" if self._is_running(child):
                limit_files(child, full=newest is not None)
            case "slow_link":
                factor = newest.factor if isinstance(newest, SlowLink) else 1.0
                await self._network().slow(name, factor, over_s=over_s)
            case "noise" if isinstance(newest, Noise):
                await self._network().disturb(name, newest.loss, newest.duplication, newest.reordering)
            case "noise":
                await self._network().disturb(name)
            case "slow_compute" if newest is not None:
                slowing = self._slowing.get(child.pid)
                if slowing is None or slowing.done():
                    self._slowing[child.pid] = self._tasks.create_task(self._slow(child))

    def _proceed(self, name: str) -> None:
        if name in self.paused and self._is_running(self._swarm.children[name]):
            self._swarm.proceed(name)
        self.paused.discard(name)

    def _is_running(self, child: Child) -> bool:
        """Whether it is still the same process."""
        return child.name in self._swarm.alive and self._swarm.children[child.name].pid == child.pid

    async def _slow(self, child: Child) -> None:
        """Stop the training process for all but 1/factor of every turn, as the newest fault has it.

        Gossip is left alone.
        """
        work_pid: int | None = None
        try:
            while self._is_running(child):
                newest = self.newest("slow_compute", child.name)
                if not isinstance(newest, SlowCompute):
                    return
                work_pid = work_pid or child.info.get("work_pid")  # not known while it starts
                self._signal(child, work_pid, signal.SIGSTOP)
                await asyncio.sleep(TURN_S * (1 - 1 / newest.factor))
                self._signal(child, work_pid, signal.SIGCONT)
                await asyncio.sleep(TURN_S / newest.factor)
        finally:
            self._signal(child, work_pid, signal.SIGCONT)

    def _signal(self, child: Child, pid: int | None, number: signal.Signals) -> None:
        """Who stands still altogether is left alone, and a process id of the dead may be another's."""
        if pid is not None and child.name not in self.paused and self._is_running(child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def limit_files(child: Child, *, full: bool) -> None:
    """Let the processes of a node write nothing more to any file, or let them again.

    The kernel refuses every write to a regular file then, sockets are not touched.
    """
    for pid in (child.info.get("pid"), child.info.get("work_pid")):
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else most, most))
