"""Sharing of capacity: hand-computed times, and what must hold of any transfers whatever."""

from __future__ import annotations

from dataclasses import dataclass
from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.sim_sharing import Sharing, max_min


def _play(sharing: Sharing[str]) -> dict[str, float]:
    """When each transfer ends, if nothing else happens."""
    ended: dict[str, float] = {}
    while (now := sharing.next_s()) is not None:
        for flow in sharing.ended(now):
            ended[flow] = now
        sharing.settle(now)
    return ended


def _started(sharing: Sharing[str], *transfers: tuple[str, str, str, int, float], now: float = 0.0) -> None:
    for flow, sender, receiver, nbytes, path in transfers:
        sharing.start(flow, (sender, receiver), nbytes, path, now)
    sharing.settle(now)


def test_a_transfer_alone_goes_as_fast_as_its_narrowest_part() -> None:
    sharing = Sharing[str](100.0)
    sharing.set_access("narrow", 1.0, 5.0)
    _started(
        sharing,
        ("path", "a", "b", 100, 20.0),
        ("down", "c", "narrow", 100, 20.0),
        ("access", "d", "e", 100, 1e9),
    )
    assert _play(sharing) == {"path": 5.0, "down": 20.0, "access": 1.0}


def test_an_uplink_is_halved_by_two_and_whole_again_when_one_has_ended() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("long", "a", "b", 100, 1e9), ("short", "a", "c", 20, 1e9))
    # 5 a second each: short ends at 4 s; long then has 80 left at 10 a second.
    assert _play(sharing) == {"short": 4.0, "long": 12.0}


def test_a_downlink_is_shared_by_senders_that_know_nothing_of_each_other() -> None:
    sharing = Sharing[str](1e9)
    sharing.set_access("home", 1.0, 6.0)
    _started(
        sharing, ("one", "a", "home", 6, 1e9), ("two", "b", "home", 12, 1e9), ("three", "c", "home", 18, 1e9)
    )
    # 2 each until 3 s; then 3 each: two has 6 left, until 5 s; then 6: three has 6 left, until 6 s.
    assert _play(sharing) == {"one": 3.0, "two": 5.0, "three": 6.0}


def test_what_a_slow_path_leaves_goes_to_the_others() -> None:
    sharing = Sharing[str](10.0)
    _started(
        sharing, ("slow", "a", "b", 100, 1.0), ("fast", "a", "c", 90, 100.0), ("faster", "a", "d", 90, 100.0)
    )
    assert [sharing.rate(flow) for flow in ("slow", "fast", "faster")] == [1.0, 4.5, 4.5]


def test_one_bottleneck_frees_capacity_at_another() -> None:
    # a sends to x and y; b, c send to x. x takes 3: 1 each. a has 10: y gets the 9 that x cannot take.
    sharing = Sharing[str](10.0)
    sharing.set_access("x", 10.0, 3.0)
    _started(
        sharing,
        ("ax", "a", "x", 9, 1e9),
        ("ay", "a", "y", 9, 1e9),
        ("bx", "b", "x", 9, 1e9),
        ("cx", "c", "x", 9, 1e9),
    )
    assert [sharing.rate(flow) for flow in ("ax", "ay", "bx", "cx")] == [1.0, 9.0, 1.0, 1.0]


def test_a_transfer_that_joins_later_slows_the_first_from_then_on() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("first", "a", "b", 100, 1e9))
    _started(sharing, ("second", "a", "c", 25, 1e9), now=5.0)
    assert sharing.left("first", 5.0) == 50
    assert _play(sharing) == {"second": 10.0, "first": 12.5}


def test_a_cut_path_stands_still_uses_nothing_and_goes_on_where_it_stopped() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("held", "a", "b", 100, 1e9), ("other", "a", "c", 50, 1e9))
    sharing.set_path("held", 0.0)
    sharing.settle(2.0)
    assert sharing.rate("other") == 10.0
    assert sharing.next_s() == 6.0
    assert sharing.ended(6.0) == ["other"]
    sharing.settle(6.0)
    assert sharing.next_s() is None
    sharing.set_path("held", 1e9)
    sharing.settle(100.0)
    assert _play(sharing) == {"held": 109.0}


def test_a_transfer_that_is_stopped_leaves_its_share_to_the_others() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("gone", "a", "b", 100, 1e9), ("stays", "a", "c", 100, 1e9))
    sharing.stop("gone")
    sharing.stop("never was")
    sharing.settle(4.0)
    assert _play(sharing) == {"stays": 12.0}


