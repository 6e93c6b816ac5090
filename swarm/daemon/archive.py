"""The coordinator's half beside gossip: collects checkpoints, and gives them back at a resume.

It holds no stage. When every stage of a cell has reached a checkpoint's iteration it fetches
them from their holders' disks, so that one directory has a whole model at all times.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recovery.checkpoint import CheckpointError, assemble, stage_directory, write_checkpoint
from recovery.donor import NeedSnapshot
from recovery.fetch import Fetched, FetchFailed
from recovery.snapshot import describe, to_tensors
from recovery.transfer import TRANSFER_KINDS, Transfer
from swarm.daemon.body_sizes import TRANSFER_BYTES_MAX
from swarm.daemon.bridge import Bridge, FactsChanged, MemberChanged, Stop
from swarm.daemon.donating import snapshot_for
from swarm.daemon.guarding import Guard
from swarm.events import Emit, Event
from swarm.gossip.view import Facts, Member, View, read_member
from swarm.job import Job
from swarm.pipeline.stage import state_like
from transport.link import Endpoint, Link, LinkClosed, Received
from transport.machine import Effect, NodeId, Send
from transport.wire import Schema, WireError, WireLimits

ARCHIVE_SCHEMA = Schema(TRANSFER_KINDS, WireLimits(message_bytes_max=TRANSFER_BYTES_MAX))
InBackground = Callable[[Callable[[], object]], Awaitable[object]]
"""Runs something long while the loop goes on: `asyncio.to_thread`, or `inline` in virtual time."""


async def inline(work: Callable[[], object]) -> None:
    """Do it now: virtual time stands still meanwhile, and it knows no threads."""
    work()


class ArchiveHalf:
    """Fetches what the job's cells checkpoint into `directory`."""

    def __init__(
        self,
        *,
        me: NodeId,
        job: Job,
        sizes: Sequence[int],
        directory: Path,
        link: Link,
        bridge: Bridge,
        wall: Callable[[], float],
        emit: Emit,
        in_background: InBackground = inline,
    ) -> None:
        """sizes: parameters of each stage. in_background: where checkpoints are hashed and written."""
        self._me, self._job, self._sizes = me, job, tuple(sizes)
        self._directory = directory
        self._link, self._bridge = link, bridge
        self._wall, self._emit = wall, emit
        self._transfer = Transfer()
        self._guard = Guard(lambda kind, **fields: emit(Event(kind, wall(), me, fields)))
        self._view = View()
        self._in_background = in_background
        self._whole = asyncio.Event()
        self._goal: tuple[str, int] | None = None
        self._got: dict[int, Fetched] = {}
        self._failed_at: dict[tuple[str, int], float] = {}
        self.iteration = newest_whole(directory, len(self._sizes)).iteration

    async def run(self) -> None:
        """Collect until the other half is gone."""
        self._bridge.send(FactsChanged(facts=Facts(iteration=self.iteration)))
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._listen, self._hear, self._keep_time, self._write_down):
                    tasks.create_task(work())
        except* (EOFError, LinkClosed):
            self._got.clear()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _listen(self) -> None:
        while True:
            event = await self._link.recv()
            if isinstance(event, Received):
                with self._guard.against(event.peer, event.message.body.kind):
                    self._perform(self._transfer.handle(event.peer, event.message, self._now()))

    async def _hear(self) -> None:
        while True:
            body = await self._bridge.recv()
            if isinstance(body, MemberChanged):
                with self._guard.against(body.record.signer, body.kind):
                    self._on_member(body)
            elif isinstance(body, Stop):
                return

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._perform(self._transfer.tick(self._now()))
            self._look()

    def _on_member(self, body: MemberChanged) -> None:
        try:
            record = read_member(body.record)
        except WireError:
            return  # the gossip half has verified it; a newer protocol may add what we do not know
        member = Member(record, body.status, body.reason)
        self._view = self._view.with_member(member)
        if member.node == self._me:
            return
        if body.status in ("alive", "suspect"):
            self._link.know(member.node, Endpoint(record.work, record.curve_key))
        else:
            self._link.forget(member.node)
            self._perform(self._transfer.lose(member.node, self._now()))

    def _look(self) -> None:
        """Is there a newer checkpoint to be had, whole?"""
        if self._goal is not None:
            return
        for cell in self._view.cells():
            iteration = self._checkpointed(cell)
            tried = self._failed_at.get((cell, iteration), -60.0)
            if iteration > self.iteration and self._now() - tried > 5.0:
                self._begin(cell, iteration)
                return

    def _checkpointed(self, cell: str) -> int:
        """The newest iteration that every stage of a cell has on disk, 0 if there is none.

        Who says that it is beyond the job's last iteration is not asked: that is not so.
        """
        last, reached = self._job.inner.iterations, []
        for stage in range(len(self._sizes)):
            held = [m.facts.iteration for m in self._view.holders(cell, stage)]
            reached.append(max((iteration for iteration in held if iteration <= last), default=0))
        if min(reached) == last:
            return last
        every = self._job.recovery.checkpoint_every
        return min(reached) // every * every

    def _begin(self, cell: str, iteration: int) -> None:
        self._goal, self._got = (cell, iteration), {}
        for stage, size in enumerate(self._sizes):
            donors = [m.node for m in self._view.holders(cell, stage)]
            expected = describe(state_like(size))
            name = f"checkpoint:{stage}"
            self._perform(self._transfer.fetch(name, donors, expected, self._now(), iteration))

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._link.send(peer, message)
                case Fetched():
                    self._on_fetched(effect)
                case FetchFailed(_, reason):
                    self._give_up(reason)
                case NeedSnapshot(name, slot, _):
                    found = snapshot_for(effect, None, self._directory, self._job.digest)
                    if isinstance(found, str):
                        self._perform(self._transfer.decline(name, slot, found))
                    elif found is not None:
                        self._perform(self._transfer.provide(found, self._now()))

    def _give_up(self, reason: str) -> None:
        if self._goal is not None:
            self._failed_at[self._goal] = self._now()
            self._note(iteration=self._goal[1], refused=reason)
        self._goal = None

    def _on_fetched(self, effect: Fetched) -> None:
        if self._goal is None or effect.slot != self._goal[1]:
            return
        cell = str(effect.facts.get("cell", ""))
        if cell != self._goal[0]:  # a holder may have come from there, and its disk with it
            self._give_up(f"{effect.name} is of cell {cell[:64]}, not of {self._goal[0]}")
            return
        self._got[int(effect.name.partition(":")[2])] = effect
        if len(self._got) == len(self._sizes):
            self._whole.set()

    async def _write_down(self) -> None:
        while True:
            await self._whole.wait()
            self._whole.clear()
            if self._goal is not None:
                await self._write(*self._goal)

    async def _write(self, cell: str, iteration: int) -> None:
        """One stage after another, off the loop: gossip and lobby live on it, and a model is large."""
        meta: dict[str, int | float | str] = {"cell": cell, "iteration": iteration, "job": self._job.digest}
        try:
            for stage, fetched in sorted(self._got.items()):
                root = stage_directory(self._directory, stage)
                tensors = to_tensors(fetched.holds, fetched.tensors)
                await self._in_background(partial(write_checkpoint, root, iteration, tensors, meta))
        except CheckpointError as error:
            self._give_up(str(error))
            return
        self.iteration, self._goal, self._got = iteration, None, {}
        self._note(iteration=iteration, cell=cell, path=self._directory.name)
        self._bridge.send(FactsChanged(facts=Facts(iteration=iteration)))

    def _note(self, **fields: object) -> None:
        self._emit(Event("checkpoint", self._wall(), self._me, fields))


@dataclass(frozen=True, slots=True)
class Resumable:
    """The newest whole checkpoint of a directory, iteration 0 if there is none.

    refused: why newer ones were passed over, a sentence each.
    """

    iteration: int = 0
    cell: str = ""
    refused: tuple[str, ...] = ()


def newest_whole(directory: Path, stages: int) -> Resumable:
    """What an archive can give back."""
    found, refused = assemble([directory], stages)
    reasons = tuple(each.reason for each in refused)
    if found is None:
        return Resumable(refused=reasons)
    return Resumable(found.iteration, str(found.stages[0].meta.get("cell", "")), reasons)
