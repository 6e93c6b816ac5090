"""A sound world made by hand, as far as the checkers of the simulated world look at one."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from swarm.events import Event
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job
from swarm.lab.checkers import CHECKERS, SETTLE_S, Checker
from swarm.lab.evidence import Evidence
from swarm.lab.wiretap import Wiretap
from swarm.lab.world import World
from swarm.messages import CellRecord, Plan, PlannedMicrobatch, StageSum
from transport.machine import NodeId

A, B, C, D = (NodeId(letter * 64) for letter in "abcd")
NOW = 500.0
BATCH = 8
JOB = Job.model_validate(
    {"data": {"sequence": 8}, "pipeline": {"nodes": 3, "stages": 3, "microbatch": 1, "microbatches": 2}}
)
ROSTER = ((A,), (B,), (C,))
FIRST = CellRecord(
    cell="c0", slot=0, term=0, act="found", iteration=0, round=0, previous="", roster=ROSTER, leader=A
)
STEP = FIRST.model_copy(
    update={
        "slot": 1,
        "term": 1,
        "act": "step",
        "iteration": 1,
        "tokens": 2 * BATCH,
        "sums": tuple(StageSum(contributors=(n,), tokens=2 * BATCH, digest="0") for n in (A, B, C)),
    }
)
NEXT = STEP.model_copy(update={"slot": 2, "iteration": 2})
ROUND = NEXT.model_copy(
    update={
        "slot": 3,
        "act": "round",
        "tokens": 0,
        "sums": (StageSum(contributors=("c0", "c1"), digest="0"), StageSum(), StageSum()),
    }
)


def row(node: NodeId, status: Status = "alive", *, seq: int = 0, **facts: Any) -> Member:
    record = MemberRecord(
        job="",
        node=node,
        role="coordinator" if node == D else "worker",
        incarnation=1,
        seq=seq,
        gossip="",
        work="",
        curve_key="",
        certificate=b"",
        facts=Facts(**facts),
    )
    return Member(record, status)


@dataclass
class Trained:
    """What the checkers look at in a member of a cell."""

    me: NodeId
    cell: str = "c0"
    stages: dict[int, None] = field(default_factory=dict)
    ends_copy: object = None
    record: CellRecord = ROUND
    held: int = 0
    stage_sizes: tuple[int, ...] = (100, 100, 100)
    config: Any = field(default_factory=lambda: SimpleNamespace(width=2))

    @property
    def computing(self) -> Any:
        return self

    @property
    def flow(self) -> Any:
        return SimpleNamespace(hops=SimpleNamespace(held=self.held, early=(), roster=ROSTER))

    averaging = SimpleNamespace(early=0)

    @property
    def outer(self) -> Any:
        return SimpleNamespace(early=0, view=View())


@dataclass
class Process:
    """What the checkers look at in a process."""

    node: NodeId
    trainer: Trained | None = None
    running: bool = True
    view: View = field(default_factory=View)
    links: tuple[Any, ...] = ()
    signed_before: tuple[int, int] = (0, 0)
    training: Any = field(default_factory=lambda: SimpleNamespace(restoring=SimpleNamespace(busy=())))


class Made:
    """A world of three nodes, each with a stage, and a coordinator with an archive; all is well in it."""

    def __init__(self) -> None:
        self.job = JOB
        self.evidence, self.wiretap = Evidence(), Wiretap(JOB)
        self.imbalances: list[str] = []
        self.network = SimpleNamespace(imbalances=lambda: iter(self.imbalances))
        self.quiet = 2 * SETTLE_S
        self.a, self.b, self.c = (
            Process(node, Trained(node, stages={stage: None})) for stage, node in enumerate((A, B, C))
        )
        self.coordinator = Process(D)
        for process in self.processes:
            self.sees(process, *map(self.told, (A, B, C, D)))
        for node in (A, B, C):
            self.evidence.histories.show(node, FIRST, STEP, NEXT)
        for slot, planned in ((1, 2), (2, 2)):
            self.plan(slot, planned)
            self.commit(slot)

    @property
    def nodes(self) -> list[Process]:
        return [self.a, self.b, self.c]

    @property
    def processes(self) -> list[Process]:
        return [self.coordinator, *self.nodes]

    def live(self) -> list[Process]:
        return [process for process in self.processes if process.running]

    def quiet_s(self) -> float:
        return self.quiet

    def told(self, node: NodeId, status: Status = "alive") -> Member:
        if node == D:
            return row(D, status, iteration=5, state="training")
        process = next(process for process in self.nodes if process.node == node)
        if process.trainer is None:
            return row(node, status)
        stages = tuple(process.trainer.stages)
        return row(node, status, cell=process.trainer.cell, stages=stages, state="training")

    def sees(self, process: Process, *rows: Member) -> None:
        for member in rows:
            process.view = process.view.with_member(member)

    def hear(self, sender: NodeId, body: Any, cell: str = "c0", now: float = NOW) -> None:
        self.wiretap.hear(sender, cell, body, now)

    def note(self, kind: Any, node: NodeId, **fields: Any) -> None:
        self.evidence.see(Event(kind, NOW, node, fields))

    def plan(self, slot: int, microbatches: int, cell: str = "c0", term: int = 1) -> None:
        planned = tuple(PlannedMicrobatch(index=i, path=((A, 0), (B, 1))) for i in range(microbatches))
        about: dict[str, Any] = {"cell": cell, "slot": slot, "term": term}
        self.hear(A, Plan(**about, iteration=slot, base="", roster=ROSTER, microbatches=planned))
        self.note("planned", A, **about, iteration=slot, microbatches=microbatches, skipped=[])

    def commit(self, slot: int, **fields: Any) -> None:
        told = {"cell": "c0", "slot": slot, "tokens": 2 * BATCH, "partial": 0, "lost": 0}
        told |= {"silent": [], "reasons": []}
        self.note("committed", A, **(told | fields))

    def show(self, record: CellRecord, *nodes: NodeId) -> None:
        for node in nodes:
            self.evidence.histories.show(node, record)

    def broken(self) -> dict[str, list[str]]:
        """What each checker says, those that are silent left out."""
        found = {check.__name__: list(check(cast(World, self))) for check in CHECKERS}
        return {name: sentences for name, sentences in found.items() if sentences}


Wreck = Callable[[Made], object]
Case = tuple[Checker, str, Wreck, Wreck]
"""A checker, what it is to find, a world in which that is wrong, and a sound one very like it."""


def assert_found(case: Case) -> None:
    """The checker alone finds what is wrong, and nobody finds anything in the sound neighbour."""
    checker, _, wrong, right = case
    broken, sound = Made(), Made()
    wrong(broken)
    right(sound)
    assert list(broken.broken()) == [checker.__name__]
    assert broken.evidence.looked[checker.__name__] > 0
    assert sound.broken() == {}