def test_an_access_that_becomes_slower_slows_what_is_under_way() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("one", "a", "b", 100, 1e9))
    sharing.set_access("a", 2.0, 10.0)
    sharing.settle(5.0)
    assert _play(sharing) == {"one": 30.0}


def test_a_flow_sends_one_transfer_at_a_time() -> None:
    sharing = Sharing[str](10.0)
    _started(sharing, ("one", "a", "b", 100, 1e9))
    with pytest.raises(AssertionError, match="sending already"):
        _started(sharing, ("one", "a", "b", 100, 1e9))


Resources = st.integers(0, 4)
Rate = st.floats(0.5, 1000.0)


@given(
    transfers=st.lists(st.tuples(Rate, st.sets(Resources, max_size=2)), min_size=1, max_size=12),
    capacity=st.lists(Rate, min_size=5, max_size=5),
)
def test_rates_are_within_every_limit_and_nobody_could_have_more(
    transfers: list[tuple[float, set[int]]], capacity: list[float]
) -> None:
    limits = [limit for limit, _ in transfers]
    uses = [sorted(used) for _, used in transfers]
    rates = max_min(limits, uses, capacity)
    used = [sum(rate for rate, use in zip(rates, uses, strict=True) if r in use) for r in range(5)]
    assert all(total <= most * (1 + 1e-9) for total, most in zip(used, capacity, strict=True))
    for rate, limit, use in zip(rates, limits, uses, strict=True):
        assert 0 < rate <= limit
        # At its own limit, or behind a full resource on which nobody is faster (max-min).
        full = [r for r in use if isclose(used[r], capacity[r], rel_tol=1e-9)]
        fastest = [max(q for q, u in zip(rates, uses, strict=True) if r in u) for r in full]
        assert rate == limit or any(rate >= most * (1 - 1e-9) for most in fastest)


@dataclass(frozen=True)
class Start:
    at: float
    sender: int
    receiver: int
    nbytes: int
    path: float


Starts = st.lists(
    st.builds(
        Start,
        at=st.floats(0, 20),
        sender=st.integers(0, 3),
        receiver=st.integers(0, 3),
        nbytes=st.integers(0, 500),
        path=st.floats(1.0, 50.0),
    ),
    max_size=15,
)


@given(starts=Starts, up=st.floats(1.0, 60.0), down=st.floats(1.0, 60.0))
def test_every_byte_of_every_transfer_leaves_and_no_access_is_ever_overdrawn(
    starts: list[Start], up: float, down: float
) -> None:
    sharing = Sharing[int](up)
    for node in range(4):
        sharing.set_access(node, up, down)
    carried = dict.fromkeys(range(len(starts)), 0.0)
    waiting = sorted(enumerate(starts), key=lambda item: item[1].at)
    now, ended = 0.0, list[int]()
    while waiting or sharing.flows():
        times = [t for t in (waiting[0][1].at if waiting else None, sharing.next_s()) if t is not None]
        then = min(times)
        flows = sharing.flows()
        for flow in flows:
            carried[flow] += sharing.rate(flow) * (then - now)
        for node in range(4):
            out = sum(sharing.rate(flow) for flow in flows if starts[flow].sender == node)
            into = sum(sharing.rate(flow) for flow in flows if starts[flow].receiver == node)
            assert out <= up * (1 + 1e-9)
            assert into <= down * (1 + 1e-9)
        _assert_nobody_waits_for_nothing(sharing, starts, up, down)
        now = then
        ended += sharing.ended(now)
        while waiting and waiting[0][1].at <= now:
            flow, start = waiting.pop(0)
            sharing.start(flow, (start.sender, start.receiver), start.nbytes, start.path, now)
        sharing.settle(now)
    assert sorted(ended) == list(range(len(starts)))
    for flow, start in enumerate(starts):
        assert carried[flow] == pytest.approx(start.nbytes, rel=1e-6, abs=1e-6)


def _assert_nobody_waits_for_nothing(
    sharing: Sharing[int], starts: list[Start], up: float, down: float
) -> None:
    """Work conserving: a transfer below its path's speed has a full access at one of its ends."""
    flows = sharing.flows()
    for flow in flows:
        if sharing.rate(flow) < starts[flow].path * (1 - 1e-9):
            out = sum(sharing.rate(other) for other in flows if starts[other].sender == starts[flow].sender)
            into = sum(
                sharing.rate(other) for other in flows if starts[other].receiver == starts[flow].receiver
            )
            assert out >= up * (1 - 1e-9) or into >= down * (1 - 1e-9)
