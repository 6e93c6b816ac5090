"""The coordinator of a job: admits nodes, founds the job, archives checkpoints, serves status.

Training needs it only until the nodes have met. One process: gossip, lobby and archive share
a loop, because none of them computes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from swarm.daemon.addresses import check_listenable
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, Resumable, newest_whole
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.founders import fit_to_found, stage_sizes
from swarm.daemon.genesis import TOPIC, found_job
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup, StatusSnapshot
from swarm.daemon.jobdir import JobDir, open_job
from swarm.daemon.links import What, open_link
from swarm.daemon.lobby import Admitted
from swarm.daemon.lobby_server import open_lobby, serve_lobby
from swarm.daemon.lock import lock_directory
from swarm.daemon.members import read_members, remember_members
from swarm.daemon.node import GOSSIP_SCHEMA, next_incarnation, run_until_told, say, write_info
from swarm.daemon.options import CoordinatorOptions, UserError
from swarm.daemon.renewing import keep_itself_certified
from swarm.daemon.revoking import RevokedList, tell_revocations
from swarm.daemon.status import serve_status
from swarm.daemon.waiting import coordinator_waits_for, keep_telling
from swarm.events import Emit, Event, EventFile, wall_time
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import MemberRecord, View, read_member
from swarm.job import Job
from swarm.messages import Count, Part
from swarm.pipeline.data import load_corpus
from transport.files import write_private
from transport.identity import Identity, pack_payload, unpack_payload
from transport.link import Endpoint
from transport.machine import NodeId
from transport.wire import Schema, Signed, WireError, WireLimits
from transport.zmq_link import ZmqLink

LEAVE_S = 3.0
SURE_S = 30.0
"""After a restart and a probe of everybody: longer than the longest suspicion of gossip, so that
nobody dead is counted."""
FOUNDED = "founded"
"""A file in the job's directory with the genesis of the job, once there is one."""
SETTLE_S = 0.5
"""Between enough nodes being there and the genesis, so that those who come together count."""


def run_coordinator(options: CoordinatorOptions) -> int:
    """Run the coordinator of a job directory until told to stop. Returns the exit code."""
    jobdir = open_job(options.directory)
    check_listenable(options.host or jobdir.lobby_host, jobdir.lobby_host)
    lock_directory(options.directory)
    read_founded(options.directory)  # a damaged one is told of before anybody is let in
    resumed = find_checkpoint(options.directory, jobdir.job) if options.resume else None
    if soon := jobdir.grant_ends_soon(wall_time()):
        say(soon)
    return asyncio.run(Coordinator(options, jobdir, resumed).run())


def find_checkpoint(directory: Path, job: Job) -> Resumable:
    """The newest whole checkpoint of a job's directory, iteration 0 if nothing was ever archived.

    Raises UserError if there are checkpoints and none is whole: to begin anew would bury them.
    """
    found = newest_whole(directory / "checkpoints", job.pipeline.stages)
    if not found.iteration and found.refused:
        raise UserError(
            f"{directory} has no whole checkpoint ({found.refused[0]}): restore it from a copy, "
            f"or move {directory / 'checkpoints'} away to begin anew"
        )
    return found


