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
from typing import Any

from recovery.checkpoint import (
    At,
    CheckpointError,
    Meta,
    assemble,
    newest_common,
    stage_directory,
    write_checkpoint,
)
from recovery.donor import NeedSnapshot
from recovery.fetch import Fetched, FetchFailed
from recovery.snapshot import describe
from recovery.transfer import TRANSFER_KINDS, Transfer
from swarm.daemon.body_sizes import TRANSFER_BYTES_MAX
from swarm.daemon.bridge import Bridge, FactsChanged, MemberChanged, MemberGone, Stop
from swarm.daemon.donating import checkpoint_name, snapshot_for, stage_of
from swarm.daemon.guarding import Guard
from swarm.events import Emit, Event
from swarm.gossip.view import Facts, Member, View, read_member
from swarm.job import Job
from swarm.pipeline.matter import DENSE, Matter
from swarm.pipeline.stage import state_like
from transport.link import Endpoint, Link, LinkClosed, Received
from transport.machine import Effect, NodeId, Send
from transport.wire import Schema, WireError, WireLimits

ARCHIVE_SCHEMA = Schema(TRANSFER_KINDS, WireLimits(message_bytes_max=TRANSFER_BYTES_MAX))
InBackground = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs something long while the loop goes on: `asyncio.to_thread`, or `inline` in virtual time."""


NO_CELL = ""
"""In a cell's place when nobody trains: what the nodes have on their disks is worth keeping, too."""
RETRY_S = 5.0
RETRY_MAX_S = 300.0
"""Before a checkpoint that could not be had is asked for again: twice as long after each failure."""


async def inline(work: Callable[[], Any]) -> Any:
    """Do it now: virtual time stands still meanwhile, and it knows no threads."""
    return work()


