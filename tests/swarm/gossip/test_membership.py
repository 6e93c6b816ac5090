"""One machine at a time: what it answers, whom it believes, and what it keeps to itself."""

from collections.abc import Sequence

import pytest
from gossip_world import machine, node_name, record_of, sign_as, signed_claim, signed_record, whole_view

from swarm.events import Noted
from swarm.gossip.effects import Forget, Know, MemberUpdated, NoticeUpdated
from swarm.gossip.membership import NOTICES_MAX, Membership
from swarm.gossip.messages import (
    HASHES_BYTES,
    Ack,
    Compare,
    Exchange,
    Nack,
    Notice,
    Ping,
    PingRequest,
    Spread,
)
from swarm.gossip.probing import RELAYS_MAX
from swarm.gossip.view import Facts
from transport.machine import Effect, NodeId, Send
from transport.wire import Body, Message, Signed

A, B, C = (node_name(index) for index in (1, 2, 3))


def meet(*others: int) -> Membership:
    membership = machine(0)
    membership.seed([signed_record(record_of(index)) for index in others], 0.0)
    return membership


def sends(effects: Sequence[Effect], kind: type[Body]) -> list[tuple[NodeId, Body]]:
    found = [(e.peer, e.message.body) for e in effects if isinstance(e, Send)]
    return [(peer, body) for peer, body in found if isinstance(body, kind)]


def run_until(membership: Membership, kind: type[Body], limit_s: float = 60.0) -> tuple[float, list[Effect]]:
    """Tick at deadlines until something of this kind is sent."""
    while (now := membership.deadline()) < limit_s:
        effects = membership.tick(now)
        if sends(effects, kind):
            return now, list(effects)
    raise AssertionError(f"no {kind.__name__} within {limit_s} s")


@pytest.mark.parametrize("others", [3, 300])
def test_a_newcomer_shows_itself_to_whoever_admitted_it(others: int) -> None:
    """Nobody else hears it before that one has told of it: its links know no stranger."""
    for seed in range(8):
        membership = machine(0, seed=seed)
        effects = membership.seed([signed_record(record_of(i)) for i in range(1, others + 1)], 0.0)
        assert A in {peer for kind in (Spread, Compare) for peer, _ in sends(effects, kind)}


def status(membership: Membership, node: NodeId = A) -> str | None:
    return membership.view.status(node)


def test_a_ping_is_answered_with_its_number() -> None:
    effects = meet(1).handle(A, Message(Ping(seq=17)), 1.0)
    assert [(peer, body.seq) for peer, body in sends(effects, Ack)] == [(A, 17)]


def test_an_unanswered_probe_asks_others_and_then_accuses() -> None:
    membership = meet(1, 2, 3)
    began, effects = run_until(membership, Ping)
    [(target, _)] = sends(effects, Ping)
    asked_at, effects = run_until(membership, PingRequest)
    assert asked_at == pytest.approx(began + membership.config.probe_timeout_s)
    assert {peer for peer, _ in sends(effects, PingRequest)} == {A, B, C} - {target}
    while status(membership, target) == "alive":
        now = membership.deadline()
        membership.tick(now)
    assert status(membership, target) == "suspect"
    assert now == pytest.approx(began + membership.config.probe_s)


@pytest.mark.parametrize("liar", [B, C])
def test_an_ack_counts_only_from_whom_was_asked(liar: NodeId) -> None:
    membership = meet(1)
    began, effects = run_until(membership, Ping)
    [(_, ping)] = sends(effects, Ping)
    membership.handle(liar, Message(Ack(seq=ping.seq)), began + 0.1)
    while status(membership) == "alive":
        now = membership.deadline()
        membership.tick(now)
    assert now == pytest.approx(began + membership.config.probe_s)


def test_missing_nacks_say_that_this_node_is_the_problem() -> None:
    healths = []
    for nacking in (0, 2):
        membership = meet(1, 2, 3)
        _, effects = run_until(membership, PingRequest)
        for peer, request in sends(effects, PingRequest)[:nacking]:
            for _ in range(3):  # one helper counts once
                membership.handle(peer, Message(Nack(seq=request.seq)), membership.deadline() - 0.5)
        while all(status(membership, each) == "alive" for each in (A, B, C)):
            membership.tick(membership.deadline())
        healths.append(membership.probing.health)
    assert healths == [2, 0]


def test_questions_for_others_are_relayed_and_answered_either_way() -> None:
    membership = meet(1, 2)
    [(target, ping)] = sends(membership.handle(A, Message(PingRequest(seq=5, target=B)), 1.0), Ping)
    assert target == B
    effects = membership.handle(B, Message(Ack(seq=ping.seq)), 1.1)
    assert [(p, b.seq) for p, b in sends(effects, Ack)] == [(A, 5)]
    membership.handle(A, Message(PingRequest(seq=6, target=B)), 1.2)
    nacked_at, effects = run_until(membership, Nack)
    assert [(p, b.seq) for p, b in sends(effects, Nack)] == [(A, 6)]
    assert nacked_at < 1.2 + membership.config.closed_probe_s


