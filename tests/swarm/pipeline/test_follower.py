"""An acceptor keeps its word, and forgets only what a newcomer may forget."""

import random

import pytest

from swarm.messages import Absent, Accept, CellRecord, Close, Commit, Plan, Promise, Propose, Query, Stale
from swarm.pipeline.election import Election
from swarm.pipeline.follower import ASKED_MAX, Apply, BeginSlot, CloseSlot, Follower, Ignored
from swarm.pipeline.records import TERM_STEP_MAX, read_record, record_digest, sign_record
from transport.identity import Identity
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Signed

PEOPLE = sorted((Identity.create(random.Random(i)) for i in range(3)), key=lambda identity: identity.node)
A, B, C = (NodeId(identity.node) for identity in PEOPLE)
ROSTER = ((A, B, C),)
STRANGER = NodeId("f" * 64)
OUTSIDER = Identity.create(random.Random(77))


def record(slot: int, term: int = 0, previous: str = "", *, leader: int = 0, loss: float = 0.0) -> Signed:
    made = CellRecord(
        cell="c0",
        slot=slot,
        term=term,
        act="step" if slot else "found",
        iteration=slot,
        round=0,
        previous=previous,
        roster=ROSTER,
        loss=loss,
        leader=PEOPLE[leader].node,
    )
    return sign_record(made, PEOPLE[leader].sign)


FIRST = record(0)
BASE = record_digest(FIRST)


def follower(*, newcomer: bool = False) -> Follower:
    return Follower(C, FIRST, lambda signed: True, newcomer=newcomer)


def bodies(effects: list[Effect] | tuple[Effect, ...]) -> list[Body]:
    return [effect.message.body for effect in effects if isinstance(effect, Send)]


def propose(signed: Signed, term: int, slot: int = 1) -> Message:
    return Message(Propose(cell="c0", slot=slot, term=term, record=signed))


def query(term: int, slot: int = 0, cell: str = "c0") -> Message:
    return Message(Query(cell=cell, slot=slot, term=term))


def test_a_promise_names_the_ballot_under_which_a_record_was_accepted() -> None:
    """Proposed again it keeps its old term; by that alone a newer rival would seem to win."""
    acceptor = follower()
    old = record(1, 1, BASE)
    assert isinstance(bodies(acceptor.handle(A, propose(old, 1)))[0], Accept)
    acceptor.handle(B, propose(old, 5))
    (promise,) = bodies(acceptor.handle(A, query(6)))
    assert isinstance(promise, Promise)
    assert promise.accepted == old
    assert promise.ballot == (5, B)


def test_a_candidate_proposes_what_the_newest_ballot_accepted() -> None:
    old, rival = record(1, 1, BASE), record(1, 2, BASE, leader=1, loss=9.0)
    election = Election(A)
    fields = {"cell": "c0", "slot": 0, "term": 4, "decided": FIRST}
    election.promises = {
        B: Promise(**fields, accepted=rival, ballot=(2, B)),
        C: Promise(**fields, accepted=old, ballot=(3, C)),
    }
    assert election.unfinished(read_record(FIRST), BASE) == old


def test_what_a_laggard_accepted_long_ago_is_not_proposed_again() -> None:
    second = record(1, 1, BASE)
    old = record(1, 1, BASE, loss=3.0)
    election = Election(A)
    election.promises = {B: Promise(cell="c0", slot=0, term=4, decided=FIRST, accepted=old, ballot=(1, A))}
    assert election.unfinished(read_record(second), record_digest(second)) is None


def test_a_lower_ballot_is_refused_after_a_promise() -> None:
    acceptor = follower()
    acceptor.handle(B, query(5))
    (stale,) = bodies(acceptor.handle(A, propose(record(1, 4, BASE), 4)))
    assert isinstance(stale, Stale)
    assert (stale.term, stale.leader) == (5, B)


