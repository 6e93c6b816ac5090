"""A leader believes members only, and of them only what its plan makes possible."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from swarm.events import Noted
from swarm.gossip.view import Member, MemberRecord, View
from swarm.job import Job, JobError, parse_job
from swarm.messages import (
    Absent,
    Accept,
    CellRecord,
    Close,
    Plan,
    Promise,
    Propose,
    Query,
    Report,
    StageSum,
    Stale,
    Summed,
)
from swarm.pipeline.follower import Ignored
from swarm.pipeline.leader import FRUITLESS_MAX, Leader
from swarm.pipeline.ledger import NAMES_CHARS_MAX, Ledger
from swarm.pipeline.records import TERM_STEP_MAX, read_record, record_digest, sign_record
from swarm.pipeline.slots import REST_MAX_S, REST_S
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Schema, Signed

PEOPLE = sorted((Identity.create(random.Random(i)) for i in range(3)), key=lambda identity: identity.node)
A, B, C = (NodeId(identity.node) for identity in PEOPLE)
STRANGER = NodeId("f" * 64)
JOB = Job.model_validate({"pipeline": {"stages": 2, "microbatches": 3}, "outer": {"method": "none"}})
FIRST = sign_record(
    CellRecord(
        cell="c0",
        slot=0,
        term=0,
        act="found",
        iteration=0,
        round=0,
        previous="",
        roster=((A,), (B, C)),
        leader=A,
    ),
    PEOPLE[0].sign,
)


SECOND = read_record(FIRST).model_copy(
    update={"slot": 1, "act": "step", "iteration": 1, "previous": record_digest(FIRST)}
)
FORGED = sign_record(SECOND.model_copy(update={"leader": B}), PEOPLE[1].sign)


def all_alive() -> View:
    view = View()
    for node in (A, B, C):
        record = MemberRecord(
            job="", node=node, incarnation=0, seq=0, gossip="", work="", curve_key="", certificate=b""
        )
        view = view.with_member(Member(record, "alive"))
    return view


def bodies(effects: Sequence[Effect], kind: type[Body]) -> list[Body]:
    sent = [effect.message.body for effect in effects if isinstance(effect, Send)]
    return [body for body in sent if isinstance(body, kind)]


def genuine(signed: Signed) -> bool:
    return signed.payload != FORGED.payload


def candidate() -> Leader:
    leader = Leader(A, JOB, FIRST, sign=PEOPLE[0].sign, check=genuine, place=lambda *_: ())
    assert bodies(leader.observe(all_alive(), 0.0), Query)
    return leader


def running() -> Leader:
    """A leader that has planned the first iteration."""
    leader = candidate()
    effects: list[Effect] = []
    for node in (A, B):
        promise = Promise(cell="c0", slot=0, term=leader.term, decided=FIRST)
        effects += leader.handle(node, Message(promise), 0.0)
    assert bodies(effects, Plan)
    return leader


def report(**fields: Any) -> Message:
    told: dict[str, Any] = {"done": 3, "partial": 0, "lost": 0, "tokens": 30, "loss_sum": 90.0, **fields}
    return Message(Report(cell="c0", slot=1, term=1, **told))


def summed(stage: int, attempt: int = 1, squares: float = 1.0, **fields: Any) -> Message:
    row = (A,) if stage == 0 else (B, C)
    total = StageSum(**{"contributors": row, "tokens": 30, "digest": "00", **fields})
    about: dict[str, Any] = {"cell": "c0", "slot": 1, "term": 1, "stage": stage, "round_attempt": attempt}
    return Message(Summed(**about, total=total, squares=squares))


def again(message: Message, leader: Leader) -> Message:
    """The same of the leader's newest term."""
    return Message(message.body.model_copy(update={"term": leader.term}))


@pytest.mark.parametrize(
    ("peer", "fields"),
    [
        (B, {}),
        (STRANGER, {}),
        (A, {"tokens": (1 << 53) - 1}),
        (A, {"loss_sum": 1.7e308}),
        (A, {"loss_sum": math.nan}),
        (A, {"loss_sum": -1.0}),
        (A, {"lost": 1}),
    ],
)
def test_a_report_counts_only_from_a_data_node_and_within_the_plan(
    peer: NodeId, fields: dict[str, Any]
) -> None:
    leader = running()
    (ignored,) = leader.handle(peer, report(**fields), 1.0)
    assert isinstance(ignored, Ignored)
    assert leader.phase == "running"
    assert bodies(leader.handle(A, report(), 2.0), Close)


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        (C, summed(1)),
        (STRANGER, summed(1)),
        (B, summed(200)),
        (B, summed(1, tokens=(1 << 53) - 1)),
        (B, summed(1, contributors=(B, STRANGER))),
        (B, summed(1, attempt=9)),
        (B, summed(1, contributors=(B, B))),
        (B, summed(1, squares=math.inf)),
        (B, summed(1, squares=1e300)),
    ],
)
def test_a_sum_counts_only_from_its_reducer_and_within_the_plan(peer: NodeId, body: Message) -> None:
    leader = running()
    leader.handle(A, report(), 1.0)
    leader.handle(A, summed(0), 2.0)
    (ignored,) = leader.handle(peer, body, 2.0)
    assert isinstance(ignored, Ignored)
    assert leader.phase == "closing"
    assert bodies(leader.handle(B, summed(1), 3.0), Propose)


