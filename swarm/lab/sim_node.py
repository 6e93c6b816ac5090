"""A node and a coordinator of the simulated world: the real halves, on simulated links.

What differs from `daemon/node.py` and `daemon/coordinator.py` is only what lies below the seams:
links in memory, a bridge in memory, compute that costs virtual time, and a lobby that is a call.
"""

from __future__ import annotations

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarm.daemon.archive import ARCHIVE_SCHEMA, ArchiveHalf, inline
from swarm.daemon.body_sizes import BodySizes
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.compute import CostCompute
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup
from swarm.daemon.job_founding import JobFounding
from swarm.daemon.links import What, keep_port, kept_port
from swarm.daemon.members import read_members, remember_members
from swarm.daemon.node import GOSSIP_SCHEMA, next_incarnation
from swarm.daemon.rejoining import keep_in_touch
from swarm.daemon.training_half import TrainingHalf
from swarm.daemon.training_setup import WORK_SCHEMA, TrainingSetup
from swarm.events import Emit, Event, EventKind
from swarm.gossip.config import GossipConfig
from swarm.gossip.view import Role, View
from swarm.job import Job
from swarm.lab.disks import SimDisk
from swarm.pipeline.computing import stage_size
from swarm.pipeline.data import Corpus
from swarm.pipeline.matter import Matter
from swarm.pipeline.model import ModelConfig
from swarm.pipeline.records import is_finished
from swarm.pipeline.trainer import Trainer
from transport.identity import Identity
from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import SIMULATED, SimNetwork
from transport.virtual_time import OWNER, VirtualTimeLoop
from transport.wire import Body, Schema, Signed

PLATFORM = "simulated"
CERTIFIED_AT_S = 1_500_000_000
"""Wall time at which the job's certificates were issued, seconds since the epoch."""
BEGAN_AT_S = CERTIFIED_AT_S + 86_400
"""Wall time at virtual second 0: a day later, so that clocks may be wrong both ways."""


def virtual_now() -> float:
    """Virtual seconds since the world began."""
    return asyncio.get_running_loop().time()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What all nodes of a world stand on.

    matter: what tensors are made of.
    linger_s: how long nodes stay after the job is finished.
    heard: told of every body that a training half says to its gossip half, with the node.
    failed: told of the error that ended a node's life.
    lobby: hands a newcomer the members' records, None if no coordinator answers.
    """

    network: SimNetwork
    job: Job
    config: ModelConfig
    corpus: Corpus
    matter: Matter
    root_key: bytes
    gossip: GossipConfig
    linger_s: float
    emit: Emit
    heard: Callable[[SimNode, Body], None]
    failed: Callable[[SimProcess, Exception], None]
    lobby: Callable[[SimNode], Sequence[Signed] | None]

    def note(self, kind: EventKind, node: str, **fields: object) -> None:
        """Record a fact of this world."""
        self.emit(Event(kind, virtual_now(), node, fields))


@dataclass(frozen=True, slots=True)
class HeardBridge:
    """A training half's end of a bridge; everything it says is heard by the world, too."""

    end: MemoryBridge
    heard: Callable[[Body], None]

    def send(self, body: Body) -> None:
        """See `Bridge`."""
        self.heard(body)
        self.end.send(body)

    async def recv(self) -> Body:
        """See `Bridge`."""
        return await self.end.recv()

    def close(self) -> None:
        """See `Bridge`."""
        self.end.close()


