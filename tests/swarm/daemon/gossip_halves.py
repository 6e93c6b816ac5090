"""Gossip halves with real keys, on simulated links or on sockets; the test is the training half."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from swarm.daemon.admission import Authority
from swarm.daemon.bridge import MemberChanged
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup
from swarm.daemon.node import GOSSIP_SCHEMA
from swarm.events import Event
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import Role
from swarm.job import Job
from transport.identity import Identity, RunKeyGrant, SigningKey, sign_grant
from transport.link import Link
from transport.sim_network import LinkShape, SimNetwork
from transport.virtual_time import run_virtual
from transport.wire import Body
from transport.zmq_link import ZmqLink

B = TypeVar("B", bound=Body)
WALL = 1_800_000_000.0


@dataclass
class Issuer:
    """The keys of a job, and what they issue."""

    job: Job = field(default_factory=Job)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def __post_init__(self) -> None:
        root, run = SigningKey.create(self.rng), SigningKey.create(self.rng)
        fields = RunKeyGrant(
            job=self.job.digest, job_name=self.job.name, run_key=run.public_key, not_after=int(WALL + 1e7)
        )
        self.authority = Authority(
            job=self.job, root_key=root.public_key, run_key=run, grant=sign_grant(root, fields)
        )

    def admit(self, role: Role = "worker", *, now: float = WALL) -> tuple[Identity, bytes]:
        identity = Identity.create(self.rng)
        binding = identity.bind_curve(self.job.digest)
        _, sealed = self.authority.certify(identity.public_key, binding, role=role, serial=1, now_wall=now)
        return identity, sealed


@dataclass
class Seat:
    """One running half; `bridge` is the end that its training half would hold."""

    identity: Identity
    half: GossipHalf
    link: Link
    bridge: MemoryBridge
    task: asyncio.Task[int]
    events: list[Event]
    bodies: list[Body] = field(default_factory=list)

    async def hears(
        self, kind: type[B], fits: Callable[[B], bool] = lambda _: True, limit_s: float = 20.0
    ) -> B:
        """The next body of a kind that fits; what else comes is kept in `bodies`."""
        async with asyncio.timeout(limit_s):
            while True:
                body = await self.bridge.recv()
                self.bodies.append(body)
                if isinstance(body, kind) and fits(body):
                    return body

    async def heard(self, kind: type[B], within_s: float = 0.2) -> list[B]:
        """All bodies of a kind so far, and in the next moment."""
        with suppress(TimeoutError):
            await self.hears(kind, lambda _: False, within_s)
        return [body for body in self.bodies if isinstance(body, kind)]

    async def sees(self, other: "Seat", status: str, limit_s: float = 20.0) -> None:
        node = other.identity.node
        if self.half.view.status(node) != status:
            fits = lambda body: (body.record.signer, body.status) == (node, status)  # noqa: E731
            await self.hears(MemberChanged, fits, limit_s)


@dataclass
class Table:
    """Where the seats are: how links are opened, and how a seat is killed."""

    issuer: Issuer
    open_link: Callable[[Identity], Awaitable[Link]]
    kill: Callable[[Seat], Awaitable[None]]
    seats: list[Seat] = field(default_factory=list)

    async def sit(self, role: Role = "worker", *, through: Seat | None = None) -> Seat:
        identity, certificate = self.issuer.admit(role)
        link = await self.open_link(identity)
        events: list[Event] = []
        setup = GossipSetup.for_member(
            identity,
            certificate,
            role=role,
            job=self.issuer.job,
            root_key=self.issuer.authority.root_key,
            gossip=link.endpoint.address,
            work=f"tcp://127.0.0.1:{len(self.seats) + 1}",
            incarnation=1,
            config=volunteer_wan(),
            rng=random.Random(len(self.seats)),
            wall=lambda: WALL,
            emit=events.append,
        )
        ours, theirs = MemoryBridge.pair()
        half = GossipHalf(setup, link, ours)
        met = through or (self.seats[0] if self.seats else None)
        if met is not None:
            met.link.know(identity.node, link.endpoint)  # as the lobby of the first one would
            half.seed(met.half.records())
        task = asyncio.ensure_future(half.run())  # noqa: TID251 - its end is a result, see World.open
        seat = Seat(identity, half, link, theirs, task, events)
        self.seats.append(seat)
        return seat

    async def meet(self, workers: int) -> list[Seat]:
        """A coordinator and so many workers, all alive to each other."""
        seats = [await self.sit("coordinator")]
        seats += [await self.sit() for _ in range(workers)]
        for seat in seats:
            for other in seats:
                await seat.sees(other, "alive")
        return seats


@dataclass(frozen=True)
class World:
    """run: runs a coroutine to its end, in its kind of loop. table: called inside it."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    table: Callable[[], Table]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Table]:
        table = self.table()
        try:
            yield table
        finally:
            for seat in table.seats:
                seat.task.cancel()
                await asyncio.wait([seat.task])
                await seat.link.close()


def _simulated() -> Table:
    network = SimNetwork(random.Random(1), LinkShape(latency_s=0.05, jitter_s=0.01))

    async def open_link(identity: Identity) -> Link:
        return network.open(identity.node, curve_key=identity.curve_public, schema=GOSSIP_SCHEMA)

    async def kill(seat: Seat) -> None:
        network.crash(seat.identity.node)

    return Table(Issuer(), open_link, kill)


def _over_sockets() -> Table:
    async def open_link(identity: Identity) -> Link:
        return await ZmqLink.open(
            me=identity.node,
            curve_public=identity.curve_public,
            curve_secret=identity.curve_secret,
            schema=GOSSIP_SCHEMA,
            host="127.0.0.1",
        )

    async def kill(seat: Seat) -> None:
        seat.task.cancel()
        await asyncio.wait([seat.task])
        await seat.link.close()

    return Table(Issuer(), open_link, kill)


WORLDS = {"simulated": World(run_virtual, _simulated), "zmq": World(asyncio.run, _over_sockets)}
