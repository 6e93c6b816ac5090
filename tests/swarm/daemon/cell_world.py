"""Training halves on a simulated network, with gossip that knows everything at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from swarm.daemon.bridge import FactsChanged, Left, MemberChanged, NoticeLearned, Stop
from swarm.daemon.compute import CostCompute
from swarm.daemon.genesis import found_job
from swarm.daemon.training_half import TrainingHalf
from swarm.daemon.training_setup import WORK_SCHEMA, TrainingSetup
from swarm.events import Event
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job
from swarm.pipeline.data import Corpus, load_corpus
from swarm.pipeline.model import preset
from transport.identity import Identity, pack_payload
from transport.sim_network import SimNetwork
from transport.sim_paths import Cut, LinkShape
from transport.virtual_time import OWNER, run_virtual
from transport.wire import Body

DEATH_S = 2.0
"""From a crash until everybody knows."""
COORDINATOR = Identity.create(random.Random(999))


@cache
def text(folder: Path) -> Path:
    """A little corpus, so that a test does not read a library."""
    path = folder / "text.txt"
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(50)]
    path.write_text(" ".join(rng.choices(words, k=8000)), encoding="utf-8")
    return path


@cache
def corpus_of(path: str) -> Corpus:
    return load_corpus(Job.model_validate({"data": {"path": path}}).data)


def small_job(folder: Path, **sections: dict[str, Any]) -> Job:
    """A job whose iterations take milliseconds."""
    asked = {
        "data": {"path": str(text(folder)), "sequence": 16},
        "pipeline": {"nodes": 1, "microbatches": 3, "microbatch": 1},
        "inner": {"iterations": 8, "warmup": 2, "lr": 1e-3},
        "outer": {"method": "none"},
    }
    for name, fields in sections.items():
        asked[name] = {**asked.get(name, {}), **fields}
    return Job.model_validate(asked)


class PerfectGossip:
    """Every node's facts reach every other on its side at once, and deaths after `DEATH_S`."""

    def __init__(self) -> None:
        self.nodes: dict[str, CellNode] = {}
        self.members: dict[str, MemberChanged] = {}
        self.side: dict[str, int] = {}

    def facts(self, node: CellNode, facts: Facts) -> None:
        node.seq += 1
        record = MemberRecord(
            job=node.job.digest,
            node=node.identity.node,
            incarnation=node.incarnation,
            seq=node.seq,
            gossip="",
            work=node.link.endpoint.address,
            curve_key=node.identity.curve_public,
            certificate=b"",
            facts=facts,
        )
        signed = node.identity.signing_in(node.job.digest)("member", pack_payload(record))
        self.tell(node, MemberChanged(record=signed, status="alive"))

    def tell(self, node: CellNode, changed: MemberChanged) -> None:
        self.members[node.identity.node] = changed
        mine = self.side.get(node.identity.node, 0)
        for other in self.nodes.values():
            if not other.crashed and self.side.get(other.identity.node, 0) == mine:
                other.inbox.put_nowait(changed)

    def judge(self, node: CellNode, status: Status, by: Sequence[CellNode] = ()) -> None:
        """A verdict on a node, heard by everybody or by some."""
        changed = self.members[node.identity.node].model_copy(update={"status": status})
        for other in by or self.nodes.values():
            if not other.crashed and other is not node:
                other.inbox.put_nowait(changed)
        if not by:
            self.members[node.identity.node] = changed