def test_relaying_is_bounded() -> None:
    membership = meet(1, 2)
    for seq in range(RELAYS_MAX):
        assert sends(membership.handle(A, Message(PingRequest(seq=seq, target=B)), 1.0), Ping)
    assert sends(membership.handle(A, Message(PingRequest(seq=999, target=B)), 1.0), Nack)
    assert sends(membership.handle(A, Message(PingRequest(seq=999, target=C)), 1.0), Nack)


def test_a_suspect_is_told_what_is_said_of_it() -> None:
    membership = meet(1, 2)
    claim = signed_claim(2, 1)
    membership.handle(B, Message(Spread(claims=(claim,))), 1.0)
    for _ in range(40):  # the claim is long spread
        membership.tick(membership.deadline())
    [(_, ack)] = sends(membership.handle(A, Message(Ping(seq=1)), membership.deadline()), Ack)
    assert claim in ack.claims or status(membership) == "dead"


def test_an_accusation_is_refuted_by_a_higher_incarnation() -> None:
    membership = meet(1)
    effects = membership.handle(A, Message(Spread(claims=(signed_claim(1, 0),))), 1.0)
    assert membership.own.record.incarnation == 2
    assert [e.member.record.incarnation for e in effects if isinstance(e, MemberUpdated)] == [2]
    assert membership.probing.health == 1


def test_who_repeats_the_obsolete_is_told_what_is_newer() -> None:
    membership = meet(1, 2)
    newer = signed_record(record_of(2, incarnation=4))
    membership.handle(B, Message(Spread(records=(newer,))), 1.0)
    obsolete = tuple(signed_claim(1, about, incarnation) for about, incarnation in ((2, 3), (0, 0), (9, 1)))
    effects = membership.handle(A, Message(Spread(claims=obsolete)), 1.0)
    [(told, spread)] = sends(effects, Spread)
    assert (told, spread.records) == (A, (newer, membership.own.signed))
    assert status(membership, B) == "alive"
    assert not membership.handle(A, Message(Spread(claims=(signed_claim(1, 9),))), 1.0)


@pytest.mark.parametrize("incarnation", [0, 2, (1 << 53) - 1])
def test_nobody_can_move_this_nodes_incarnation(incarnation: int) -> None:
    membership = meet(1)
    membership.handle(A, Message(Spread(claims=(signed_claim(1, 0, incarnation),))), 1.0)
    assert membership.own.record.incarnation == 1


@pytest.mark.parametrize(("incarnation", "becomes"), [(2, "alive"), (3, "suspect"), (4, "alive")])
def test_a_claim_counts_only_about_the_incarnation_that_is_known(incarnation: int, becomes: str) -> None:
    membership = meet(2)
    membership.seed([signed_record(record_of(1, incarnation=3))], 0.0)
    membership.handle(B, Message(Spread(claims=(signed_claim(2, 1, incarnation),))), 1.0)
    assert status(membership) == becomes


def test_a_record_of_an_earlier_start_is_outdone() -> None:
    membership = meet(1)
    old = signed_record(record_of(0, incarnation=7, seq=3))
    membership.handle(A, Message(Spread(records=(old,))), 1.0)
    assert membership.own.record.incarnation == 8


def test_what_is_not_signed_changes_nothing_and_is_counted() -> None:
    membership = meet(1, 2)
    record = signed_record(record_of(1, incarnation=5)).model_copy(update={"signature": bytes(64)})
    claim = signed_claim(2, 1).model_copy(update={"signature": bytes(64)})
    borrowed = signed_claim(2, 1).model_copy(update={"signer": node_name(1)})
    notice = Notice(topic="cell:c0", version=1, notice=sign_as(A, "wrong domain", b"x"))
    before = membership.view
    body = Spread(records=(record,), claims=(claim, borrowed), notices=(notice,))
    effects = membership.handle(A, Message(body), 1.0)
    assert membership.view == before
    assert sum(membership.refused.values()) == 4
    noted = [e for e in effects if isinstance(e, Noted)]
    assert {e.fields["peer"] for e in noted} == {A[:12]}


def test_strangers_accuse_nobody() -> None:
    membership = meet(1)
    membership.handle(A, Message(Spread(claims=(signed_claim(9, 1),))), 1.0)
    assert status(membership) == "alive"


def test_reasons_for_refusals_do_not_pile_up() -> None:
    membership = meet(1)
    for index in range(200):
        membership._refusals.note(f"reason {index}", A)
    assert len(membership.refused) == 65
    assert sum(membership.refused.values()) == 200


def test_a_member_that_moves_is_known_at_its_new_address() -> None:
    membership = meet(1)
    moved = record_of(1, incarnation=2).model_copy(update={"gossip": "tcp://10.9.9.9:1"})
    effects = membership.handle(A, Message(Spread(records=(signed_record(moved),))), 1.0)
    assert [e.endpoint.address for e in effects if isinstance(e, Know)] == ["tcp://10.9.9.9:1"]