def test_a_candidate_that_is_behind_raises_no_term() -> None:
    acceptor = follower()
    acceptor.handle(A, Message(Commit(cell="c0", slot=1, term=1, record=record(1, 1, BASE))))
    (stale,) = bodies(acceptor.handle(B, query(9, slot=0)))
    assert isinstance(stale, Stale)
    assert acceptor.term == 1


def test_a_stranger_cannot_become_leader() -> None:
    acceptor = follower()
    (answer,) = bodies(acceptor.handle(NodeId("f" * 64), query(9)))
    assert isinstance(answer, Stale)
    assert acceptor.term == 0


def test_a_newcomer_has_no_voice_on_its_first_slot() -> None:
    """It may have promised something before it lost its memory."""
    acceptor = follower(newcomer=True)
    effects = acceptor.handle(A, propose(record(1, 1, BASE), 1))
    assert [type(effect) for effect in effects] == [Ignored]
    (answer,) = bodies(acceptor.handle(B, query(2)))
    assert isinstance(answer, Absent)
    first = record(1, 2, BASE)
    acceptor.handle(A, Message(Commit(cell="c0", slot=1, term=2, record=first)))
    second = record(2, 3, record_digest(first))
    (accept,) = bodies(acceptor.handle(A, propose(second, 3, slot=2)))
    assert isinstance(accept, Accept)


def test_who_moved_to_another_cell_says_so() -> None:
    (answer,) = bodies(follower().handle(A, query(3, cell="c9")))
    assert isinstance(answer, Absent)
    assert answer.cell == "c9"


def test_missed_records_are_asked_for_and_then_skipped() -> None:
    acceptor = follower()
    commits = []
    previous = BASE
    for slot in range(1, ASKED_MAX + 4):
        signed = record(slot, 1, previous)
        previous = record_digest(signed)
        commits.append(Message(Commit(cell="c0", slot=slot, term=1, record=signed)))
    for commit in commits[1 : 1 + ASKED_MAX]:
        (stale,) = bodies(acceptor.handle(A, commit))
        assert isinstance(stale, Stale)
        assert stale.slot == 0
    (applied,) = acceptor.handle(A, commits[-1])
    assert isinstance(applied, Apply)
    assert applied.skipped


def test_a_record_behind_a_gap_cannot_vouch_for_its_own_leader() -> None:
    acceptor = follower()
    alone = ((OUTSIDER.node,),) * len(ROSTER)
    fields = {"slot": 500, "roster": alone, "previous": "ab" * 16, "leader": OUTSIDER.node}
    signed = sign_record(read_record(FIRST).model_copy(update=fields | {"act": "step"}), OUTSIDER.sign)
    commit = Message(Commit(cell="c0", slot=500, term=1, record=signed))
    before = acceptor.record
    for _ in range(ASKED_MAX + 1):
        effects = acceptor.handle(NodeId(OUTSIDER.node), commit)
        assert not any(isinstance(effect, Apply) for effect in effects)
    assert acceptor.record == before


def test_the_next_slot_of_another_history_is_not_adopted() -> None:
    acceptor = follower()
    other = record(1, 1, "ab" * 16)
    for _ in range(ASKED_MAX + 1):
        (ignored,) = acceptor.handle(A, Message(Commit(cell="c0", slot=1, term=1, record=other)))
        assert isinstance(ignored, Ignored)
    assert acceptor.record.slot == 0


def test_a_plan_on_another_history_is_answered_absent() -> None:
    plan = Plan(cell="c0", slot=1, term=1, iteration=1, base="00", roster=ROSTER, microbatches=())
    (answer,) = bodies(follower().handle(A, Message(plan)))
    assert isinstance(answer, Absent)


def plan(term: int) -> Message:
    return Message(Plan(cell="c0", slot=1, term=term, iteration=1, base=BASE, roster=ROSTER, microbatches=()))


