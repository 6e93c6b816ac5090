"""Leaders and followers without tensors over a network that loses, reorders and cuts: safety."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarm.events import Noted
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job
from swarm.messages import (
    CellBody,
    CellRecord,
    Close,
    Commit,
    Plan,
    Propose,
    Query,
    Report,
    StageSum,
    Summed,
)
from swarm.pipeline.follower import Apply, BeginSlot, CloseSlot, Follower
from swarm.pipeline.leader import Leader
from swarm.pipeline.office import Learn
from swarm.pipeline.records import is_majority, read_record, roster_nodes, sign_record
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed

IDENTITIES = [Identity.create(random.Random(100 + index)) for index in range(5)]
IDS = [NodeId(identity.node) for identity in IDENTITIES]
JOB = Job.model_validate(
    {"pipeline": {"stages": 1}, "inner": {"iterations": 10_000}, "outer": {"method": "none"}}
)
FOUNDING = sign_record(
    CellRecord(
        cell="c0",
        slot=0,
        term=0,
        act="found",
        iteration=0,
        round=0,
        previous="",
        roster=(tuple(sorted(IDS)),),
        leader=IDS[0],
    ),
    IDENTITIES[0].sign,
)


HEALED_TICKS_MAX = 40


class Node:
    """A member whose stages are only digests: the log is all there is."""

    def __init__(self, index: int, founding: Signed = FOUNDING) -> None:
        self.index, self.me = index, IDS[index]
        self.follower = Follower(self.me, founding, lambda signed: True)
        sign = IDENTITIES[index].sign
        self.leader = Leader(
            self.me, JOB, founding, sign=sign, check=lambda signed: True, place=lambda *_: ()
        )
        self.applied: list[Signed] = []
        self.dead = False

    def take(self, peer: NodeId, message: Message, now: float) -> list[tuple[NodeId, Message]]:
        return self.run(self.answer(peer, message, now), now)

    def answer(self, peer: NodeId, message: Message, now: float) -> list[Effect]:
        body = message.body
        assert isinstance(body, CellBody)
        effects: list[Effect]
        if isinstance(body, Plan | Close | Propose | Commit | Query):
            effects = list(self.follower.handle(peer, message))
            if not isinstance(body, Query) and self.follower.follows(peer, body.term):
                self.leader.heard(peer, body.term, now)
        else:
            effects = list(self.leader.handle(peer, message, now))
        return effects

    def run(self, effects: list[Effect], now: float) -> list[tuple[NodeId, Message]]:
        out: list[tuple[NodeId, Message]] = []
        while effects:
            effect = effects.pop(0)
            match effect:
                case Send(peer, message) if peer == self.me:
                    effects += self.answer(self.me, message, now)
                case Send(peer, message):
                    out.append((peer, message))
                case BeginSlot(plan, leader):
                    out.append((leader, Message(self._report(plan))))
                case CloseSlot(close, leader):
                    if close.roster[0][0] == self.me:
                        out.append((leader, Message(self._summed(close))))
                case Apply(record, signed):
                    self.applied.append(signed)
                    effects += self.leader.advance(signed, record, now)
                case Learn(peer, commit):
                    effects += self.follower.handle(peer, Message(commit))
                case Noted():
                    pass
        return out

    def _report(self, plan: Plan) -> Report:
        fields = {"cell": plan.cell, "slot": plan.slot, "term": plan.term}
        return Report(**fields, done=1, partial=0, lost=0, tokens=4, loss_sum=float(plan.term))

    def _summed(self, close: Close) -> Summed:
        fields = {"cell": close.cell, "slot": close.slot, "term": close.term}
        total = StageSum(contributors=(self.me,), tokens=4, digest=f"{close.term:x}{self.index}")
        return Summed(**fields, stage=0, round_attempt=close.round_attempt, total=total, squares=1.0)


def view_of(alive: set[int], verdict: Status = "suspect") -> View:
    view = View()
    for index, node in enumerate(IDS):
        record = MemberRecord(
            job="",
            node=node,
            incarnation=0,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
            facts=Facts(cell="c0", stages=(0,), state="training"),
        )
        view = view.with_member(Member(record, "alive" if index in alive else verdict))
    return view


class CellLog(RuleBasedStateMachine):
    """Suspicions come and go as they like, messages get lost, late or doubled; nobody is ever sure."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.nodes = [Node(index) for index in range(5)]
        self.wire: list[tuple[int, NodeId, Message]] = []
        self.cut: set[int] = set()
        self.decided: dict[tuple[str, int], bytes] = {}
        self.terms = [0] * 5

    def send(self, index: int, out: list[tuple[NodeId, Message]]) -> None:
        for peer, message in out:
            to = IDS.index(peer)
            if (index in self.cut) == (to in self.cut):
                self.wire.append((to, IDS[index], message))
        del self.wire[:-200]

    @initialize()
    def start(self) -> None:
        for node in self.nodes:
            self.send(node.index, node.run(list(node.leader.observe(view_of(set(range(5))), 0.0)), 0.0))

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), count=st.integers(1, 12))
    def deliver(self, data: st.DataObject, count: int) -> None:
        """Some messages, in any order."""
        for _ in range(min(count, len(self.wire))):
            at = data.draw(st.integers(0, min(4, len(self.wire) - 1)))
            to, peer, message = self.wire.pop(at)
            if not self.nodes[to].dead:
                self.send(to, self.nodes[to].take(peer, message, self.now))

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 400))
    def deliver_in_order(self, count: int) -> None:
        self.deliver_at_most(count)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def double(self, data: st.DataObject) -> None:
        self.wire.append(self.wire[data.draw(st.integers(0, len(self.wire) - 1))])

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 40.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for node in self.nodes:
            if not node.dead:
                self.send(node.index, node.run(list(node.leader.tick(self.now)), self.now))

    @rule(index=st.integers(0, 4), alive=st.sets(st.integers(0, 4)))
    def suspect(self, index: int, alive: set[int]) -> None:
        node = self.nodes[index]
        if not node.dead:
            self.send(
                index, node.run(list(node.leader.observe(view_of(alive | {index}), self.now)), self.now)
            )

    @rule(cut=st.sets(st.integers(0, 4), max_size=2))
    def partition(self, cut: set[int]) -> None:
        self.cut = cut

    @precondition(lambda self: not any(node.dead for node in self.nodes))
    @rule(index=st.integers(0, 4))
    def kill(self, index: int) -> None:
        self.nodes[index].dead = True

    @invariant()
    def no_slot_is_decided_twice(self) -> None:
        for node in self.nodes:
            for signed in node.applied:
                record = read_record(signed)
                payload = self.decided.setdefault((record.cell, record.slot), signed.payload)
                assert payload == signed.payload, (record.cell, record.slot)

    @invariant()
    def a_log_is_a_chain_and_terms_never_fall(self) -> None:
        for node in self.nodes:
            slots = [read_record(signed).slot for signed in node.applied]
            assert slots == sorted(set(slots))
            assert node.follower.term >= self.terms[node.index]
            self.terms[node.index] = node.follower.term

    def teardown(self) -> None:
        """Healed, what is left of the cell goes on; with a majority alive, nothing decided is lost.

        Where the dead were a majority of the last roster, gossip has to bury them first.
        """
        newest = max((slot for _, slot in self.decided), default=0)
        self.cut = set()
        self.see("suspect")
        for _ in range(HEALED_TICKS_MAX):
            last = self.last_known()
            left = [self.nodes[IDS.index(node)] for node in roster_nodes(last.roster)]
            left = [node for node in left if not node.dead]
            if last.slot > newest or self.is_new_and_trains(last) or not left:
                break
            if not is_majority([node.me for node in left], last.roster):
                self.see("dead")
            self.deliver_at_most(120)
            self.pass_time_once()
        self.no_slot_is_decided_twice()
        assert last.slot > newest or self.is_new_and_trains(last) or not left

    def see(self, verdict: Status) -> None:
        """Everybody alive sees who is alive; of the others the verdict is this."""
        alive = {node.index for node in self.nodes if not node.dead}
        for index in alive:
            node = self.nodes[index]
            effects = list(node.leader.observe(view_of(alive, verdict), self.now))
            self.send(index, node.run(effects, self.now))

    def last_known(self) -> CellRecord:
        """The newest record that somebody alive knows."""
        records = [node.follower.record for node in self.nodes if not node.dead]
        return max(records, key=lambda record: record.slot)

    @staticmethod
    def is_new_and_trains(record: CellRecord) -> bool:
        """Whether survivors without a majority went on under a name of their own."""
        return record.cell != "c0" and record.act == "step"

    def deliver_at_most(self, count: int) -> None:
        for _ in range(count):
            if not self.wire:
                return
            to, peer, message = self.wire.pop(0)
            if not self.nodes[to].dead:
                self.send(to, self.nodes[to].take(peer, message, self.now))

    def pass_time_once(self) -> None:
        self.now += 3.0
        for node in self.nodes:
            if not node.dead:
                self.send(node.index, node.run(list(node.leader.tick(self.now)), self.now))


