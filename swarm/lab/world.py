"""A whole swarm in one process: the same nodes, a simulated network, virtual time.

A run is a function of (job, faults, seed): equal arguments give equal events, byte for byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Literal

from swarm.daemon.compute import CostCompute
from swarm.daemon.gossip_setup import DONE_S
from swarm.events import Event
from swarm.gossip.config import GossipConfig, volunteer_wan
from swarm.job import Job
from swarm.lab.checkers import CHECKERS
from swarm.lab.disks import SimDisk, without_place
from swarm.lab.evidence import Evidence
from swarm.lab.exam import examine
from swarm.lab.faults import Fault
from swarm.lab.hollow import Hollow, without_values
from swarm.lab.keys import certified, found_authority
from swarm.lab.misfortune import Misfortune
from swarm.lab.remains import hopeless, stuck
from swarm.lab.sim_node import Ground, SimCoordinator, SimNode, SimProcess, virtual_now
from swarm.lab.terrain import access_of, path_between, region_of
from swarm.lab.wiretap import TappedNetwork, Wiretap
from swarm.pipeline.data import Corpus
from swarm.pipeline.matter import DENSE
from swarm.pipeline.model import ModelConfig, preset
from transport.machine import NodeId
from transport.sim_network import QueueLimits
from transport.sim_paths import LinkShape
from transport.wire import Body

CHECK_S = 1.0
START_S = 0.3
"""Within which the nodes of a world start, one after the other."""
END_S = 1.0
"""From the last node's last iteration until the world ends, so that its news still spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What a world is made from.

    nodes: how many start at the beginning; 0 means as many as the job waits for.
    faults: a script. drawn: what churn or a trace adds to it, however long the run is.
    until_s: virtual seconds after which it ends, finished or not; but not before `patience_s` have passed
        since the last disturbance, a fault at an iteration, say, that fell late.
    flops_per_s: of a node of middling speed; each has between half and one and a half of it.
    latency_s: one way between two nodes, drawn for each pair between these.
    bandwidth_bytes_per_s: of each pair, drawn likewise.
    uplink_bytes_per_s: of each node, drawn likewise, and `terrain.DOWNLINK` times as much down; None: as
        much as its paths carry.
    regions: that nodes are dealt to in turn; then what was measured between them holds instead.
    jitter: how what a message waits on top of a path's latency is distributed; see `LinkShape.jitter_law`.
    model: what is trained instead of the job's preset, for worlds whose messages alone matter.
    tensors: "none" leaves them out: bytes, times and failures are as they would be, losses unknown.
    examine: ask at the end how good the model is on held-out text, if there is one.
    settle_s: how long it lives on after the job is finished and the last fault is over, with every node
        staying, so that views are judged that have had the time to settle. 0: it ends with the job.
    gossip, queues: how membership behaves, and what a link keeps for a peer at most.
    """

    job: Job
    faults: Sequence[Fault] = ()
    drawn: Sequence[Fault] = ()
    seed: int = 0
    nodes: int = 0
    until_s: float = 3600.0
    patience_s: float = 0.0
    flops_per_s: float = 2e10
    latency_s: tuple[float, float] = (0.005, 0.05)
    bandwidth_bytes_per_s: tuple[float, float] = (1e7, 1e8)
    uplink_bytes_per_s: tuple[float, float] | None = None
    regions: tuple[str, ...] = ()
    jitter: Literal["uniform", "log-normal"] = "uniform"
    tensors: Literal["real", "none"] = "real"
    examine: bool = False
    model: ModelConfig | None = None
    settle_s: float = 0.0
    gossip: GossipConfig = field(default_factory=volunteer_wan)
    queues: QueueLimits = field(default_factory=QueueLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run left: events in order, virtual seconds, and what was broken (nothing, if all is well).

    bytes_sent: on all links. validation: held-out loss of the cell that came furthest, if it was asked
        for and a cell is whole. missed: sentences, faults of the script that hit nobody or never came.
    drawn: how many of the faults that were drawn began, and of how many.
    stuck: sentences, cells that could train to the end and have not.
    hopeless: why nobody could have gone on with the job, empty if somebody could.
    looked: at how many things each checker has looked, by its name.
    """

    events: tuple[Event, ...]
    seconds: float
    finished: bool
    broken: tuple[str, ...]
    bytes_sent: int = 0
    validation: float | None = None
    missed: tuple[str, ...] = ()
    drawn: tuple[int, int] = (0, 0)
    stuck: tuple[str, ...] = ()
    hopeless: str = ""
    looked: Mapping[str, int] = field(default_factory=dict)


