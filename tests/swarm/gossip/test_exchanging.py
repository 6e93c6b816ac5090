"""Large swarms: views that differ tell each other what differs; what most have is told by its mark."""

import random

import pytest
from gossip_world import machine, node_name, record_of, signed_claim, signed_record
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gossip.comparing import (
    AGE_MAX_S,
    Shown,
    mark,
    mark_of_update,
    pack_marks,
    pack_shown,
    read_marks,
    read_shown,
    shown,
)
from swarm.gossip.dissemination import ASK_AGAIN_BATCHES, REMEMBERED_BATCHES, REMEMBERED_MAX, Dissemination
from swarm.gossip.membership import Membership
from swarm.gossip.messages import MARK_BYTES, WANTED_MAX, Ack, Compare, Exchange, Marks, Ping, Spread, Updates
from transport.machine import NodeId, Send
from transport.wire import Message, Signed

MEMBERS = 400


def member(index: int, *, without: int | None = None) -> Membership:
    """One that has long met everybody, but for one of them."""
    others = [other for other in range(MEMBERS) if other not in (index, without)]
    one = machine(index, seed=index)
    one.seed([signed_record(record_of(other)) for other in others], 0.0)
    one._exchanging.was_told()
    while one._spreading.queue.take(MEMBERS):
        pass
    return one


def talk(members: dict[NodeId, Membership], sends: list[tuple[NodeId, Send]], now: float) -> list[Updates]:
    """Hand over what they send each other until nothing is left to say; what was said."""
    said: list[Updates] = []
    while sends:
        sender, send = sends.pop(0)
        if send.peer not in members:
            continue
        said.append(send.message.body)  # type: ignore[arg-type]
        effects = members[send.peer].handle(sender, send.message, now)
        sends += [(send.peer, effect) for effect in effects if isinstance(effect, Send)]
    return said


def rows_told(said: list[Updates]) -> int:
    return sum(len(body.records) + len(body.renewals) for body in said if isinstance(body, Exchange))


@pytest.mark.parametrize("who_asks", [0, 1])
def test_of_two_large_views_only_what_is_newer_travels(who_asks: int) -> None:
    """Its bucket holds three rows, and each side a state of the row that differs."""
    members = {one.me: one for one in (member(0), member(1))}
    knows, other = members.values()
    knows.handle(node_name(9), Message(Spread(records=(signed_record(record_of(7, seq=3)),))), 50.0)
    asking = (knows, other)[who_asks]
    [ask] = asking._exchanging._compare([(other, knows)[who_asks].me])
    said = talk(members, [(asking.me, ask)], 60.0)
    assert [type(body) for body in said][:2] == [Compare, Marks]
    assert rows_told(said) == 1
    assert other.view.members[node_name(7)].record.seq == 3
    assert knows.register.hashes.packed() == other.register.hashes.packed()


def test_who_lacks_a_member_is_told_its_whole_record() -> None:
    members = {one.me: one for one in (member(0), member(1, without=7))}
    knows, other = members.values()
    [ask] = knows._exchanging._compare([other.me])
    said = talk(members, [(knows.me, ask)], 60.0)
    assert other.view.members[node_name(7)].record == record_of(7)
    assert rows_told(said) == 2, "first its end, as to who knows it, then the whole"


def test_a_newcomer_is_told_all_at_once() -> None:
    knows, newcomer = member(0), machine(1)
    newcomer.seed([signed_record(record_of(0)), *(signed_record(record_of(i)) for i in range(300, 340))], 0.0)
    [ask] = newcomer._exchanging._compare([knows.me])
    talk({knows.me: knows, newcomer.me: newcomer}, [(newcomer.me, ask)], 60.0)
    assert set(newcomer.view.members) == set(knows.view.members)


def test_what_another_told_is_told_on_by_its_mark_and_given_to_who_asks() -> None:
    members = {one.me: one for one in (member(0), member(1))}
    teller, other = members.values()
    news = Message(Spread(records=(signed_record(record_of(7, incarnation=2)),)))
    teller.handle(node_name(8), news, 50.0)
    [ack] = [e for e in teller.handle(node_name(9), Message(Ping(seq=1)), 50.1) if isinstance(e, Send)]
    assert len(ack.message.body.renewals) == 1 and not ack.message.body.told  # type: ignore[attr-defined]
    teller.handle(node_name(9), news, 50.2)
    [ack] = [e for e in teller.handle(other.me, Message(Ping(seq=1)), 50.3) if isinstance(e, Send)]
    body = ack.message.body
    assert isinstance(body, Ack) and body.told and not body.renewals
    said = talk(members, [(teller.me, ack)], 50.4)
    assert [bool(each.wanted) for each in said] == [False, True, False]
    assert other.view.members[node_name(7)].record.incarnation == 2


def test_what_is_wanted_is_given_no_oftener_than_answered() -> None:
    teller = member(0)
    teller.handle(node_name(8), Message(Spread(records=(signed_record(record_of(7, incarnation=2)),))), 50.0)
    row = teller.register.rows[node_name(7)]
    ask = Message(Spread(wanted=pack_marks([mark_of_update(row.signed, "records")])))
    given_at = [at for at in range(30) if teller.handle(node_name(9), ask, 50.0 + at / 10)]
    assert given_at == [0, 10, 20]
    assert not teller.handle(node_name(MEMBERS + 1), ask, 60.0), "a stranger gets nothing"