@dataclass(slots=True)
class _Failures:
    """How often a checkpoint could not be had, and when it is worth another try."""

    tries: int = 0
    again_at: float = 0.0
    rounds: int | None = None
    """The round to ask for, if the newest that the stages had were not of one."""

    def add(self, now: float, rounds: int | None) -> None:
        self.rounds = rounds
        self.again_at = now + min(RETRY_MAX_S, RETRY_S * 2**self.tries)
        self.tries += 1


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
        matter: Matter = DENSE,
    ) -> None:
        """sizes: parameters of each stage. in_background: where checkpoints are read, hashed and written."""
        self._me, self._job, self._sizes = me, job, tuple(sizes)
        self._directory = directory
        self._link, self._bridge = link, bridge
        self._wall, self._emit = wall, emit
        self._matter = matter
        self._transfer = Transfer(options=matter.fetching)
        self._guard = Guard(lambda kind, **fields: emit(Event(kind, wall(), me, fields)))
        self._view = View()
        self._in_background = in_background
        self._whole = asyncio.Event()
        self._goal: tuple[str, int] | None = None
        self._got: dict[int, Fetched] = {}
        self._needs: asyncio.Queue[NeedSnapshot] = asyncio.Queue()
        self._failures: dict[tuple[str, int], _Failures] = {}
        self.iteration = 0

    async def run(self) -> None:
        """Collect until the other half is gone."""
        found: Resumable = await self._in_background(partial(newest_whole, self._directory, len(self._sizes)))
        self.iteration = found.iteration
        self._bridge.send(FactsChanged(facts=_facts(self.iteration, self._job)))
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (self._listen, self._hear, self._keep_time, self._write_down, self._give_back):
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
            elif isinstance(body, MemberGone):
                self._view = self._view.without(NodeId(body.node))
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
        for cell in self._large_cells() or [NO_CELL]:
            for iteration in self._checkpointed(cell):
                failures = self._failures.get((cell, iteration), _Failures())
                if iteration > self.iteration and self._now() >= failures.again_at:
                    self._begin(cell, iteration, failures)
                    return

    @property
    def collecting(self) -> bool:
        """Whether a checkpoint is on its way here."""
        return self._goal is not None

    def _large_cells(self) -> list[str]:
        """The largest cells first, none less than half as large as the largest.

        Whoever is a cell alone can say of it what it likes.
        """
        sizes = {cell: len(self._view.cell(cell)) for cell in self._view.cells()}
        large = [cell for cell, size in sizes.items() if 2 * size >= max(sizes.values())]
        return sorted(large, key=lambda cell: (-sizes[cell], cell))

    def _checkpointed(self, cell: str) -> tuple[int, ...]:
        """The newest iterations that a cell has on disk, as far as more than half of it says, newest first.

        One that says more than the others, or more than the job has, would else keep what is
        there from being collected.
        """
        last, every = self._job.inner.iterations, self._job.recovery.checkpoint_every
        members = [m.facts for m in self._members(cell) if m.facts.iteration <= last]
        reached = sorted((facts.iteration for facts in members), reverse=True)
        held = {stage for facts in members for stage in facts.stages}
        if not members or (cell != NO_CELL and not held.issuperset(range(len(self._sizes)))):
            return ()
        most = reached[len(reached) // 2]
        newest = most if most == last else most // every * every
        return tuple(iteration for iteration in (newest, (newest - 1) // every * every) if iteration > 0)

    def _members(self, cell: str) -> Sequence[Member]:
        """Who has checkpoints of a cell; when there is none, whoever stands by with what is on its disk."""
        if cell == NO_CELL:
            return self._view.standby()
        return [m for m in self._view.cell(cell) if m.facts.stages]

    def _begin(self, cell: str, iteration: int, failures: _Failures) -> None:
        """failures: how often that failed. Each time another holder is asked first: one may lie."""
        self._goal, self._got = (cell, iteration), {}
        for stage, size in enumerate(self._sizes):
            held = [m for m in self._members(cell) if cell == NO_CELL or stage in m.facts.stages]
            donors = [m.node for m in held]
            first = failures.tries % max(1, len(donors))
            expected = describe(state_like(size))
            name = checkpoint_name(stage, failures.rounds)
            if self._goal is None:
                return  # the stage before has no holder
            self._perform(
                self._transfer.fetch(name, donors[first:] + donors[:first], expected, self._now(), iteration)
            )

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, message):
                    self._link.send(peer, message)
                case Fetched():
                    self._on_fetched(effect)
                case FetchFailed(_, reason):
                    self._give_up(reason)
                case NeedSnapshot():
                    self._needs.put_nowait(effect)

    async def _give_back(self) -> None:
        """Read what others ask for, off the loop: at a resume every node asks, for all of a model."""
        while True:
            need = await self._needs.get()
            if not self._transfer.is_waited_for(need.name, need.slot):
                continue  # its takers are gone, or were served with one that was read before
            with self._guard.against(need.peer, "want"):
                read = partial(snapshot_for, need, None, self._directory, self._job.digest, self._matter)
                found = await self._in_background(read)
                if isinstance(found, str):
                    self._perform(self._transfer.decline(need.name, need.slot, found, self._now()))
                elif found is not None:
                    self._perform(self._transfer.provide(found, self._now()))

    def _give_up(self, reason: str, rounds: int | None = None) -> None:
        """rounds: after how many every stage should be asked for the next time, if that is known."""
        if self._goal is not None:
            self._failures.setdefault(self._goal, _Failures()).add(self._now(), rounds)
            self._note(iteration=self._goal[1], refused=reason)
        for name in self._transfer.fetching:
            self._transfer.cancel(name)
        self._goal = None

    def _on_fetched(self, effect: Fetched) -> None:
        if self._goal is None or effect.slot != self._goal[1]:
            return
        cell = _cell(effect)
        wanted = self._goal[0] or next(map(_cell, self._got.values()), cell)
        if cell != wanted:  # a holder may have come from there, and its disk with it
            self._give_up(f"{effect.name} is of cell {cell[:64]}, not of {wanted[:64]}")
            return
        self._got[stage_of(effect.name)] = effect
        rounds = {_round(fetched) for fetched in self._got.values()}
        if len(rounds) > 1:
            # The earliest is what the others had too, unless they have lost it since.
            reason = f"the stages of {cell} at iteration {effect.slot} are not of one round"
            self._give_up(reason, min(rounds))
        elif len(self._got) == len(self._sizes):
            self._whole.set()

    async def _write_down(self) -> None:
        while True:
            await self._whole.wait()
            self._whole.clear()
            if self._goal is not None:
                await self._write(_cell(self._got[0]), self._goal[1])

    async def _write(self, cell: str, iteration: int) -> None:
        """One stage after another, off the loop: gossip and lobby live on it, and a model is large."""
        rounds = _round(self._got[0])
        meta: Meta = {"cell": cell, "iteration": iteration, "job": self._job.digest, "round": rounds}
        stages = range(len(self._sizes))
        whole = partial(newest_common, self._directory, stages, self._job.digest)
        try:
            protect: At | None = await self._in_background(whole)
            for stage, fetched in sorted(self._got.items()):
                root = stage_directory(self._directory, stage)
                await self._in_background(partial(self._write_stage, root, fetched, meta, protect))
        except CheckpointError as error:
            self._give_up(str(error))
            return
        self.iteration, self._goal, self._got = iteration, None, {}
        self._failures = {goal: kept for goal, kept in self._failures.items() if goal[1] > iteration}
        self._note(iteration=iteration, cell=cell, path=self._directory.name)
        self._bridge.send(FactsChanged(facts=_facts(iteration, self._job)))

    def _write_stage(self, directory: Path, fetched: Fetched, meta: Meta, protect: At | None) -> None:
        write_checkpoint(directory, fetched.slot, self._matter.restored(fetched), meta, protect)

    def _note(self, **fields: object) -> None:
        self._emit(Event("checkpoint", self._wall(), self._me, fields))


@dataclass(frozen=True, slots=True)
class Resumable:
    """The newest whole checkpoint of a directory, iteration 0 if there is none.

    round: outer rounds that it has seen. refused: why newer ones were passed over, a sentence each.
    """

    iteration: int = 0
    cell: str = ""
    round: int = 0
    refused: tuple[str, ...] = ()


def newest_whole(directory: Path, stages: int) -> Resumable:
    """What an archive can give back."""
    found, refused = assemble([directory], stages)
    reasons = tuple(each.reason for each in refused)
    if found is None:
        return Resumable(refused=reasons)
    cell = str(found.stages[0].meta.get("cell", ""))
    return Resumable(found.iteration, cell, found.round, reasons)


def _round(fetched: Fetched) -> int:
    """How many rounds a state has seen, by its donor's word; a donor may say what it likes."""
    said = fetched.facts.get("round", 0)
    return said if isinstance(said, int) and 0 <= said <= fetched.slot else 0


def _cell(fetched: Fetched) -> str:
    """Of which cell a state is, by its donor's word."""
    return str(fetched.facts.get("cell", ""))


def _facts(iteration: int, job: Job) -> Facts:
    """What an archive that has looked at its disk says of it: with the last iteration, that all is done."""
    done = iteration >= job.inner.iterations
    return Facts(iteration=iteration, state="finished" if done else "training")