@pytest.mark.parametrize("squares", [-1.0, math.nan])
def test_a_sum_with_squares_that_no_tensor_has_is_no_message(squares: float) -> None:
    with pytest.raises(ValidationError):
        summed(1, squares=squares)


def test_a_round_names_no_more_cells_than_its_record_can_hold() -> None:
    ledger = Ledger()
    ledger.open("round")
    row, most = (B,), NAMES_CHARS_MAX // 2 // 64
    for count, wrong in ((most, False), (most + 1, True)):
        names = tuple(f"{index:064d}" for index in range(count))
        body = summed(1, contributors=names, tokens=0).body
        assert isinstance(body, Summed)
        assert bool(ledger.wrong_with_sum(body, row, 0, 2)) == wrong


@pytest.mark.parametrize(("peer", "stages"), [(STRANGER, ()), (STRANGER, (0,)), (B, (0,)), (B, (1, 200))])
def test_only_what_the_roster_gives_a_member_can_be_absent(peer: NodeId, stages: tuple[int, ...]) -> None:
    leader = running()
    absent = Absent(cell="c0", slot=0, term=1, reason="gone", stages=stages)
    (ignored,) = leader.handle(peer, Message(absent), 1.0)
    assert isinstance(ignored, Ignored)
    assert leader.appointments.next_roster(leader.record.roster) == ((A,), (B, C))
    leader.handle(B, Message(absent.model_copy(update={"stages": (1,)})), 1.0)
    assert leader.appointments.next_roster(leader.record.roster) == ((A,), (C,))


def test_a_round_that_an_earlier_leader_closed_says_so_instead_of_no_reason() -> None:
    ledger = Ledger()
    ledger.open("round")
    body = summed(0, contributors=("c0",), tokens=0).body
    assert isinstance(body, Summed)
    ledger.sums[0] = body.model_copy(update={"reason": "not averaged: no answer from c1"})
    ours = SECOND.model_copy(update={"sums": (body.total, StageSum())})
    assert ledger.reasons(ours) == ["not averaged: no answer from c1"]
    for another in (ledger, Ledger()):
        (reason,) = another.reasons(SECOND.model_copy(update={"sums": (StageSum(), StageSum())}))
        assert "earlier leader" in reason


def test_after_iterations_that_teach_nothing_a_leader_waits_longer_and_says_so_once() -> None:
    leader, now = running(), 0.0
    pauses: list[float] = []
    errors: list[Effect] = []
    limits: list[float] = []
    for _ in range(FRUITLESS_MAX + 4):
        leader.handle(A, again(report(tokens=0, loss_sum=0.0), leader), now)
        for stage, reducer in ((0, A), (1, B)):
            effects = leader.handle(reducer, again(summed(stage, tokens=0), leader), now)
            errors += [e for e in effects if isinstance(e, Noted) and e.kind == "error"]
        due = leader.deadline()
        assert leader.phase == "resting"
        assert due is not None
        pauses.append(due - now)
        now = due
        assert bodies(leader.tick(now), Query)
        for node in (A, B):
            promise = Promise(cell="c0", slot=0, term=leader.term, decided=FIRST)
            leader.handle(node, Message(promise), now)
        assert leader.phase == "running"
        limits.append((leader.deadline() or now) - now)
    assert limits[:3] == [180.0, 360.0, 360.0], "perhaps only time was missing"
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (REST_S, REST_MAX_S)
    assert len(errors) == 1


def test_followers_wait_for_a_leader_as_long_as_its_steps_take() -> None:
    """Else a cell whose iterations take minutes deposes every leader in the middle of one."""
    follower = Leader(B, JOB, FIRST, sign=PEOPLE[1].sign, check=genuine, place=lambda *_: ())
    follower.observe(all_alive(), 0.0)
    follower.heard(A, 1, 0.0)
    before = follower.deadline()
    record, now = read_record(FIRST), 0.0
    for slot in range(1, 5):
        now = slot * 600.0
        record = record.model_copy(update={"slot": slot, "act": "step", "iteration": slot, "term": 1})
        follower.advance(sign_record(record, PEOPLE[0].sign), record, now)
    follower.heard(A, 1, now)
    after = follower.deadline()
    assert before is not None
    assert after is not None
    assert before < 600.0 < 3 * 600.0 <= after - now


