"""Conduct is remembered by who a peer is, bounded, and ends at the right time."""

from random import Random

import pytest

from transport.conduct import CONDUCTS_MAX, Conducts
from transport.link import Endpoint, LinkStats
from transport.machine import NodeId
from transport.segments import LinkLimits
from transport.wire import OtherVersion, WireError

EVE = NodeId("e" * 64)
HERE, THERE = Endpoint("tcp://127.0.0.1:1", "k" * 40), Endpoint("tcp://127.0.0.1:2", "k" * 40)


def conducts(**limits: float) -> Conducts:
    return Conducts(LinkLimits(**limits), LinkStats())  # type: ignore[arg-type]


def test_what_is_reported_of_a_peer_is_bounded_whatever_it_says() -> None:
    rng, these = Random(1), conducts()
    reasons = [these.complain(EVE, WireError(rng.randbytes(200).hex()), 2.0 * n).reason for n in range(1000)]
    told = [reason for reason in reasons if reason]
    assert len(told) == LinkLimits().errors_max
    assert max(map(len, told)) == 200


def test_errors_now_and_then_are_forgiven_and_a_burst_is_too_much() -> None:
    slow, fast = conducts(errors_max=5), conducts(errors_max=5)
    assert not any(slow.complain(EVE, WireError("x"), 1.0 * n).is_too_much for n in range(100))
    assert [fast.complain(EVE, WireError("x"), 0.0).is_too_much for _ in range(6)] == [False] * 5 + [True]


def test_another_version_is_never_too_much() -> None:
    these = conducts(errors_max=5)
    complaints = [these.complain(EVE, OtherVersion(f"speaks version {n}"), 0.0) for n in range(2, 100)]
    assert [c.reason for c in complaints if c.reason] == ["speaks version 2"]
    assert not any(c.is_too_much for c in complaints)


@pytest.mark.parametrize(
    ("told", "then"), [([], HERE), ([THERE], THERE), ([None], None), ([None, THERE], THERE)]
)
def test_after_a_cut_off_a_peer_is_where_it_was_last_told_to_be(
    told: list[Endpoint | None], then: Endpoint | None
) -> None:
    these = conducts()
    these.cut_off(EVE, HERE)
    for endpoint in told:
        if endpoint is None:
            these.forget(EVE)
        else:
            assert these.withholds(EVE, endpoint)
    assert not these.all_heard
    assert these.readmit(EVE) == then
    assert these.all_heard
    assert not these.withholds(EVE, HERE)


def test_the_peers_that_are_remembered_are_bounded() -> None:
    these = conducts()
    for number in range(2 * CONDUCTS_MAX):
        these.complain(NodeId(f"{number:064x}"), WireError("x"), 0.0)
    assert len(these._of) == CONDUCTS_MAX