class CellNode:
    def __init__(
        self,
        gossip: PerfectGossip,
        network: SimNetwork,
        job: Job,
        index: int,
        root: Path,
        *,
        checkpoints: bool = False,
        incarnation: int = 0,
    ) -> None:
        self.gossip, self.network, self.job = gossip, network, job
        self.index, self.root, self.incarnation = index, root, incarnation
        self.identity = Identity.create(random.Random(index))
        self.link = network.open(self.identity.node, curve_key=self.identity.curve_public, schema=WORK_SCHEMA)
        self.inbox: asyncio.Queue[Body] = asyncio.Queue()
        self.events: list[Event] = []
        self.seq = 0
        self.crashed = self.left = False
        corpus = corpus_of(job.data.path)
        keys = gossip.nodes
        setup = TrainingSetup(
            me=self.identity.node,
            sign=self.identity.signing_in(job.digest),
            public_key=lambda record: keys[record.node].identity.public_key,
            job=job,
            config=preset(job.model.preset, corpus.vocab),
            corpus=corpus,
            data_dir=root / f"node{index}",
            device="cpu",
            platform="test",
            memory_bytes=0,
            checkpoints=checkpoints,
            wall=lambda: asyncio.get_running_loop().time(),
            emit=self.events.append,
        )
        setup.data_dir.mkdir(parents=True, exist_ok=True)
        self.half = TrainingHalf(setup, self.link, self, CostCompute(2e10))
        gossip.nodes[self.identity.node] = self

    # the bridge
    def send(self, body: Body) -> None:
        if isinstance(body, FactsChanged) and not self.crashed:
            self.gossip.facts(self, body.facts)
        elif isinstance(body, Left):
            self.left = True

    async def recv(self) -> Body:
        return await self.inbox.get()

    def close(self) -> None:
        """Nothing to close."""

    def kill(self) -> None:
        """Now, and nobody is told."""
        self.crashed = True
        self.task.cancel()
        self.network.crash(self.identity.node)

    def stop(self) -> None:
        """The owner wants the machine back."""
        self.inbox.put_nowait(Stop(reason="told to stop"))

    async def crash(self) -> None:
        self.kill()
        await asyncio.sleep(DEATH_S)
        self.gossip.judge(self, "dead")

    def run(self, tasks: asyncio.TaskGroup) -> None:
        for changed in self.gossip.members.values():
            self.inbox.put_nowait(changed)
        token = OWNER.set(self.identity.node)
        self.task = tasks.create_task(self.half.run())
        OWNER.reset(token)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event.fields for event in self.events if event.kind == kind]

    @property
    def cell(self) -> str:
        return self.half.trainer.cell if self.half.trainer else ""

    @property
    def stages(self) -> tuple[int, ...]:
        return tuple(sorted(self.half.trainer.computing.stages)) if self.half.trainer else ()

    @property
    def iteration(self) -> int:
        return self.half.trainer.record.iteration if self.half.trainer else 0

    @property
    def finished(self) -> bool:
        return self.crashed or self.left or bool(self.of_kind("finished"))


def genesis_notice(nodes: Sequence[CellNode], job: Job, resumed: int = 0) -> NoticeLearned:
    members = {}
    for node in nodes:
        record = MemberRecord(
            job=job.digest,
            node=node.identity.node,
            incarnation=0,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
        )
        members[record.node] = Member(record, "alive")
    corpus = corpus_of(job.data.path).digest
    notice = found_job(
        View(members),
        job,
        COORDINATOR.node,
        COORDINATOR.signing_in(job.digest),
        corpus=corpus,
        resumed=resumed,
        resumed_cell="c0" if resumed else "",
    )
    return NoticeLearned(topic="genesis", version=resumed, notice=notice)


def begin(gossip: PerfectGossip, job: Job, *, resumed: int = 0) -> None:
    """The coordinator's genesis, for the nodes that are here now."""
    nodes = list(gossip.nodes.values())
    notice = genesis_notice(nodes, job, resumed)
    for node in nodes:
        node.inbox.put_nowait(notice)


class Over(Exception):
    """The scenario has seen enough."""