@dataclass(slots=True)
class Coordinator:
    """One run of a coordinator."""

    options: CoordinatorOptions
    jobdir: JobDir
    resumed: Resumable | None

    async def run(self) -> int:
        """Open the sockets and serve."""
        options, jobdir = self.options, self.jobdir
        identity = jobdir.identity
        async with AsyncExitStack() as stack:
            emit = EventFile(options.directory / "events.jsonl")
            stack.callback(emit.close)
            self._tell_resumed(emit)
            gossip = await self._open(stack, "gossip", GOSSIP_SCHEMA, options.gossip_port, emit)
            work = await self._open(stack, "work", ARCHIVE_SCHEMA, options.work_port, emit)
            ours, theirs = MemoryBridge.pair()
            setup = GossipSetup.for_member(
                identity,
                jobdir.certificate,
                role="coordinator",
                job=jobdir.job,
                root_key=jobdir.root_key,
                gossip=gossip.endpoint.address,
                work=work.endpoint.address,
                incarnation=next_incarnation(options.directory),
                config=volunteer_wan(),
                rng=random.Random(),
                wall=wall_time,
                emit=emit,
            )
            half = GossipHalf(setup, gossip, ours)
            half.seed(read_members(options.directory))
            corpus = load_corpus(jobdir.job.data)
            sizes = stage_sizes(jobdir.job, corpus.vocab)
            archive = ArchiveHalf(
                me=identity.node,
                job=jobdir.job,
                sizes=sizes,
                directory=options.directory / "checkpoints",
                link=work,
                bridge=theirs,
                wall=wall_time,
                emit=emit,
                in_background=asyncio.to_thread,
            )
            return await self._serve(stack, half, archive, gossip, corpus.digest, sizes, emit)

    def _tell_resumed(self, emit: EventFile) -> None:
        """From where the job goes on, and what was passed over."""
        resumed, node = self.resumed, self.jobdir.identity.node
        if resumed is None:
            return
        for reason in resumed.refused:
            emit(Event("checkpoint", wall_time(), node, {"refused": reason}))
            say(f"passed over: {reason}")
        if resumed.iteration:
            say(f"the job goes on from iteration {resumed.iteration} of cell {resumed.cell}")
        else:
            say("nothing was archived yet: unless somebody trains it still, the job begins anew")

    async def _open(
        self, stack: AsyncExitStack, what: What, schema: Schema, port: int, emit: Emit
    ) -> ZmqLink:
        options, identity = self.options, self.jobdir.identity
        link = await open_link(
            identity,
            schema,
            what=what,
            directory=options.directory,
            emit=emit,
            host=options.host or self.jobdir.lobby_host,
            advertise=self.jobdir.lobby_host,
            port=port,
        )
        stack.push_async_callback(link.close)
        return link

    async def _serve(
        self,
        stack: AsyncExitStack,
        half: GossipHalf,
        archive: ArchiveHalf,
        gossip: ZmqLink,
        corpus: str,
        sizes: Sequence[int],
        emit: EventFile,
    ) -> int:
        options, jobdir = self.options, self.jobdir
        snapshot = partial(self._snapshot, half, sizes)

        def admitted(entry: Admitted) -> None:
            gossip.know(NodeId(entry.certificate.node), Endpoint(entry.gossip, entry.certificate.curve_key))

        port = options.lobby_port or jobdir.lobby_port
        revoked = RevokedList(jobdir, emit)
        lobby = serve_lobby(
            open_lobby(jobdir),
            jobdir,
            revoked,
            options.host or jobdir.lobby_host,
            port,
            half.records,
            emit,
            admitted,
        )
        code = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(lobby), tasks.create_task(archive.run())]
                found = found_once(
                    half,
                    jobdir.job,
                    jobdir.identity,
                    options.directory,
                    corpus=corpus,
                    sizes=sizes,
                    resumed=self.resumed,
                    wall=wall_time,
                )
                others.append(tasks.create_task(found))
                others.append(tasks.create_task(remember_members(half, options.directory)))
                others.append(tasks.create_task(tell_revocations(half, jobdir, revoked)))
                others.append(tasks.create_task(keep_itself_certified(half, jobdir, wall_time)))
                await self._announce(stack, snapshot, emit)
                others.append(tasks.create_task(keep_telling(snapshot, say)))
                code = await run_until_told(half, LEAVE_S)
                for task in others:
                    task.cancel()
        except* UserError as group:
            raise group.exceptions[0] from None
        return code

    def _snapshot(self, half: GossipHalf, sizes: Sequence[int]) -> StatusSnapshot:
        """What the gossip half shows, and what this coordinator waits for."""
        found, job = half.snapshot(), self.jobdir.job
        begun = self.resumed is None and (self.options.directory / FOUNDED).exists()
        fit, short = (found.view, "") if begun else fit_to_found(found.view, job, sizes)
        why = coordinator_waits_for(found.view, job, begun=begun, fit=len(fit.live()), short=short)
        return replace(found, progress=found.progress.model_copy(update={"waiting_for": why}))

    async def _announce(
        self, stack: AsyncExitStack, snapshot: Callable[[], StatusSnapshot], emit: EventFile
    ) -> None:
        options, node = self.options, self.jobdir.identity.node
        server = None
        if options.status_port is not None:
            server = await serve_status(snapshot, port=options.status_port)
            stack.push_async_callback(server.close)
        port = server.port if server else None
        info: dict[str, object] = {"pid": os.getpid(), "status_port": port, "lobby": self.jobdir.lobby}
        write_info(options.directory / "coordinator.json", info | {"node": node})
        emit(Event("started", wall_time(), node, {"role": "coordinator", **info}))
        say(f"job {self.jobdir.job.name} is open to newcomers at {self.jobdir.lobby}", server)