class World:
    """All processes of a simulated swarm. Built inside a virtual-time loop."""

    def __init__(self, options: WorldOptions, corpus: Corpus, directory: Path) -> None:
        self.options, self.job = options, options.job
        self.events: list[Event] = []
        self.evidence = Evidence()
        self.iteration = 0
        self.done = False
        self.disturbed_at = 0.0
        self.news = asyncio.Event()
        self._rng = Random(options.seed)
        self._directory = directory
        self._tasks: asyncio.TaskGroup | None = None
        self._beside: list[Coroutine[Any, Any, None]] = []
        self.wiretap = Wiretap(options.job)
        self.shapes: dict[tuple[NodeId, NodeId], LinkShape] = {}
        self.network = TappedNetwork(
            Random(self._rng.getrandbits(64)), LinkShape(), queues=options.queues, tap=self._overhear
        )
        self._authority = found_authority(self.job, self._rng)
        config = options.model or preset(self.job.model.preset, corpus.vocab)
        self._hollow = Hollow(self.job, config) if options.tensors == "none" else None
        self._ground = Ground(
            network=self.network,
            job=self.job,
            config=config,
            corpus=corpus,
            matter=self._hollow or DENSE,
            root_key=self._authority.root_key,
            gossip=options.gossip,
            linger_s=inf if options.settle_s else DONE_S,
            emit=self.emit,
            heard=self.evidence.hear,
            failed=self.evidence.fail,
            lobby=lambda node: self.coordinator.admit(node),
        )
        self.nodes: list[SimNode] = []
        self.coordinator = self._make_coordinator()
        for _ in range(options.nodes or self.job.pipeline.nodes):
            self.add_node()
        self.misfortune = Misfortune(self, options.faults, options.drawn, Random(self._rng.getrandbits(64)))

    # -- making ------------------------------------------------------------------------------

    def _make_coordinator(self) -> SimCoordinator:
        identity, certificate = certified(self._authority, "coordinator", self._rng)
        disk = SimDisk()
        return SimCoordinator(
            ground=self._ground,
            identity=identity,
            certificate=certificate,
            directory=disk.directory(self._directory / "coordinator"),
            disk=disk,
            rng=Random(self._rng.getrandbits(64)),
        )

    def add_node(self) -> SimNode:
        """One more invited node, with links and a speed drawn from the seed. `start` begins it."""
        identity, certificate = certified(self._authority, "worker", self._rng)
        speed = self.options.flops_per_s * self._rng.uniform(0.5, 1.5)
        disk = SimDisk()
        node = SimNode(
            ground=self._ground,
            identity=identity,
            certificate=certificate,
            directory=disk.directory(self._directory / f"node{len(self.nodes)}"),
            disk=disk,
            rng=Random(self._rng.getrandbits(64)),
            compute=CostCompute(speed),
        )
        node.region = region_of(self.options, len(self.nodes))
        access = access_of(self.options, node.region, self._rng)
        if access is not None:
            self.network.set_access(node.node, *access)
        for other in self.processes:
            # The coordinator is in the first region.
            there = other.region if isinstance(other, SimNode) else region_of(self.options, 0)
            shape = path_between(self.options, node.region, there, self._rng)
            self.shapes[node.node, other.node] = shape
            self.network.set_shape(node.node, other.node, shape)
        self.nodes.append(node)
        return node

    # -- looking -----------------------------------------------------------------------------

    @property
    def processes(self) -> list[SimProcess]:
        """The coordinator and every node ever made."""
        return [self.coordinator, *self.nodes]

    def live(self) -> list[SimProcess]:
        """Processes that run, also those that stand still."""
        return [process for process in self.processes if process.running]

    def quiet_s(self) -> float:
        """Virtual seconds since something was done to somebody, or somebody started or left.

        None while a fault lasts in which what one says of another need not be so: a pause is none.
        """
        misled = any(self.evidence.hinders(process.node) - {"pause"} for process in self.processes)
        return 0.0 if misled else virtual_now() - self.disturbed_at

    def _overhear(self, sender: NodeId, body: Body) -> None:
        cells = (node.trainer.cell for node in self.nodes if node.node == sender and node.trainer)
        self.wiretap.hear(sender, next(cells, ""), body, virtual_now())

    def holders(self) -> dict[int, list[str]]:
        """Running holders of each stage, by what they really have, in the order of the nodes."""
        held: dict[int, list[str]] = {}
        for node in self.nodes:
            for stage in sorted(node.trainer.computing.stages) if node.trainer else ():
                held.setdefault(stage, []).append(node.node)
        return held

    def regions(self) -> dict[str, list[str]]:
        """Running nodes of each region; none where nodes were given no region."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.running and node.region:
                found.setdefault(node.region, []).append(node.node)
        return found

    def finished(self) -> bool:
        """Whether every running node that trains has nothing left to train."""
        training = [node for node in self.nodes if node.trainer]
        return bool(training) and all(node.finished for node in training)

    def emit(self, event: Event) -> None:
        """Take an event in, at the world's time, whatever the clock of its node says."""
        told = without_place(without_values(event) if self._hollow else event, self._directory)
        event = replace(told, time=virtual_now())
        self.events.append(event)
        self.evidence.see(event)
        if event.kind in ("started", "left", "fault"):
            self.disturbed_at = event.time
        if event.kind == "finished":  # it may be gone before the next look
            self.done |= self.finished()
        if event.kind == "committed":
            self.iteration = max(self.iteration, int(event.fields["iteration"]))
            self.news.set()

    # -- running -----------------------------------------------------------------------------

    def start(self, process: SimProcess) -> None:
        """Begin a life of a process."""
        assert self._tasks is not None
        process.start(self._tasks)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this beside the world, and end it with it: what a fault script cannot say."""
        self._beside.append(work)

    async def run(self) -> Outcome:
        """Live until the job is finished, something is broken, or time is up."""
        broken: tuple[str, ...] = ()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await self._begin()
            beside = [tasks.create_task(work) for work in (self.misfortune.play(), *self._beside)]
            while not broken and not self._over():
                await asyncio.sleep(CHECK_S)
                broken = self.check()
            left_stuck = stuck(self)  # who comes back only now had no time
            await asyncio.sleep(END_S)
            broken = broken or self.check()
            left_stuck, nothing_left = stuck(self) if left_stuck else (), hopeless(self)
            self.done = (self.done or self.finished()) and not left_stuck
            validation = self._examined() if self.options.examine and not self._hollow else None
            for task in beside:
                task.cancel()
            for process in self.live():
                process.kill()
        return Outcome(
            events=tuple(self.events),
            seconds=virtual_now(),
            finished=self.done,
            broken=broken,
            bytes_sent=sum(self.network.traffic.count(lane).sent for lane in ("control", "bulk")),
            validation=validation,
            missed=tuple(self.misfortune.not_happened()),
            drawn=self.misfortune.drawn(),
            stuck=left_stuck,
            hopeless=nothing_left,
            looked=dict(self.evidence.looked),
        )

    def _examined(self) -> float | None:
        return examine(self.nodes, self.job, self._ground.config, self._ground.corpus)

    def _over(self) -> bool:
        """Whether time is up, or the job was finished, nobody was disturbed for long, and nobody could go on.

        It was finished when all who trained then were done: a cell may have come back since.
        """
        if virtual_now() >= max(self.options.until_s, self.disturbed_at + self.options.patience_s):
            return True
        self.done |= self.finished()
        return self.done and self.quiet_s() >= self.options.settle_s and not stuck(self)

    async def _begin(self) -> None:
        self.start(self.coordinator)
        for node in self.nodes:
            await asyncio.sleep(START_S / len(self.nodes))
            self.start(node)

    def check(self) -> tuple[str, ...]:
        """What is broken now, in sentences."""
        for process in self.live():
            if self.network.corrupts(process.node):  # a fault that lasts until so much was said
                self.disturbed_at = self.evidence.calm_since[process.node] = virtual_now()
        broken = tuple(f"{found} (at {virtual_now():.1f} s)" for check in CHECKERS for found in check(self))
        self.evidence.histories.looked()
        return broken