def test_an_update_that_does_not_come_is_asked_for_again() -> None:
    queue, wanted = Dissemination(4, 10_000), mark(node_name(1), 7)
    assert queue.lacking([wanted]) == [wanted]
    queue.asked([wanted])
    asked = []
    for _ in range(2 * ASK_AGAIN_BATCHES):
        queue.take(MEMBERS)
        asked.append(bool(queue.lacking([wanted])))
    assert asked == [False] * (ASK_AGAIN_BATCHES - 1) + [True] * (ASK_AGAIN_BATCHES + 1)


def test_what_came_is_not_asked_for_again_though_it_was_no_news() -> None:
    queue, claim = Dissemination(4, 10_000), signed_claim(1, 2)
    wanted = mark_of_update(claim, "claims")
    queue.asked([wanted])
    queue.hear(claim, "claims")
    for _ in range(2 * ASK_AGAIN_BATCHES):
        queue.take(MEMBERS)
        assert not queue.lacking([wanted])
    assert not list(queue.find([wanted])), "nor given: it may be wrong"


def test_a_lie_does_not_stand_for_what_it_looks_like() -> None:
    """It bears the signature of a record that is yet to come, which is all that its mark tells."""
    one, truth = member(0), signed_record(record_of(7, incarnation=2))
    lie = truth.model_copy(update={"payload": signed_record(record_of(7, incarnation=3)).payload})
    told = pack_marks([mark_of_update(truth, "records")])
    one.handle(node_name(8), Message(Spread(records=(lie,))), 50.0)
    assert one.view.members[node_name(7)].record.incarnation == 1
    effects = one.handle(node_name(9), Message(Spread(told=told)), 50.1)
    assert [e.message.body.wanted for e in effects if isinstance(e, Send)] == [told]  # type: ignore[attr-defined]


def test_updates_are_remembered_for_a_while() -> None:
    queue = Dissemination(1, 10_000)
    for index in range(REMEMBERED_MAX + 100):
        queue.asked([mark(node_name(index), index)])
    assert len(queue._remembered) == REMEMBERED_MAX
    for _ in range(REMEMBERED_BATCHES + 1):
        queue.take(MEMBERS)
    queue.asked([mark(node_name(1), 1)])
    assert len(queue._remembered) == 1


SHOWN = st.builds(
    lambda index, hash_, age_s: shown(node_name(index), hash_, age_s),
    st.integers(0, 99),
    st.integers(0, 2**31),
    st.floats(-5, 1e6),
)


@settings(deadline=None)
@given(st.lists(SHOWN))
def test_marks_come_back_as_they_were(marks: list[Shown]) -> None:
    assert read_shown(pack_shown(marks)) == marks
    assert read_marks(pack_marks(each.mark for each in marks)) == [each.mark for each in marks]
    assert all(0 <= each.age_s <= AGE_MAX_S for each in marks)


def test_claims_that_are_enough_for_a_suspicion_have_one_mark() -> None:
    def marked(*claims: Signed) -> int:
        return len({mark_of_update(claim, "claims") for claim in claims})

    assert marked(signed_claim(1, 2, seconded=1), signed_claim(3, 2, seconded=2)) == 1
    assert marked(signed_claim(1, 2, seconded=1), signed_claim(1, 2, 2, seconded=1)) == 2
    assert marked(signed_claim(1, 2, seconded=1), signed_claim(3, 2)) == 2
    assert marked(signed_claim(1, 2), signed_claim(3, 2)) == 2
    assert (
        marked(signed_claim(1, 2, closed=True, seconded=1), signed_claim(3, 2, closed=True, seconded=1)) == 2
    )


@settings(deadline=None, max_examples=30)
@given(
    st.binary(max_size=200), st.binary(max_size=200), st.binary(min_size=1, max_size=128), st.integers(0, 9)
)
def test_any_marks_are_answered_within_bounds(told: bytes, there: bytes, buckets: bytes, seed: int) -> None:
    one = machine(0, seed=seed)
    one.seed([signed_record(record_of(index)) for index in range(1, 40)], 0.0)
    wanted = random.Random(seed).randbytes(WANTED_MAX * MARK_BYTES)
    body = Marks(buckets=buckets, shown=there, told=told, wanted=wanted)
    for effect in one.handle(node_name(1), Message(body), 1.0):
        if isinstance(effect, Send):
            assert effect.peer == node_name(1)
            assert len(effect.message.body.wanted) <= WANTED_MAX * MARK_BYTES  # type: ignore[attr-defined]


def test_a_member_of_a_small_swarm_calls_all_of_its_few_dead_at_each_comparison() -> None:
    """Seed 396: it called one at a time, and who lived behind a cut waited for the really dead."""
    one, now = machine(0), 0.0
    dead = {node_name(other) for other in (1, 2, 3, 4)}
    one.seed([signed_record(record_of(other)) for other in (1, 2, 3, 4)], now)
    while {one.view.status(node) for node in dead} != {"dead"}:
        now = one.deadline()
        one.tick(now)
    for _ in range(3):
        now = one._exchanging.deadline()
        assert {send.peer for send in one._exchanging.tick(now)} == dead
