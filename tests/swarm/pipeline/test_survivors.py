"""Survivors without a majority go on under a new name: at once when nobody else can answer, never before."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from swarm.events import Noted
from swarm.gossip.view import Facts, Member, MemberRecord, Status, View
from swarm.job import Job
from swarm.messages import (
    Absent,
    Accept,
    CellRecord,
    Commit,
    Plan,
    Promise,
    Propose,
    Query,
    Report,
    StageSum,
    Summed,
)
from swarm.pipeline.follower import Apply, Follower
from swarm.pipeline.leader import Leader
from swarm.pipeline.office import Dissolve
from swarm.pipeline.records import read_record, record_digest, sign_record
from swarm.planning.placement import Asked, Placement
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Signed

PEOPLE = sorted((Identity.create(random.Random(i)) for i in range(5)), key=lambda identity: identity.node)
A, B, C, D, E = (NodeId(identity.node) for identity in PEOPLE)
JOB = Job.model_validate({"pipeline": {"stages": 2}, "outer": {"method": "none"}})
NOTHING = Facts()


def founded(*rows: tuple[str, ...]) -> Signed:
    record = CellRecord(
        cell="c0",
        slot=0,
        term=0,
        act="found",
        iteration=0,
        round=0,
        previous="",
        roster=rows,
        leader=A,
    )
    return sign_record(record, PEOPLE[0].sign)


FIRST = founded((A, B), (A, B, C, D, E))


def seen(verdicts: dict[NodeId, Status], facts: Facts = NOTHING) -> View:
    """Members with these verdicts; what the last of them says of itself."""
    view = View()
    for node in (A, B, C, D, E):
        record = MemberRecord(
            job="",
            node=node,
            incarnation=0,
            seq=0,
            gossip="",
            work="",
            curve_key="",
            certificate=b"",
            facts=facts if node == E else NOTHING,
        )
        view = view.with_member(Member(record, verdicts.get(node, "alive")))
    return view


def leader_of(first: Signed = FIRST) -> Leader:
    return Leader(A, JOB, first, sign=PEOPLE[0].sign, check=lambda _: True, place=lambda *_: ())


def promise(leader: Leader, **fields: Any) -> Message:
    return Message(Promise(cell="c0", slot=0, term=leader.term, decided=FIRST, **fields))


def bodies(effects: Sequence[Effect], kind: type[Body]) -> list[Body]:
    sent = [effect.message.body for effect in effects if isinstance(effect, Send)]
    return [body for body in sent if isinstance(body, kind)]


def new_cell(effects: Sequence[Effect]) -> CellRecord | None:
    """The founding record that was sent, if any."""
    founding = [body for body in bodies(effects, Commit) if isinstance(body, Commit)]
    records = [read_record(body.record) for body in founding]
    return next((record for record in records if record.act == "found"), None)


def test_survivors_go_on_as_soon_as_the_last_of_them_has_answered() -> None:
    leader = leader_of()
    assert bodies(leader.observe(seen({C: "dead", D: "left", E: "dead"}), 0.0), Query)
    assert new_cell(leader.handle(A, promise(leader), 0.0)) is None
    effects = leader.handle(B, promise(leader), 0.0)
    found = new_cell(effects)
    assert found is not None
    assert found.roster == ((A, B), (A, B))
    assert found.cell not in ("", "c0")
    (noted,) = [e for e in effects if isinstance(e, Noted)]
    assert noted.fields["reason"] == "3 members of the last roster are gone, no majority is left"


def test_the_verdict_that_comes_after_the_answers_is_acted_upon_at_once() -> None:
    leader = leader_of()
    leader.observe(seen({C: "suspect", D: "suspect", E: "suspect"}), 0.0)
    leader.handle(A, promise(leader), 0.0)
    assert new_cell(leader.handle(B, promise(leader), 0.0)) is None
    assert new_cell(leader.observe(seen({C: "dead", D: "suspect", E: "dead"}), 0.5)) is None
    assert new_cell(leader.observe(seen({C: "dead", D: "dead", E: "dead"}), 0.6)) is not None


@pytest.mark.parametrize("verdict", ["alive", "suspect"])
def test_while_one_that_could_make_a_majority_is_not_buried_the_name_stays(verdict: Status) -> None:
    """A suspect may lead the others at this moment; a name must never have two histories."""
    leader = leader_of()
    leader.observe(seen({C: "dead", D: "dead", E: verdict}), 0.0)
    effects = [*leader.handle(A, promise(leader), 0.0), *leader.handle(B, promise(leader), 0.0)]
    due = leader.deadline()
    assert due is not None
    again = leader.tick(due)
    assert new_cell([*effects, *again]) is None
    assert bodies(again, Query)


def test_a_member_that_says_it_is_elsewhere_has_answered() -> None:
    leader = leader_of()
    leader.observe(seen({C: "dead", D: "dead"}), 0.0)
    leader.handle(A, promise(leader), 0.0)
    leader.handle(B, promise(leader), 0.0)
    gone = Absent(cell="c0", slot=0, term=leader.term, reason="in cell c1")
    found = new_cell(leader.handle(E, Message(gone), 0.0))
    assert found is not None
    assert found.roster == ((A, B), (A, B))


def test_survivors_that_lack_a_stage_wait_for_the_deadline_before_they_give_up() -> None:
    leader = leader_of(founded((A,), (B, C)))
    leader.observe(seen({B: "dead", C: "dead"}), 0.0)
    assert leader.handle(A, promise(leader), 0.0) == []
    assert leader.phase == "querying"


def test_what_the_survivors_accepted_is_carried_into_the_new_cell_without_a_wait() -> None:
    """The others die while a record is proposed: it may be decided, so the new name begins with it."""
    first = founded((A,), (A, B, C))
    leader, follower = leader_of(first), Follower(A, first, lambda _: True)
    leader.observe(seen({}), 0.0)
    for node in (A, B):
        leader.handle(node, Message(Promise(cell="c0", slot=0, term=1, decided=first)), 0.0)
    follower.handle(A, Message(Query(cell="c0", slot=0, term=1)))
    report = Report(cell="c0", slot=1, term=1, done=1, partial=0, lost=0, tokens=4, loss_sum=8.0)
    leader.handle(A, Message(report), 1.0)
    effects: Sequence[Effect] = []
    for stage in (0, 1):
        total = StageSum(contributors=(A,), tokens=4, digest="00")
        about = {"cell": "c0", "slot": 1, "term": 1, "stage": stage, "round_attempt": 1}
        effects = leader.handle(A, Message(Summed(**about, total=total, squares=1.0)), 1.0)
    (propose, *_) = bodies(effects, Propose)
    (accepted,) = follower.handle(A, Message(propose))
    assert isinstance(accepted, Send) and isinstance(accepted.message.body, Accept)
    leader.handle(A, accepted.message, 1.0)
    asked = leader.observe(seen({B: "dead", C: "dead"}), 1.5)
    (query, *_) = bodies(asked, Query)
    (promised,) = follower.handle(A, Message(query))
    assert isinstance(promised, Send)
    founding = leader.handle(A, promised.message, 1.5)
    (commit, *_) = bodies(founding, Commit)
    (applied,) = follower.handle(A, Message(commit))
    assert isinstance(applied, Apply) and applied.record.act == "found"
    carried = leader.advance(applied.signed, applied.record, 1.5)
    (first_step, *_) = bodies(carried, Propose)
    assert isinstance(first_step, Propose)
    record = read_record(first_step.record)
    assert (record.act, record.iteration, record.previous) == ("step", 1, record_digest(applied.signed))
    assert not bodies(carried, Plan)


def test_who_took_a_stage_over_for_the_slot_that_survivors_finish_keeps_it() -> None:
    """No record before that slot names it: its new cell left out the last copy there was."""
    first = founded((A,), (B, C))
    taken = read_record(first).model_copy(
        update={
            "slot": 1,
            "term": 1,
            "act": "step",
            "iteration": 1,
            "previous": record_digest(first),
            "roster": ((A,), (A, C)),
            "leader": C,
        }
    )
    accepted = sign_record(taken, PEOPLE[2].sign)
    order = Placement(taker=A, stage=1, how="seed", donors=(), same_state=False, reason="nothing is left")
    leader = Leader(
        A, JOB, first, sign=PEOPLE[0].sign, check=lambda _: True, place=lambda view, last, asked: (order,)
    )
    leader.observe(seen({B: "dead", C: "dead"}), 0.0)
    told = Promise(cell="c0", slot=0, term=leader.term, decided=first, accepted=accepted, ballot=(1, C))
    (commit, *_) = bodies(leader.handle(A, Message(told), 0.0), Commit)
    assert isinstance(commit, Commit)
    found = read_record(commit.record)
    assert found.roster == ((A,), ())
    (proposed, *_) = bodies(leader.advance(commit.record, found, 0.0), Propose)
    assert isinstance(proposed, Propose)
    assert read_record(proposed.record).roster == ((A,), (A,))


def test_who_alone_heard_the_last_record_of_a_leader_that_left_tells_the_others() -> None:
    """By it B is to lead, by the one before it A: each waited for the other for minutes."""
    first = founded((C,), (A, B))
    handed_over = read_record(first).model_copy(
        update={
            "slot": 1,
            "act": "roster",
            "previous": record_digest(first),
            "roster": ((B,), (A,)),
            "leader": C,
        }
    )
    last = sign_record(handed_over, PEOPLE[2].sign)
    leader = leader_of(first)
    leader.observe(seen({}), 0.0)
    effects = [*leader.advance(last, handed_over, 0.0), *leader.observe(seen({C: "left"}), 0.1)]
    assert [e.peer for e in effects if isinstance(e, Send)] == [B]
    (commit,) = bodies(effects, Commit)
    (applied,) = Follower(B, first, lambda _: True).handle(A, Message(commit))
    assert isinstance(applied, Apply) and applied.record == handed_over
    assert bodies(leader.observe(seen({C: "left", D: "dead"}), 0.2), Commit) == [], "once is enough"


def test_a_follower_is_as_patient_as_the_steps_it_has_seen_take() -> None:
    """Who has never led has measured no slot, and would wait for minutes in a cell of milliseconds."""
    leader = leader_of(founded((C,), (A, B)))
    leader.observe(seen({}), 0.0)
    record = leader.record
    for slot in range(1, 8):
        previous = record_digest(leader.signed)
        record = record.model_copy(
            update={"slot": slot, "iteration": slot, "act": "step", "previous": previous, "leader": C}
        )
        leader.advance(sign_record(record, PEOPLE[2].sign), record, 0.1 * slot)
    due = leader.deadline()
    assert due is not None and due < 90.0


def test_who_survives_with_nothing_leaves_its_cell_for_those_who_train() -> None:
    """It had given its stage up before it was alone, and led a cell that nobody could take part in."""
    first = founded((A,), (B,))
    order = Placement(taker=A, stage=1, how="other_cell", donors=(E,), same_state=False, reason="E has it")
    leader = Leader(
        A,
        JOB,
        first,
        sign=PEOPLE[0].sign,
        check=lambda _: True,
        place=lambda view, last, asked: (order,) if any(last.roster) else (),
    )
    leader.observe(seen({B: "dead"}, Facts(cell="c1", stages=(0, 1))), 0.0)
    given_up = Absent(cell="c0", slot=0, term=leader.term, reason="others have it", stages=(0,))
    leader.handle(A, Message(given_up), 0.0)
    told = Promise(cell="c0", slot=0, term=leader.term, decided=first)
    (commit, *_) = bodies(leader.handle(A, Message(told), 0.0), Commit)
    assert isinstance(commit, Commit)
    effects = leader.advance(commit.record, read_record(commit.record), 0.0)
    assert [type(effect) for effect in effects] == [Dissolve]
    assert leader.deadline() is None


@pytest.mark.parametrize("whole", [False, True])
def test_who_survives_with_a_stage_gives_it_up_for_those_alone_who_have_all_of_them(whole: bool) -> None:
    """Two cells that lost the same stage each gave up the other, and nothing was left."""
    leader = leader_of(founded((A,), (B,)))
    there = Facts(cell="c1", stages=(0, 1) if whole else (0,))
    leader.observe(seen({B: "dead"}, there), 0.0)
    told = Promise(cell="c0", slot=0, term=leader.term, decided=leader.signed)
    effects: list[Effect] = [*leader.handle(A, Message(told), 0.0)]
    for now in range(1, 6):
        effects += leader.tick(float(now))
    assert any(isinstance(effect, Dissolve) for effect in effects) is whole


def test_a_newcomer_without_a_voice_founds_for_those_who_have_one_and_leaves() -> None:
    """In the roster of what it founded it was not, so it led nothing and waited in the old cell for ever."""
    order = Placement(taker=B, stage=0, how="seed", donors=(), same_state=False, reason="nothing is left")
    first = founded((A,), (B, C))
    leader = Leader(A, JOB, first, sign=PEOPLE[0].sign, check=lambda _: True, place=lambda *_: (order,))
    leader.observe(seen({C: "dead"}), 0.0)
    mute = Absent(cell="c0", slot=0, term=leader.term, reason="a newcomer has no voice on its first slot")
    leader.handle(A, Message(mute), 0.0)
    effects = leader.handle(B, promise(leader), 0.0)
    found = new_cell(effects)
    assert found is not None and found.roster == ((), (B,))
    assert [e.peer for e in effects if isinstance(e, Send)] == [B]
    assert isinstance(effects[-1], Dissolve)
    assert leader.deadline() is None


def test_what_survivors_lack_is_lost_though_the_roster_names_one_that_is_back_without_it() -> None:
    """Taken for held as long as that one lived, it was asked for by nobody, for ever (seed 83)."""
    order = Placement(taker=B, stage=1, how="seed", donors=(), same_state=False, reason="nothing is left")
    waited: list[float] = []

    def place(view: View, record: CellRecord, asked: Asked) -> tuple[Placement, ...]:
        waited.append(asked.lost_s.get(1, 0.0))
        return (order,) if waited[-1] >= 10.0 else ()

    leader = Leader(A, JOB, founded((A,), (B, C)), sign=PEOPLE[0].sign, check=lambda _: True, place=place)
    effects = [*leader.observe(seen({}), 0.0)]
    now = 0.0
    while new_cell(effects) is None and now < 60.0:
        effects = [*leader.handle(A, promise(leader), now)]
        for peer in (B, C):
            mute = Absent(cell="c0", slot=0, term=leader.term, reason="a newcomer has no voice")
            effects += leader.handle(peer, Message(mute), now)
        now = leader.deadline() or now
        effects += leader.tick(now)
    found = new_cell(effects)
    assert found is not None and found.roster == ((A,), ())
    assert waited[-1] >= 10.0