def test_a_plan_is_begun_once_however_often_it_comes() -> None:
    """Begun again it would forget which microbatches it had counted."""
    acceptor = follower()
    kinds = [type(effect) for term in (1, 1, 2) for effect in acceptor.handle(A, plan(term))]
    assert kinds == [BeginSlot, Ignored, BeginSlot]


def test_a_plan_that_its_close_has_overtaken_is_not_begun() -> None:
    acceptor = follower()
    close = Close(cell="c0", slot=1, term=1, act="step", round_attempt=0, roster=ROSTER)
    kinds = [type(effect) for asked in (Message(close), plan(1)) for effect in acceptor.handle(A, asked)]
    assert kinds == [CloseSlot, Ignored]


@pytest.mark.parametrize(("peer", "term"), [(STRANGER, 1), (A, (1 << 53) - 1), (A, TERM_STEP_MAX + 1)])
def test_neither_a_stranger_nor_a_far_term_moves_the_term(peer: NodeId, term: int) -> None:
    """The last possible term would leave nobody a term to stand for election in."""
    plan = Plan(cell="c0", slot=1, term=term, iteration=1, base=BASE, roster=ROSTER, microbatches=())
    close = Close(cell="c0", slot=1, term=term, act="step", round_attempt=1, roster=ROSTER)
    acceptor = follower()
    for message in (Message(plan), Message(close), propose(record(1, 1, BASE), term), query(term)):
        effects = acceptor.handle(peer, message)
        assert not {type(effect) for effect in effects} & {BeginSlot, CloseSlot}
        assert not {type(body) for body in bodies(effects)} & {Accept, Promise}
    acceptor.adopt_term((1 << 53) - 1)
    assert acceptor.term == 0


def changed(**fields: object) -> CellRecord:
    return read_record(record(1, 1, BASE)).model_copy(update=fields)


@pytest.mark.parametrize(
    "wrong",
    [
        sign_record(changed(), PEOPLE[1].sign),
        sign_record(changed(leader=OUTSIDER.node), OUTSIDER.sign),
        sign_record(changed(roster=(*ROSTER, ())), PEOPLE[0].sign),
        sign_record(changed(term=(1 << 53) - 1), PEOPLE[0].sign),
        sign_record(changed(iteration=2), PEOPLE[0].sign),
        sign_record(changed(act="round", iteration=1), PEOPLE[0].sign),
        sign_record(changed(act="round", iteration=0, round=2), PEOPLE[0].sign),
        sign_record(changed(slot=2, iteration=3), PEOPLE[0].sign),
        sign_record(changed(act="found", cell="c0~x", iteration=0, leader=OUTSIDER.node), OUTSIDER.sign),
        sign_record(changed(act="found", cell="c0~x", iteration=0, roster=((C, STRANGER),)), PEOPLE[0].sign),
        sign_record(changed(act="found", cell="c0~x", iteration=0, slot=7), PEOPLE[0].sign),
    ],
)
def test_a_record_is_only_what_a_leader_of_the_last_roster_may_make(wrong: Signed) -> None:
    acceptor = follower()
    (ignored,) = acceptor.handle(A, Message(Commit(cell="c0", slot=1, term=1, record=wrong)))
    assert isinstance(ignored, Ignored)
    assert acceptor.record.slot == 0


def test_what_remains_of_a_cell_is_founded_by_one_of_it() -> None:
    acceptor = follower()
    found = sign_record(changed(act="found", cell="c0~x", iteration=0, roster=((A, C),)), PEOPLE[0].sign)
    (applied,) = acceptor.handle(A, Message(Commit(cell="c0", slot=1, term=1, record=found)))
    assert isinstance(applied, Apply)
    assert acceptor.cell == "c0~x"


def test_a_reason_never_repeats_what_a_peer_wrote() -> None:
    acceptor = follower()
    reasons = set()
    for index in range(100):
        for effect in acceptor.handle(A, query(1, cell=f"x{index}")):
            if isinstance(effect, Ignored):
                reasons.add(effect.reason)
    assert reasons == {"of another cell"}
