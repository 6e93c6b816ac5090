"""The coordinator of a job: admits nodes, founds the job, archives checkpoints, serves status.

Training needs it only until the nodes have met. One process: gossip, lobby and archive share
a loop, because none of them computes.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from swarm.daemon.addresses import check_listenable
from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, Resumable
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.founders import fit_to_found, stage_sizes
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup, StatusSnapshot
from swarm.daemon.job_founding import FOUNDED, JobFounding, find_checkpoint, read_founded
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
from swarm.pipeline.data import load_corpus
from transport.link import Endpoint
from transport.machine import NodeId
from transport.wire import Schema
from transport.zmq_link import ZmqLink

LEAVE_S = 3.0


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
                founding = JobFounding(
                    half=half,
                    job=jobdir.job,
                    identity=jobdir.identity,
                    directory=options.directory,
                    corpus=corpus,
                    sizes=sizes,
                    wall=wall_time,
                    in_background=asyncio.to_thread,
                    collecting=lambda: archive.collecting,
                )
                others.append(tasks.create_task(founding.found_once(self.resumed)))
                others.append(tasks.create_task(founding.found_again()))
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
