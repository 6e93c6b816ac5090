"""Nodes that start, stop, die and come back: gossip halves in virtual time, each with one identity."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

from swarm.daemon.admission import Authority
from swarm.daemon.bridge import MemberChanged, NoticeLearned
from swarm.daemon.bridges import MemoryBridge
from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.gossip_setup import GossipSetup
from swarm.daemon.node import GOSSIP_SCHEMA
from swarm.events import Event
from swarm.gossip.config import volunteer_wan
from swarm.gossip.view import Role
from swarm.job import Job
from transport.identity import Identity, RunKeyGrant, SigningKey, sign_grant
from transport.link import Endpoint
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import OWNER, VirtualTimeLoop, run_virtual
from transport.wire import Body, Signed

EPOCH = 1_800_000_000.0
"""Wall time when virtual time is zero."""
JOB = Job(name="ours")


def authority_for(job: Job, seed: int = 1) -> Authority:
    rng = random.Random(seed)
    root, run = SigningKey.create(rng), SigningKey.create(rng)
    grant = RunKeyGrant(job=job.digest, job_name=job.name, run_key=run.public_key, not_after=int(EPOCH + 1e7))
    return Authority(job=job, root_key=root.public_key, run_key=run, grant=sign_grant(root, grant))


OURS = authority_for(JOB)


def identity_of(index: int) -> Identity:
    return Identity.create(random.Random(1000 + index))


def signed_by(index: int, domain: str, payload: bytes) -> Signed:
    return identity_of(index).signing_in(JOB.digest)(domain, payload)


def certificate_for(
    identity: Identity, *, by: Authority = OURS, role: Role = "worker", issued: float = EPOCH - 60
) -> bytes:
    binding = identity.bind_curve(by.job.digest)
    _, certificate = by.certify(identity.public_key, binding, role=role, serial=1, now_wall=issued)
    return certificate


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Life:
    """One start of a node. told: what its training half was told."""

    half: GossipHalf
    link: SimLink
    training: MemoryBridge
    events: list[Event]
    told: list[Body] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def noted(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def told_of(self, node: NodeId) -> list[tuple[str, str]]:
        return [
            (body.status, body.reason)
            for body in self.told
            if isinstance(body, MemberChanged) and body.record.signer == node
        ]


class Lives:
    """Nodes 0, 1, ... of one job; node 0 is the one that newcomers meet first, as the lobby's is."""

    def __init__(self, tasks: asyncio.TaskGroup, *, one_way_s: float = 0.0005, seed: int = 0) -> None:
        self.tasks = tasks
        self.rng = random.Random(seed)
        self.network = SimNetwork(self.rng, LinkShape(latency_s=one_way_s, jitter_s=one_way_s / 5))
        self.lives: dict[int, Life] = {}

    def node(self, index: int) -> NodeId:
        return identity_of(index).node

    def start(self, index: int, *, incarnation: int = 1, through: int = 0) -> Life:
        identity, events = identity_of(index), list[Event]()
        link = self.network.open(identity.node, curve_key=identity.curve_public, schema=GOSSIP_SCHEMA)
        setup = GossipSetup.for_member(
            identity,
            certificate_for(identity),
            role="worker",
            job=JOB,
            root_key=OURS.root_key,
            gossip=link.endpoint.address,
            work=f"sim://work-of-{index}",
            incarnation=incarnation,
            config=volunteer_wan(),
            rng=random.Random(self.rng.getrandbits(64)),
            wall=lambda: EPOCH + now(),
            emit=events.append,
        )
        ours, theirs = MemoryBridge.pair()
        met = self.lives.get(through)
        life = self.lives[index] = Life(GossipHalf(setup, link, ours), link, theirs, events)
        if met is not None:
            met.link.know(identity.node, Endpoint(link.endpoint.address, identity.curve_public))
        life.half.seed(met.half.records() if met is not None else ())
        context = copy_context()
        context.run(OWNER.set, identity.node)
        life.tasks = [
            self.tasks.create_task(part, context=context) for part in (self._run(life), self._train(life))
        ]
        return life

    async def settled(self, nodes: int) -> Sequence[Life]:
        lives = [self.start(index) for index in range(nodes)]
        await self.until(lambda: all(self.sees(index, "alive") for index in range(nodes)), 5.0)
        await asyncio.sleep(10.0)
        return lives

    def kill(self, index: int) -> None:
        """As SIGKILL of both processes."""
        self.network.crash(self.node(index))
        for task in self.lives.pop(index).tasks:
            task.cancel()

    def freeze(self, index: int) -> None:
        """As SIGSTOP: connections stay open, nothing is answered."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        self.network.pause(self.node(index))
        loop.freeze(self.node(index))

    def sees(self, index: int, status: str, among: Iterable[int] | None = None) -> bool:
        """Whether all others, or all of some, have this verdict on one."""
        viewers = [life for i, life in self.lives.items() if i != index and (among is None or i in among)]
        return {life.half.view.status(self.node(index)) for life in viewers} <= {status}

    def learned(self, topic: str) -> dict[int, int]:
        """Node -> newest version of a topic that its training half was told."""
        return {
            index: body.version
            for index, life in self.lives.items()
            for body in life.told
            if isinstance(body, NoticeLearned) and body.topic == topic
        }

    async def until(self, done: Callable[[], bool], limit_s: float) -> float:
        """Virtual seconds until something holds; fails if it does not within the limit."""
        start = now()
        while not done():
            assert now() - start < limit_s, f"not within {limit_s} s"
            await asyncio.sleep(0.02)
        return now() - start

    def end(self) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        loop.thaw_all()
        for life in self.lives.values():
            for task in life.tasks:
                task.cancel()

    @staticmethod
    async def _run(life: Life) -> None:
        await life.half.run()
        await life.link.close()

    @staticmethod
    async def _train(life: Life) -> None:
        while True:
            life.told.append(await life.training.recv())


def play(scene: Callable[[Lives], Awaitable[Any]], **network: Any) -> Any:
    """Run a scene in virtual time and end whoever still lives after it."""

    async def main() -> Any:
        async with asyncio.TaskGroup() as tasks:
            lives = Lives(tasks, **network)
            try:
                return await scene(lives)
            finally:
                lives.end()

    return run_virtual(main())