def test_facts_are_coalesced_unless_the_place_changes() -> None:
    membership = meet(1)
    seqs = [membership.own.record.seq]
    for iteration in range(1, 6):
        assert membership.set_facts(Facts(iteration=iteration), 1.0 + iteration / 100) == []
    membership.set_facts(Facts(iteration=6, cell="c0", stages=(1,), state="training"), 1.1)
    seqs.append(membership.own.record.seq)
    membership.set_facts(Facts(iteration=7, cell="c0", stages=(1,), state="training"), 1.2)
    while membership.deadline() < 3.0:
        membership.tick(membership.deadline())
    seqs.append(membership.own.record.seq)
    assert seqs == [0, 1, 2]
    assert membership.view.members[membership.me].facts.iteration == 7


def test_facts_that_change_back_are_not_told() -> None:
    membership = meet(1)
    membership.set_facts(Facts(iteration=1), 0.1)
    membership.set_facts(Facts(), 0.2)
    while membership.deadline() < 3.0:
        membership.tick(membership.deadline())
    assert membership.own.record.seq == 0


def notice_of(version: int, topic: str = "cell:c0") -> tuple[str, int, Signed]:
    return topic, version, sign_as(A, "notice", f"{topic} {version}".encode())


def test_only_a_newer_notice_replaces_one() -> None:
    membership = meet(1)
    versions = [
        bool([e for e in membership.publish(*notice_of(version), 1.0) if isinstance(e, NoticeUpdated)])
        for version in (3, 3, 2, 4)
    ]
    assert versions == [True, False, False, True]


def test_notices_are_bounded() -> None:
    membership = meet(1)
    for index in range(NOTICES_MAX + 3):
        membership.publish(*notice_of(1, f"cell:{index}"), 1.0)
    assert membership.refused == {"too many notices": 3}
    assert [e for e in membership.publish(*notice_of(2, "cell:0"), 1.0) if isinstance(e, NoticeUpdated)]


def test_whole_views_are_not_given_away_at_a_strangers_pace() -> None:
    membership = meet(1)
    ask = Message(Compare(hashes=bytes(HASHES_BYTES), answer=True, newcomer=True, whole=True))
    answers = [bool(sends(membership.handle(A, ask, 1.0 + index / 10), Exchange)) for index in range(15)]
    assert answers == [index in (0, 10) for index in range(15)]
    assert not sends(membership.handle(node_name(9), ask, 9.0), Exchange)


def test_the_revoked_are_out_and_stay_out() -> None:
    membership = meet(1, 2)
    effects = membership.revoke([A], 1.0)
    assert Forget(A) in effects
    assert (status(membership), membership.view.members[A].reason) == ("left", "revoked")
    again = Message(Spread(records=(signed_record(record_of(1, incarnation=9)),)))
    assert not membership.handle(A, again, 2.0)
    assert not membership.handle(B, again, 2.0)
    assert not membership.handle(A, Message(Ping(seq=1)), 2.0)
    assert not membership.handle(B, Message(Spread(claims=(signed_claim(1, 2),))), 2.0)
    assert (status(membership), status(membership, B)) == ("left", "alive")
    told = {signed.signer for message in whole_view(membership) for signed in message.body.records}
    assert told == {B, membership.me}


def test_a_stalled_node_doubts_itself_before_others() -> None:
    membership = meet(1, 2, 3)
    _, effects = run_until(membership, Ping)
    woke = membership.deadline() + 7.0
    effects = membership.tick(woke)
    assert [e.fields["seconds"] for e in effects if isinstance(e, Noted) and e.kind == "stalled"] == [7.0]
    assert membership.own.record.incarnation == 2
    assert {status(membership, each) for each in (A, B, C)} == {"alive"}
    assert membership.probing.health == 1


def test_a_stalled_node_gives_suspects_their_time_back() -> None:
    membership = meet(1, 2, 3)
    membership.tick(membership.deadline())
    membership.handle(B, Message(Spread(claims=(signed_claim(2, 1), signed_claim(3, 1)))), 2.0)
    membership.tick(membership.deadline() + 60.0)
    assert status(membership) == "suspect"
    buried = membership.deadline()
    while status(membership) == "suspect":
        buried = membership.deadline()
        membership.tick(buried)
    assert buried > 60.0 + 10.0


def test_a_late_start_is_no_stall() -> None:
    membership = meet(1, 2, 3)
    effects = membership.tick(membership.deadline() + 7.0)
    assert not [e for e in effects if isinstance(e, Noted)]
    assert membership.own.record.incarnation == 1


def test_the_revoked_are_not_let_in_even_if_nobody_has_met_them() -> None:
    assert meet(1).revoke([B], 1.0) == [Forget(B)]


def test_the_long_dead_are_forgotten() -> None:
    membership = meet(1)
    membership.handle(A, Message(Spread(claims=(signed_claim(1, 1, dead=True),))), 1.0)
    assert status(membership) == "left"
    later = 1.0 + membership.config.reap_s + membership.config.push_pull_s + 1
    effects = [e for time in (later, later + 1) for e in membership.tick(time)]
    assert Forget(A) in effects
    assert A not in membership.view.members
    assert A not in membership.register.rows
