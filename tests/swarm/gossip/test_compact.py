"""A renewal proves what a whole record proves: nothing else is believed, and the unknown is asked for."""

from typing import Any

import pytest
from gossip_world import machine, node_name, record_of, signed_claim, signed_record
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gossip.compact import (
    begin_alike,
    claim_from,
    completed,
    packed_claim,
    packed_renewal,
    renewal_from,
    renewal_of,
)
from swarm.gossip.membership import Membership
from swarm.gossip.messages import HASHES_BYTES, Compare, Exchange, Spread, Want
from swarm.gossip.records import Untrusted, read_claim
from transport.machine import Send
from transport.wire import Message

A, B = node_name(1), node_name(2)


def meet(*records: Any) -> Membership:
    membership = machine(0)
    membership.seed([signed_record(record) for record in records], 0.0)
    return membership


def renewed(index: int = 1, **changes: Any) -> Any:
    renewal = renewal_of(signed_record(record_of(index, **changes)))
    assert renewal is not None
    return renewal


@settings(deadline=None)
@given(
    st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.binary(max_size=2000), st.text("abc", max_size=60)
)
def test_a_renewal_gives_back_the_record_to_whoever_has_an_earlier_one(
    incarnation: int, seq: int, certificate: bytes, platform: str
) -> None:
    earlier = record_of(1).model_copy(update={"certificate": certificate})
    later = record_of(1, incarnation=incarnation, seq=seq, platform=platform, iteration=1)
    later = later.model_copy(update={"certificate": certificate})
    known = record_of(1, iteration=2).model_copy(update={"certificate": certificate})
    renewal = renewal_of(signed_record(later))
    assert renewal is not None
    assert renewal_from(packed_renewal(renewal)) == renewal
    assert completed(renewal, signed_record(known).payload) == signed_record(later)
    moved = known.model_copy(update={"gossip": "tcp://10.9.9.9:1"})
    assert completed(renewal, signed_record(moved).payload) is None
    assert begin_alike(signed_record(known), signed_record(later))
    assert not begin_alike(signed_record(moved), signed_record(later))
    assert earlier.version == (1, 0)


def test_a_renewal_is_a_tenth_of_a_record_with_a_certificate() -> None:
    record = record_of(1, incarnation=7).model_copy(update={"certificate": bytes(960)})
    signed = signed_record(record)
    renewal = renewal_of(signed)
    assert renewal is not None
    assert len(packed_renewal(renewal)) < 140 < len(signed.payload) / 8


def test_a_renewal_revives_a_member() -> None:
    membership = meet(record_of(1), record_of(2))
    body = Spread(renewals=(renewed(incarnation=4),))
    membership.handle(B, Message(body), 1.0)
    assert membership.view.members[A].record == record_of(1, incarnation=4)
    assert not membership.refused


def test_a_forged_renewal_changes_nothing_and_is_counted() -> None:
    membership = meet(record_of(1), record_of(2))
    before = membership.view
    forged = renewal_from(packed_renewal(renewed(incarnation=4))[:-1] + b"\x05")
    membership.handle(B, Message(Spread(renewals=(forged,))), 1.0)
    assert membership.view == before
    assert sum(membership.refused.values()) == 1


@pytest.mark.parametrize("known", [False, True])
def test_who_cannot_complete_a_renewal_asks_its_teller_for_the_record(known: bool) -> None:
    """Whether the node is unknown, or has moved: nobody is in a view without a verified record."""
    moved = record_of(1, incarnation=4).model_copy(update={"gossip": "tcp://10.9.9.9:1"})
    membership = meet(record_of(2), *([record_of(1)] if known else []))
    renewal = renewal_of(signed_record(moved))
    effects = membership.handle(B, Message(Spread(renewals=(renewal,))), 1.0)
    asked = [e for e in effects if isinstance(e, Send) and isinstance(e.message.body, Want)]
    assert [(e.peer, e.message.body.nodes) for e in asked] == [(B, (A,))]
    teller = machine(2)
    teller.seed([signed_record(moved), membership.own.signed], 0.0)
    [answer, *_] = [e for e in teller.handle(membership.me, asked[0].message, 1.1) if isinstance(e, Send)]
    assert isinstance(answer.message.body, Exchange)
    membership.handle(B, answer.message, 1.2)
    assert membership.view.members[A].record == moved


def test_renewals_of_the_unknown_are_asked_for_no_oftener_than_answered() -> None:
    membership = meet(record_of(2))
    asked = 0
    for index in range(100):
        effects = membership.handle(B, Message(Spread(renewals=(renewed(10 + index),))), 1.0 + index / 100)
        asked += sum(isinstance(e, Send) and isinstance(e.message.body, Want) for e in effects)
    assert asked == 1
    assert not membership.handle(node_name(9), Message(Spread(renewals=(renewed(200),))), 9.0)


def test_members_that_know_each_other_exchange_renewals_and_strangers_whole_records() -> None:
    membership = machine(0)
    membership.seed([signed_record(record_of(index)) for index in range(1, 80)], 0.0)
    for at, whole in ((1.0, False), (3.0, True)):
        ask = Compare(hashes=bytes(HASHES_BYTES), answer=False, newcomer=True, whole=whole)
        pages = [e.message.body for e in membership.handle(A, Message(ask), at) if isinstance(e, Send)]
        assert sum(len(page.records) for page in pages) == 80 * whole
        assert sum(len(page.renewals) for page in pages) == 80 * (not whole)


@pytest.mark.parametrize("how", [{}, {"closed": True}, {"dead": True}, {"closed": True, "dead": True}])
def test_a_claim_travels_in_137_bytes_and_comes_back_the_same(how: dict[str, bool]) -> None:
    signed = signed_claim(3, 1, (1 << 53) - 1, **how)
    data = packed_claim(signed)
    assert len(data) == 137
    assert claim_from(data) == signed
    claim = read_claim(signed)
    assert (claim.node, claim.by, claim.incarnation) == (A, node_name(3), (1 << 53) - 1)
    assert (claim.closed, claim.dead) == (how.get("closed", False), how.get("dead", False))


@pytest.mark.parametrize("payload", [b"", bytes(40), bytes(40) + b"\x10", bytes(32) + b"\xff" * 8 + b"\x00"])
def test_what_is_no_claim_is_not_read_as_one(payload: bytes) -> None:
    with pytest.raises(Untrusted):
        read_claim(signed_claim(3, 1).model_copy(update={"payload": payload}))


@pytest.mark.parametrize("value", [b"", bytes(136), bytes(138), 7, "x" * 137, None])
def test_other_bytes_are_no_claims_and_no_renewals(value: object) -> None:
    with pytest.raises(ValueError, match="claim"):
        claim_from(value)
    with pytest.raises(ValueError, match="renewal"):
        renewal_from(value if value != bytes(136) and value != bytes(138) else bytes(102))