class Cells:
    """A job on `count` nodes; scenarios tell it what to do and wait for what follows."""

    def __init__(
        self, job: Job, folder: Path, *, checkpoints: bool = False, latency_s: float = 0.005
    ) -> None:
        self.job, self.folder, self.checkpoints = job, folder, checkpoints
        shape = LinkShape(latency_s=latency_s, bandwidth_bytes_per_s=1e9)
        self.network = SimNetwork(random.Random(1), shape)
        self.gossip = PerfectGossip()
        self.nodes: list[CellNode] = []
        self.notice: NoticeLearned | None = None
        self.over = False
        self.tasks: asyncio.TaskGroup

    def add(self, index: int | None = None, incarnation: int = 0) -> CellNode:
        """Another node, or one that comes back."""
        number = len(self.nodes) if index is None else index
        node = CellNode(
            self.gossip,
            self.network,
            self.job,
            number,
            self.folder,
            checkpoints=self.checkpoints,
            incarnation=incarnation,
        )
        self.nodes.append(node)
        node.run(self.tasks)
        if self.notice is not None:
            node.inbox.put_nowait(self.notice)
        return node

    def begin(self, *, resumed: int = 0) -> None:
        self.notice = genesis_notice(self.nodes, self.job, resumed)
        for node in self.nodes:
            node.inbox.put_nowait(self.notice)

    @property
    def alive(self) -> list[CellNode]:
        return [node for node in self.nodes if not node.crashed and not node.left]

    def partition(self, one: list[CellNode], other: list[CellNode]) -> Cut:
        """Cut two groups apart; each takes the other for dead after `DEATH_S`."""
        cut = self.network.partition([[n.identity.node for n in group] for group in (one, other)])
        self.gossip.side |= {node.identity.node: 1 for node in one}
        for group, by in ((one, other), (other, one)):
            for node in group:
                asyncio.get_running_loop().call_later(DEATH_S, self.gossip.judge, node, "dead", by)
        return cut

    def heal(self, cut: Cut) -> None:
        """Mend a partition: everybody refutes its death."""
        self.network.heal(cut)
        self.gossip.side.clear()
        for node in self.alive:
            node.incarnation += 1
            self.gossip.facts(node, node.half.facts)

    async def until(self, reached: Callable[[], bool], limit_s: float = 240.0, step_s: float = 0.05) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not reached():
            assert loop.time() < end, self.story()
            await asyncio.sleep(step_s)

    async def finish(self, limit_s: float = 240.0) -> None:
        def all_finished() -> bool:
            inside = [node for node in self.alive if node.cell]
            return bool(inside) and all(node.finished for node in inside)

        await self.until(all_finished, limit_s)
        await asyncio.sleep(0.5)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        found = [(e.time, e.node, e.fields) for node in self.nodes for e in node.events if e.kind == kind]
        return [fields for _, _, fields in sorted(found, key=lambda entry: entry[:2])]

    def story(self) -> str:
        events = [
            (e.time, e.node[:8], e.kind, e.fields)
            for node in self.nodes
            for e in node.events
            if e.kind not in ("planned", "lost")
            and not (e.kind == "committed" and e.fields["iteration"] % 10)
        ]
        lines = [f"{time:.3f} {node} {kind} {fields}" for time, node, kind, fields in sorted(events, key=str)]
        for node in self.nodes:
            leader = node.half.trainer.leader if node.half.trainer else None
            waits = node.half.standing.waiting_for()
            phase = leader.phase if leader else "-"
            state = (node.identity.node[:8], node.cell, node.stages, node.iteration, phase, waits)
            lines.append(str((*state, node.crashed)))
        return "\n".join(lines[-120:])

    def check_identical(self) -> None:
        """Holders of a stage of a cell that are at the same record have the same bytes."""
        seen: dict[tuple[str, int, int], str] = {}
        for node in self.alive:
            trainer = node.half.trainer
            if trainer is None or not trainer.applied:
                continue
            for index, stage in trainer.computing.stages.items():
                if node.identity.node in trainer.record.roster[index]:
                    key = (trainer.cell, trainer.record.slot, index)
                    assert seen.setdefault(key, stage.digest()) == stage.digest(), (key, self.story())

    def check_log(self) -> None:
        """No slot of a cell was decided twice with different results, and iterations do not skip."""
        decided: dict[tuple[str, int], tuple[object, ...]] = {}
        for kind in ("committed", "round"):
            for fields in self.of_kind(kind):
                key = (fields["cell"], fields["slot"])
                what = (kind, fields["iteration"], fields.get("loss"))
                assert decided.setdefault(key, what) == what, (key, self.story())


def run_cells(
    job: Job,
    folder: Path,
    count: int,
    scenario: Callable[[Cells], Awaitable[None]],
    *,
    checkpoints: bool = False,
    resumed: int = 0,
    latency_s: float = 0.005,
) -> Cells:
    """Run a scenario in virtual time; afterwards the world is there to look at."""
    torch.set_num_threads(1)

    async def main() -> Cells:
        cells = Cells(job, folder, checkpoints=checkpoints, latency_s=latency_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                cells.tasks = tasks
                for _ in range(count):
                    cells.add()
                await asyncio.sleep(0.5)
                cells.begin(resumed=resumed)
                await scenario(cells)
                cells.check_identical()
                cells.check_log()
                for node in cells.nodes:
                    node.task.cancel()
                raise Over
        except* Over:
            cells.over = True
        return cells

    return run_virtual(main())