@dataclass(frozen=True, slots=True)
class Rollcall:
    """Tells who is here from who was here before this coordinator started, and may be gone.

    seeds: node -> (incarnation, seq) of the record that an earlier run kept. sure_at: from then
    on whoever is gone has been found out.
    """

    seeds: Mapping[str, tuple[int, int]]
    sure_at: float

    @classmethod
    def of(cls, directory: Path, now: float) -> Rollcall:
        """Begin with the members that are kept in a directory: each takes one probe to find out."""
        seeds: dict[str, tuple[int, int]] = {}
        for signed in read_members(directory):
            with suppress(WireError):  # of another version: gossip refuses it just so
                record = read_member(signed)
                seeds[record.node] = (record.incarnation, record.seq)
        return cls(seeds, now + SURE_S + volunteer_wan().probe_s * len(seeds))

    def present(self, view: View, now: float) -> View:
        """The live workers that spoke since, or all once the others would have been buried."""
        here = [m for m in view.live() if now >= self.sure_at or self._is_news(m.record)]
        return View({member.node: member for member in here})

    def _is_news(self, record: MemberRecord) -> bool:
        return (record.incarnation, record.seq) > self.seeds.get(record.node, (-1, -1))


async def found_once(
    half: GossipHalf,
    job: Job,
    identity: Identity,
    directory: Path,
    *,
    corpus: str,
    sizes: Sequence[int],
    resumed: Resumable | None,
    wall: Callable[[], float],
) -> None:
    """Found the job once enough nodes are here, unless it lives already or was founded.

    What it is founded with is kept before anybody hears of it, and published again at each start:
    killed in between, a coordinator would else forget a job that has begun, or never begin it.
    sizes: parameters of each stage; nodes that cannot hold their share do not count.
    resumed: what to found it with once more if nobody trains it, None to keep to the first founding.
    """
    kept = read_founded(directory)
    if kept is not None and resumed is None:
        half.publish(TOPIC, kept.version, kept.notice)
        return
    resumed = resumed or Resumable()
    clock = asyncio.get_running_loop().time
    rollcall = Rollcall.of(directory, clock())
    while not rollcall.present(half.view, clock()).cells():
        await asyncio.sleep(SETTLE_S)
        if len(rollcall.present(half.view, clock()).live()) >= job.pipeline.nodes:
            await asyncio.sleep(SETTLE_S)
            here, _ = fit_to_found(rollcall.present(half.view, clock()), job, sizes)
            if len(here.live()) < job.pipeline.nodes:
                continue  # somebody of them was not there after all
            version = max(int(wall()), kept.version + 1 if kept else 0)
            notice = found_job(
                here,
                job,
                identity.node,
                identity.signing_in(job.digest),
                corpus=corpus,
                resumed=resumed.iteration,
                resumed_round=resumed.round,
                resumed_cell=resumed.cell,
                again=version if kept is not None or resumed.iteration else 0,
            )
            try:
                write_founded(directory, version, notice)
            except OSError as error:
                fields = {"what": "founding", "why": f"it cannot be written down: {error.strerror}"}
                half.setup.emit(Event("dropped", wall(), identity.node, fields))
                continue  # not founded yet: a crash would forget what everybody had begun
            half.publish(TOPIC, version, notice)
            return


def write_founded(directory: Path, version: int, notice: Signed) -> None:
    """Keep the genesis and its version, in one step."""
    write_private(directory / FOUNDED, pack_payload(_Founded(version=version, notice=notice)))


def read_founded(directory: Path) -> _Founded | None:
    """The genesis that was kept, None if there is none. Raises UserError if it cannot be read."""
    path = directory / FOUNDED
    try:
        return unpack_payload(_Founded, path.read_bytes(), WireLimits(header_bytes_max=64 << 20))
    except FileNotFoundError:
        return None
    except (OSError, WireError):
        raise UserError(
            f"{path} cannot be read, and nobody else knows how this job began: restore it from a copy, "
            "or remove it and go on from the newest checkpoint with --resume"
        ) from None


class _Founded(Part):
    version: Count
    notice: Signed