def test_who_leads_for_the_first_time_waits_no_longer_than_the_steps_it_has_seen_took() -> None:
    """Its guess for a cold start is a minute and a half, and half a minute to average."""
    leader = Leader(A, JOB, FIRST, sign=PEOPLE[0].sign, check=genuine, place=lambda *_: ())
    record = read_record(FIRST)
    for slot in range(1, 6):
        changes = {"slot": slot, "act": "step", "iteration": slot, "term": 1, "leader": C}
        record = record.model_copy(update=changes)
        leader.advance(sign_record(record, PEOPLE[2].sign), record, slot * 2.0)
    leader.observe(all_alive(), 10.0)
    for node in (A, B):
        promise = Promise(cell="c0", slot=5, term=leader.term, decided=leader.signed)
        leader.handle(node, Message(promise), 10.0)
    assert (leader.phase, leader.deadline()) == ("running", 10.0 + 3 * 2.0)
    leader.tick(16.0)
    assert (leader.phase, leader.deadline()) == ("closing", 16.0 + 3 * 2.0)


def commit_told_of(leader: Leader, proposed: Sequence[Effect]) -> Noted:
    """What the leader notes of a record that a majority accepts."""
    propose = bodies(proposed, Propose)[0]
    assert isinstance(propose, Propose)
    accept = Accept(cell="c0", slot=1, term=1, digest=record_digest(propose.record))
    leader.handle(A, Message(accept), 100.0)
    effects = leader.handle(B, Message(accept), 100.0)
    (noted,) = [e for e in effects if isinstance(e, Noted) and e.kind == "committed"]
    return noted


def test_the_event_of_a_commit_tells_what_became_of_its_microbatches_and_who_was_averaged() -> None:
    leader = running()
    leader.handle(A, report(done=1, partial=1, lost=1), 1.0)
    leader.handle(A, summed(0), 2.0)
    nobody = summed(1, contributors=(), tokens=0, digest="").body
    told = Message(nobody.model_copy(update={"reason": "stage 1 is not averaged"}))
    noted = commit_told_of(leader, leader.handle(B, told, 3.0))
    assert (noted.fields["partial"], noted.fields["lost"]) == (1, 1)
    assert noted.fields["averaged"] == {"0": [A[:12]], "1": []}
    assert noted.fields["reasons"] == ["stage 1 is not averaged"]


def test_microbatches_of_a_data_node_that_does_not_report_in_time_are_told_as_lost() -> None:
    leader = running()
    assert bodies(leader.tick(leader.deadline() or 0.0), Close)
    leader.handle(A, summed(0), 99.0)
    noted = commit_told_of(leader, leader.handle(B, summed(1), 99.0))
    assert (noted.fields["tokens"], noted.fields["lost"]) == (0, JOB.pipeline.microbatches)
    assert noted.fields["silent"] == [A[:12]]


def test_only_members_promise_and_only_what_somebody_really_signed() -> None:
    leader = candidate()
    promise = Promise(cell="c0", slot=0, term=1, decided=FIRST)
    forged = promise.model_copy(update={"accepted": FORGED, "ballot": (1, B)})
    leader.handle(A, Message(promise), 0.0)
    for peer, body in ((STRANGER, promise), (B, forged)):
        (ignored,) = leader.handle(peer, Message(body), 0.0)
        assert isinstance(ignored, Ignored)
    assert leader.phase == "querying"
    assert bodies(leader.handle(C, Message(promise), 0.0), Plan)


def test_only_a_member_with_a_term_in_reach_deposes_a_leader() -> None:
    leader = running()
    for peer, term in ((STRANGER, 5), (B, (1 << 53) - 1), (B, leader.term + TERM_STEP_MAX + 1)):
        leader.handle(peer, Message(Stale(cell="c0", slot=0, term=term, decided=FIRST)), 1.0)
        assert (leader.phase, leader.term) == ("running", 1)
    leader.handle(B, Message(Stale(cell="c0", slot=0, term=5, decided=FIRST)), 1.0)
    assert (leader.phase, leader.term) == ("following", 5)


@pytest.mark.parametrize(("stages", "microbatches"), [(33, 248), (2, 4096), (1, 4096)])
def test_the_largest_job_with_many_data_nodes_has_a_plan_that_fits_a_message(
    stages: int, microbatches: int
) -> None:
    job = Job.model_validate(
        {"model": {"preset": "7b"}, "pipeline": {"stages": stages, "microbatches": microbatches}}
    )
    roster = ((A, B, C),) * stages
    first = sign_record(read_record(FIRST).model_copy(update={"roster": roster}), PEOPLE[0].sign)
    leader = Leader(A, job, first, sign=PEOPLE[0].sign, check=genuine, place=lambda *_: ())
    leader.observe(all_alive(), 0.0)
    effects: list[Effect] = []
    for node in (A, B):
        promise = Promise(cell="c0", slot=0, term=1, decided=first)
        effects += leader.handle(node, Message(promise), 0.0)
    plan = bodies(effects, Plan)[0]
    assert isinstance(plan, Plan)
    assert len(plan.microbatches) >= microbatches
    schema = Schema((Plan,))
    assert schema.unpack(schema.pack(plan)) == plan


def test_a_job_whose_plan_fits_no_message_is_refused_with_one_sentence() -> None:
    with pytest.raises(JobError, match=r"microbatches times pipeline\.stages is more than 8192"):
        parse_job("[pipeline]\nstages = 3\nmicrobatches = 4096\n")
