"""How much a member may say of itself: whatever many say together fits what everybody can read."""

import hashlib

import pytest
from gossip_world import SCHEMA, machine, node_name, record_of, sign_as, signed_claim, signed_record
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from swarm.events import Noted
from swarm.gossip.messages import Compare, Spread
from swarm.gossip.view import RECORD_BYTES_MAX, Facts, MemberRecord, read_member
from transport.machine import Effect, Send
from transport.wire import Message, Signed, WireError

STAGES = 256


def largest(index: int, incarnation: int = 1) -> MemberRecord:
    """Every field as large as it may be."""
    digest = hashlib.blake2b(digest_size=32).hexdigest()
    record = record_of(
        index,
        incarnation=incarnation,
        seq=(1 << 53) - 1,
        role="coordinator",
        cell="c" * 64,
        stages=tuple(range(STAGES)),
        iteration=(1 << 53) - 1,
        round=(1 << 53) - 1,
        hashes={str(stage): digest for stage in range(STAGES)},
        state="restoring",
        loss=0.1,
        speed_flops=0.1,
        memory_bytes=(1 << 53) - 1,
        platform="p" * 128,
    )
    address = "sim://".ljust(128, "x")
    said = {"job": "a" * 64, "gossip": address, "work": address, "curve_key": "k" * 40}
    return record.model_copy(update={**said, "certificate": bytes(4096)})


def test_whoever_holds_every_stage_may_say_so() -> None:
    signed = signed_record(largest(1))
    assert RECORD_BYTES_MAX - 2048 < len(signed.payload) <= RECORD_BYTES_MAX
    assert read_member(signed).facts.stages == tuple(range(STAGES))


def test_a_larger_record_is_no_record() -> None:
    record = largest(1).model_copy(update={"certificate": bytes(4096 + 4096)})
    with pytest.raises(WireError, match=f"member record: over {RECORD_BYTES_MAX} bytes"):
        read_member(signed_record(record))


@pytest.mark.parametrize("key", ["", "-1", "01", "256", "1000", "x", "x" * 60_000, "1\n", "\u0661"])
def test_hashes_are_of_stages_and_of_nothing_else(key: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        Facts(hashes={key: ""})


def fat_record(index: int, incarnation: int) -> Signed:
    """What the wire lets through in one text, if nobody looks at it."""
    keys = {("x" * 60_000) + str(each): "" for each in range(4)}
    facts = Facts.model_construct(hashes=keys)
    record = record_of(index, incarnation=incarnation).model_copy(update={"facts": facts})
    return signed_record(record)


def messages_of(effects: list[Effect]) -> list[bytes]:
    return [SCHEMA.pack(effect.message.body) for effect in effects if isinstance(effect, Send)]


def test_fat_records_that_somebody_repeats_old_claims_of_end_nobody() -> None:
    membership = machine(0)
    for index in range(1, 8):
        told = membership.handle(node_name(index), Message(Spread(records=(fat_record(index, 2),))), 0.0)
        messages_of(list(told))
    assert not membership.view.members.keys() - {node_name(0)}
    claims = tuple(signed_claim(1, index, incarnation=1) for index in range(1, 8))
    messages_of(list(membership.handle(node_name(1), Message(Spread(claims=claims)), 0.1)))
    assert membership.refused == {f"member record: over {RECORD_BYTES_MAX} bytes": 7}


def asked_by_a_newcomer() -> Message:
    told = machine(1).seed([signed_record(record_of(0))], 0.0)
    sent = [effect.message for effect in told if isinstance(effect, Send)]
    return next(message for message in sent if isinstance(message.body, Compare))


@settings(max_examples=15, deadline=None)
@given(
    others=st.integers(1, 40),
    obsolete=st.sets(st.integers(1, 40), max_size=40),
    asks=st.booleans(),
    seconds=st.integers(1, 30),
)
def test_whatever_is_told_of_the_largest_records_is_small_enough_to_send(
    others: int, obsolete: set[int], asks: bool, seconds: int
) -> None:
    membership = machine(0)
    effects = list(membership.seed([signed_record(largest(each, 5)) for each in range(1, others + 1)], 0.0))
    claims = tuple(signed_claim(1, each, incarnation=4) for each in sorted(obsolete))
    effects += membership.handle(node_name(1), Message(Spread(claims=claims)), 0.5)
    if asks:
        effects += membership.handle(node_name(1), asked_by_a_newcomer(), 0.6)
    notice = sign_as(node_name(0), "notice", bytes(1 << 18))
    effects += membership.publish("genesis", 1, notice, 0.7)
    while membership.deadline() < seconds:
        effects += membership.tick(membership.deadline())
    assert messages_of(effects)


def test_a_member_that_goes_by_a_name_is_refused_counted_and_named() -> None:
    membership = machine(0)
    named = record_of(1).model_copy(update={"gossip": "tcp://slow.example.org:4000"})
    effects = membership.handle(node_name(1), Message(Spread(records=(signed_record(named),))), 0.0)
    reason = "member record: Value error, an address is no IP address and port"
    assert membership.refused == {reason: 1}
    assert [effect.fields["peer"] for effect in effects if isinstance(effect, Noted)] == [node_name(1)[:12]]
    assert not membership.view.members.keys() - {node_name(0)}