@dataclass(slots=True, kw_only=True)
class SimProcess(ABC):
    """One identity with its disk, and at most one life at a time.

    skew_s: how wrong its clock is. signed_before: version of the newest record of its earlier lives.
    """

    ground: Ground
    identity: Identity
    certificate: bytes
    directory: Path
    disk: SimDisk
    rng: random.Random
    skew_s: float = 0.0
    role: Role = "worker"
    gossip: GossipHalf | None = None
    links: tuple[SimLink, ...] = ()
    signed_before: tuple[int, int] = (0, 0)
    _life: asyncio.Task[None] | None = None

    @property
    def node(self) -> NodeId:
        """Node id."""
        return self.identity.node

    @property
    def running(self) -> bool:
        """Whether it lives, possibly standing still."""
        return self._life is not None and not self._life.done()

    def wall(self) -> float:
        """What its clock says."""
        return BEGAN_AT_S + virtual_now() + self.skew_s

    @property
    def view(self) -> View:
        """The swarm as it sees it; empty before its first life."""
        return self.gossip.view if self.gossip else View()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Begin a life, in a context that `VirtualTimeLoop.freeze` can stop."""
        assert not self.running
        context = copy_context()
        context.run(OWNER.set, self.node)
        self._life = tasks.create_task(self._guarded(), context=context)

    def kill(self, *, silent: bool = False) -> None:
        """End the life at once, as SIGKILL does; or, unheard, as a power cut."""
        self.ground.network.crash(self.node, silent=silent)
        if self._life is not None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            loop.thaw(self.node)  # a task that is frozen cannot be cancelled
            self._life.cancel()
            self._life = None

    async def _guarded(self) -> None:
        """A life. What ends it is a finding about this node, not the end of the world."""
        try:
            await self._live()
        except Exception as error:  # noqa: BLE001 - whatever it is, no input may cause it
            self.ground.failed(self, error)
            self.ground.network.crash(self.node)

    @abstractmethod
    async def _live(self) -> None:
        """Open the links, run the halves, close the links: one life of this process."""

    def _chances(self) -> random.Random:
        return random.Random(self.rng.getrandbits(64))

    def _open(self, work_schema: Schema) -> tuple[SimLink, SimLink]:
        gossip, work = self._listen("gossip", GOSSIP_SCHEMA), self._listen("work", work_schema)
        self.links = (gossip, work)
        return gossip, work

    def _listen(self, what: What, schema: Schema) -> SimLink:
        """A link at the address of the last life, if that is kept: an address is a number here."""
        kept, key = kept_port(self.directory, what), self.identity.curve_public
        address = f"{SIMULATED}{kept}" if kept else None
        link = self.ground.network.open(self.node, curve_key=key, schema=schema, address=address)
        if not kept:
            keep_port(self.directory, what, int(link.endpoint.address.removeprefix(SIMULATED)))
        return link

    def _setup(self, gossip: SimLink, work: SimLink) -> GossipSetup:
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.node in self.view.members:
            self.signed_before = max(self.signed_before, self.view.members[self.node].record.version)
        return GossipSetup.for_member(
            self.identity,
            self.certificate,
            role=self.role,
            job=self.ground.job,
            root_key=self.ground.root_key,
            gossip=gossip.endpoint.address,
            work=work.endpoint.address,
            incarnation=next_incarnation(self.directory),
            config=self.ground.gossip,
            linger_s=self.ground.linger_s,
            rng=self._chances(),
            wall=self.wall,
            emit=self.ground.emit,
        )


@dataclass(slots=True, kw_only=True)
class SimNode(SimProcess):
    """A worker. compute: how fast it is. training: the half of its newest life. region: where it is."""

    compute: CostCompute
    region: str = ""
    training: TrainingHalf | None = None
    known: tuple[Signed, ...] = ()

    @property
    def trainer(self) -> Trainer | None:
        """Its part in a cell, None while it is in none."""
        return self.training.trainer if self.running and self.training else None

    @property
    def finished(self) -> bool:
        """Whether its cell has nothing left to train."""
        return self.trainer is not None and is_finished(self.trainer.record, self.ground.job)

    async def _live(self) -> None:
        sizes = BodySizes()
        gossip, work = self._open(WORK_SCHEMA.bounded(sizes))
        setup = self._setup(gossip, work)
        ours, theirs = MemoryBridge.pair()
        bridge = HeardBridge(theirs, lambda body: self.ground.heard(self, body))
        self.gossip = GossipHalf(setup, gossip, ours)
        training_setup = self._training_setup(setup)
        sizes.learn(training_setup.job, training_setup.config.width, training_setup.stage_sizes())
        self.training = TrainingHalf(training_setup, work, bridge, self.compute)
        self.ground.note("started", self.node, role="worker", incarnation=setup.record.incarnation)
        # What an earlier life was told by the lobby is on this node's disk, and whom it met since.
        self.known = tuple(self.ground.lobby(self) or self.known)
        self.gossip.seed((*self.known, *read_members(self.directory)))
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(remember_members(self.gossip, self.directory))
            training = tasks.create_task(_then(self.training.run(), theirs.close))
            rejoining = tasks.create_task(keep_in_touch(self.gossip, self._ask_lobby, self._chances()))
            await self.gossip.run()
            for task in (training, keeping, rejoining):
                task.cancel()
        for link in (gossip, work):
            await link.close()

    async def _ask_lobby(self) -> Sequence[Signed]:
        return self.ground.lobby(self) or ()

    def _training_setup(self, setup: GossipSetup) -> TrainingSetup:
        return TrainingSetup(
            me=self.node,
            sign=self.identity.signing_in(self.ground.job.digest),
            public_key=setup.verifier.public_key,
            job=self.ground.job,
            config=self.ground.config,
            corpus=self.ground.corpus,
            data_dir=self.directory,
            device="cpu",
            platform=PLATFORM,
            memory_bytes=0,
            checkpoints=True,
            wall=self.wall,
            emit=self.ground.emit,
            resident_bytes=lambda: 0,
            matter=self.ground.matter,
        )


@dataclass(slots=True, kw_only=True)
class SimCoordinator(SimProcess):
    """The coordinator: gossip, archive, and the founding of the job."""

    role: Role = field(default="coordinator")

    async def _live(self) -> None:
        gossip, work = self._open(ARCHIVE_SCHEMA)
        setup = self._setup(gossip, work)
        ours, theirs = MemoryBridge.pair()
        half = self.gossip = GossipHalf(setup, gossip, ours)
        half.seed(read_members(self.directory))
        self.ground.note("started", self.node, role="coordinator", incarnation=setup.record.incarnation)
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(part) for part in self._parts(half, work, theirs)]
            await half.run()
            for task in others:
                task.cancel()
        for link in (gossip, work):
            await link.close()

    def _parts(
        self, half: GossipHalf, work: SimLink, bridge: MemoryBridge
    ) -> list[Coroutine[Any, Any, None]]:
        ground, job = self.ground, self.ground.job
        sizes = [stage_size(ground.config, job.pipeline.stages, k) for k in range(job.pipeline.stages)]
        archive = ArchiveHalf(
            me=self.node,
            job=job,
            sizes=sizes,
            directory=self.directory / "checkpoints",
            link=work,
            bridge=bridge,
            wall=self.wall,
            emit=ground.emit,
            in_background=inline,
            matter=ground.matter,
        )
        founding = JobFounding(
            half=half,
            job=job,
            identity=self.identity,
            directory=self.directory,
            corpus=ground.corpus.digest,
            sizes=sizes,
            wall=self.wall,
            in_background=inline,
            collecting=lambda: archive.collecting,
        )
        keeping = remember_members(half, self.directory)
        return [archive.run(), keeping, founding.found_once(None), founding.found_again()]

    def admit(self, newcomer: SimNode) -> Sequence[Signed] | None:
        """The lobby's answer to an invited node, None while this coordinator cannot be reached."""
        if not self.running or self.gossip is None or self.ground.network.apart(self.node, newcomer.node):
            return None
        address = newcomer.links[0].endpoint.address
        self.links[0].know(newcomer.node, Endpoint(address, newcomer.identity.curve_public))
        self.ground.note("joined", self.node, member=newcomer.node[:12])
        return self.gossip.records()


async def _then(work: Coroutine[Any, Any, None], done: Callable[[], None]) -> None:
    """Do `done` once `work` ends by itself: a training process that is gone closes its bridge."""
    await work
    done()