TestCellLog = CellLog.TestCase
TestCellLog.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def test_a_healthy_cell_decides_slot_after_slot() -> None:
    log = CellLog()
    log.start()
    for _ in range(200):
        to, peer, message = log.wire.pop(0)
        log.send(to, log.nodes[to].take(peer, message, 0.0))
    assert min(node.follower.record.slot for node in log.nodes) >= 3


@pytest.mark.parametrize("kind", ["propose", "commit", "close", "summed", "accept"])
def test_a_leader_that_dies_between_two_messages_loses_nothing(kind: str) -> None:
    """Killed as it sends the first message of this kind of slot 3."""
    log = CellLog()
    log.start()
    leader: int | None = None
    while leader is None:
        to, peer, message = log.wire.pop(0)
        body = message.body
        if body.kind == kind and getattr(body, "slot", 0) == 3:
            leader = next(n.index for n in log.nodes if n.leader.phase != "following")
            log.nodes[leader].dead = True
            log.wire = [entry for entry in log.wire if entry[1] != IDS[leader]]
            continue
        log.send(to, log.nodes[to].take(peer, message, 0.0))
    log.teardown()


def test_a_candidate_that_dies_in_a_tied_term_does_not_hold_the_cell_up() -> None:
    """Two stand for term 1; the higher id takes every voice and dies, the lower leads nobody.

    The answers it gets name its own term, so it has to compare ids too to see that it was deposed.
    """
    log = CellLog()
    log.start()
    log.suspect(0, set())
    log.kill(0)
    log.teardown()


def test_a_leader_that_a_tied_candidate_refuses_does_not_hold_the_cell_up() -> None:
    """Both stood for term 1, one of them cut off, with the higher id. Healed it learns what the other
    led to a decision, takes that one for the leader, and refuses its word all the same."""
    log = CellLog()
    log.start()
    log.partition({0, 1})
    log.deliver_at_most(11)
    log.pass_time(400.0)
    log.deliver_at_most(7)
    log.no_slot_is_decided_twice()
    assert max(slot for _, slot in log.decided) == 1
    log.teardown()
