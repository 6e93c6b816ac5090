"""Suspicions fall with distinct accusers, never below the shortest; crashes need our own evidence."""

import math
from typing import Any

import pytest
from gossip_world import node_name
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.gossip.config import GossipConfig, volunteer_wan
from swarm.gossip.messages import Claim
from swarm.gossip.suspicion import Suspicion, shortest_s, timeout_s

WAN = volunteer_wan()
ME, OTHERS = node_name(0), [node_name(index) for index in range(2, 9)]


def claim(by: str, **how: Any) -> Claim:
    return Claim(node=node_name(1), incarnation=1, by=by, **how)


@pytest.mark.parametrize(
    ("members", "confirmations", "seconds"),
    [
        (8, 0, 15.0),
        (8, 1, 12.5),
        (8, 2, 15 - 5 * math.log(3) / math.log(4)),
        (8, 3, 10.0),
        (8, 6, 10.0),
        (2, 0, 15.0),  # k is forced to 1: even a pair gets Lifeguard's patience
        (2, 1, 10.0),
        (3, 1, 10.0),
        (4, 1, 15 - 5 * math.log(2) / math.log(3)),
        (4, 2, 10.0),
        (100, 0, 30.0),
        (100, 1, 20.0),
        (100, 3, 20.0),
    ],
)
def test_the_timer_follows_the_formula(members: int, confirmations: int, seconds: float) -> None:
    assert timeout_s(WAN, members, confirmations) == pytest.approx(seconds)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 50))
def test_the_timer_falls_within_its_bounds(members: int, confirmations: int) -> None:
    low = shortest_s(WAN, members)
    here, next_ = (timeout_s(WAN, members, confirmations + more) for more in (0, 1))
    assert low <= next_ <= here <= WAN.suspicion_max_mult * low


def test_an_accuser_counts_once() -> None:
    suspicion = Suspicion(ME, since=0.0)
    suspicion.add(claim(OTHERS[0]), 0.0)
    assert not suspicion.is_news(claim(OTHERS[0]), 8)
    suspicion.add(claim(OTHERS[0]), 1.0)
    assert suspicion.until(WAN, 8, 6) == 15.0
    suspicion.add(claim(OTHERS[1]), 1.0)
    assert suspicion.until(WAN, 8, 6) == 12.5


def test_a_closed_connection_is_news_from_an_accuser_that_only_said_silent() -> None:
    suspicion = Suspicion(ME, since=0.0)
    suspicion.add(claim(OTHERS[0]), 0.0)
    assert suspicion.is_news(claim(OTHERS[0], closed=True), 8)


def test_in_a_large_swarm_others_that_do_not_reach_it_either_count_as_accusers() -> None:
    suspicion = Suspicion(ME, since=0.0)
    suspicion.add(claim(OTHERS[0]), 0.0)
    assert suspicion.until(WAN, 100, 98) == 30.0
    assert suspicion.is_news(claim(OTHERS[1]), 100)
    suspicion.add(claim(OTHERS[0], seconded=2), 0.0)
    assert suspicion.until(WAN, 100, 98) == 20.0
    assert not suspicion.is_news(claim(OTHERS[1]), 100)
    assert suspicion.is_news(claim(OTHERS[1], closed=True), 100)
    assert suspicion.until(WAN, 8, 6) == 15.0, "in a small one everybody can look for itself"
    assert suspicion.is_news(claim(OTHERS[1]), 8)


@pytest.mark.parametrize(
    ("closed_by", "witnesses", "crash"),
    [
        ((ME, OTHERS[0]), 6, True),
        ((ME,), 6, False),
        ((ME,), 0, True),
        (tuple(OTHERS), 6, False),  # hearsay alone, however much
        ((), 0, False),
    ],
)
def test_a_crash_needs_our_own_evidence_and_a_witness_if_there_is_one(
    closed_by: tuple[str, ...], witnesses: int, crash: bool
) -> None:
    suspicion = Suspicion(ME, since=0.0)
    suspicion.add(claim(ME), 0.0)
    for accuser in closed_by:
        suspicion.add(claim(accuser, closed=True), 1.0)
    assert suspicion.is_crash(witnesses) is crash
    assert (suspicion.until(WAN, 8, witnesses) == 1.0 + WAN.closed_dead_s) is crash


def test_an_own_stall_postpones_the_burial() -> None:
    suspicion = Suspicion(ME, since=0.0)
    suspicion.add(claim(ME, closed=True), 1.0)
    before = [suspicion.until(WAN, 8, witnesses) for witnesses in (0, 6)]
    suspicion.postpone(4.0)
    assert [suspicion.until(WAN, 8, witnesses) for witnesses in (0, 6)] == [time + 4.0 for time in before]


@pytest.mark.parametrize("wrong", [{"probe_s": 0.0}, {"probe_timeout_s": 3.0}, {"suspicion_max_mult": 0.5}])
def test_a_config_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GossipConfig(**wrong)  # type: ignore[arg-type]
