"""What the simulated network does beyond carrying: accounts for bytes, repeats, reorders and wears out."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from itertools import pairwise
from random import Random
from statistics import median
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transport.link import Closed, LinkEvent, Received
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import QueueLimits, SimNetwork
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual
from transport.wire import Body, Lane, Message, Schema, TensorSpec


class Note(Body):
    kind: ClassVar[str] = "note"
    number: int = 0


class Cargo(Body):
    kind: ClassVar[str] = "cargo"
    lane: ClassVar[Lane] = "bulk"
    number: int = 0


NODES = tuple(NodeId(letter * 64) for letter in "abcd")
ANN, BOB, CAT, DAN = NODES
MEGABYTE_A_SECOND = LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6)


class World:
    """Links that all know each other."""

    def __init__(self, shape: LinkShape = MEGABYTE_A_SECOND, queues: QueueLimits | None = None) -> None:
        self.network = SimNetwork(Random(5), shape, queues=queues, patience_s=30.0)
        self.links: dict[NodeId, SimLink] = {}
        for node in NODES:
            self.open(node)

    def open(self, node: NodeId) -> SimLink:
        link = self.network.open(node, curve_key=node[:40], schema=Schema((Note, Cargo)))
        self.links[node] = link
        for other in self.links.values():
            if other.me != node:
                link.know(other.me, other.endpoint)
                other.know(node, link.endpoint)
        return link

    def balance(self, lane: Lane) -> int:
        """Bytes that are neither delivered, dropped nor under way. Must be 0, at any moment."""
        count = self.network.traffic.count(lane)
        return count.open - self.network.traffic.under_way_bytes(lane)


def _note(number: int = 0) -> Message:
    return Message(Note(number=number))


def _cargo(size: int, number: int = 0) -> Message:
    spec = TensorSpec(name="x", shape=(size,), dtype="uint8", nbytes=size)
    return Message(Cargo(number=number, tensors=(spec,)), (bytes(size),))


def _drain(link: SimLink) -> list[LinkEvent]:
    events = []
    while (event := link.poll()) is not None:
        events.append(event)
    return events


def _numbers(events: list[LinkEvent]) -> list[int]:
    return [event.message.body.number for event in events if isinstance(event, Received)]  # type: ignore[attr-defined]


async def _arrival(link: SimLink) -> float:
    await link.recv()
    return asyncio.get_running_loop().time()


def _run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(scenario)


# -- bytes are conserved ------------------------------------------------------------------------------


def test_bytes_are_counted_by_what_became_of_them() -> None:
    async def scenario() -> None:
        world = World()
        ann, bob = world.links[ANN], world.links[BOB]
        ann.send(BOB, _cargo(1_000_000))
        ann.send(BOB, _cargo(3_000_000))
        await asyncio.sleep(2)
        sent = ann.stats.bytes_sent["bulk"]
        count, traffic = world.network.traffic.count("bulk"), world.network.traffic
        assert (count.sent, count.delivered) == (sent, bob.stats.bytes_received["bulk"])
        assert traffic.under_way_bytes("bulk") == sent - count.delivered > 3_000_000
        world.network.crash(ANN)
        count = traffic.count("bulk")
        assert count.dropped == {"unsent": sent - count.delivered}
        assert traffic.under_way_bytes("bulk") == 0
        bob.send(ANN, _cargo(10))
        assert traffic.count("bulk").dropped["unheard"] == bob.stats.bytes_sent["bulk"]

    _run(scenario())


def test_what_is_refused_or_given_up_is_dropped_with_its_cause() -> None:
    async def scenario() -> None:
        world = World()
        stranger = world.network.open(NodeId("e" * 64), curve_key="e" * 40, schema=Schema((Note,)))
        stranger.know(BOB, world.links[BOB].endpoint)
        stranger.send(BOB, _note())
        world.network.corrupt(ANN)
        world.links[ANN].send(BOB, _note())
        world.links[CAT].send(DAN, _note())
        await asyncio.sleep(5)
        world.network.cut(CAT, DAN)
        world.links[CAT].send(DAN, _note())
        await asyncio.sleep(100)
        dropped = world.network.traffic.count("control").dropped
        assert set(dropped) == {"unauthorised", "malformed", "cut"}
        assert world.balance("control") == 0

    _run(scenario())


Steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("send"), st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, 1000, 2_000_000])
        ),
        st.tuples(st.just("note"), st.integers(0, 3), st.integers(0, 3), st.just(0)),
        st.tuples(
            st.sampled_from(["crash", "silent", "pause", "resume", "forget", "slow"]),
            st.integers(0, 3),
            st.integers(0, 3),
            st.just(0),
        ),
        st.tuples(
            st.sampled_from(["cut", "one-way", "heal"]), st.integers(0, 3), st.integers(0, 3), st.just(0)
        ),
        st.tuples(st.just("wait"), st.just(0), st.just(0), st.sampled_from([0, 1, 40])),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps=Steps)
def test_every_byte_is_delivered_dropped_or_under_way_whatever_happens(steps: list[Any]) -> None:
    shape = LinkShape(
        latency_s=0.25, bandwidth_bytes_per_s=1e6, jitter_s=0.2, loss=0.2, duplication=0.3, reordering=0.3
    )

    async def scenario() -> None:
        world = World(shape, QueueLimits(messages=5, bulk_bytes=4_000_000))
        for what, a, b, size in steps:
            await _step(world, what, a, b, size)
            assert list(world.network.traffic.imbalances()) == []
            assert world.balance("control") == world.balance("bulk") == 0
        world.network.heal()
        for node in NODES:
            world.network.resume(node)
        await asyncio.sleep(10_000)
        assert world.network.traffic.under_way_bytes("bulk") == 0
        assert world.network.traffic.under_way_bytes("control") == 0
        assert world.balance("control") == world.balance("bulk") == 0

    _run(scenario())


async def _step(world: World, what: str, a: int, b: int, size: int) -> None:
    one, other = NODES[a], NODES[b]
    network, link = world.network, world.links[one]
    match what:
        case "send":
            link.send(other, _cargo(size))
        case "note":
            link.send(other, _note())
        case "crash" | "silent":
            network.crash(one, silent=what == "silent")
            world.open(one)
        case "pause":
            network.pause(one)
        case "resume":
            network.resume(one)
        case "forget":
            link.forget(other)
        case "slow":
            network.slow(one, 5.0, over_s=3.0)
        case "cut" | "one-way" if one != other:
            network.cut(one, other, what == "cut")
        case "heal":
            network.heal()
        case "wait":
            await asyncio.sleep(size)


# -- bulk shares its way ------------------------------------------------------------------------------


def test_a_cut_stops_a_transfer_and_leaves_its_share_to_others() -> None:
    async def scenario() -> list[float]:
        world = World()
        world.links[ANN].send(BOB, _cargo(2_000_000))
        world.links[ANN].send(CAT, _cargo(2_000_000))
        await asyncio.sleep(2)  # a megabyte of each has left
        cut = world.network.cut(ANN, BOB)
        arrived = await _arrival(world.links[CAT])
        await asyncio.sleep(10 - arrived)
        world.network.heal(cut)
        return [arrived, await _arrival(world.links[BOB])]

    assert _run(scenario()) == pytest.approx([3.25, 11.25], abs=1e-3)


def test_closing_waits_for_bulk_that_leaves_within_a_second_and_no_longer() -> None:
    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        world = World()
        world.links[ANN].send(BOB, _cargo(500_000))
        world.links[CAT].send(DAN, _cargo(5_000_000))
        await world.links[ANN].close()
        times = [loop.time()]
        await world.links[CAT].close()
        times.append(loop.time())
        await asyncio.sleep(100)
        assert len(_numbers(_drain(world.links[BOB]))) == 1
        assert _drain(world.links[DAN]) == []
        return times

    assert _run(scenario()) == pytest.approx([0.5, 1.5], abs=1e-3)


# -- links that wear out ------------------------------------------------------------------------------


def test_a_path_changes_linearly_from_one_shape_to_another() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=1.0, bandwidth_bytes_per_s=1e9))
        worse = LinkShape(latency_s=3.0, bandwidth_bytes_per_s=1e9)
        world.network.set_shape(ANN, BOB, worse, both_ways=False, over_s=100.0)
        delays, loop = list[float](), asyncio.get_running_loop()
        for at_s in (0.0, 50.0, 100.0, 1000.0):
            await asyncio.sleep(at_s - loop.time())
            world.links[ANN].send(BOB, _note())
            delays.append(await _arrival(world.links[BOB]) - at_s)
        world.links[BOB].send(ANN, _note())
        return [*delays, await _arrival(world.links[ANN]) - loop.time() + 1.0]

    assert _run(scenario()) == pytest.approx([1.0, 2.0, 3.0, 3.0, 1.0], abs=1e-3)


def test_a_transfer_under_way_follows_a_path_that_wears_out() -> None:
    async def scenario() -> float:
        world = World(LinkShape(latency_s=0.0, bandwidth_bytes_per_s=1e6))
        worse = LinkShape(latency_s=0.0, bandwidth_bytes_per_s=1e5)
        world.links[ANN].send(BOB, _cargo(10_000_000))
        world.network.set_shape(ANN, BOB, worse, over_s=10.0)
        return await _arrival(world.links[BOB])

    # Ten steps carry 1.0, 0.91, ... 0.19 MB, 5.95 in all; the other 4.05 MB go at 0.1 MB/s.
    assert _run(scenario()) == pytest.approx(10 + 40.5, abs=0.01)


def test_a_node_that_slows_down_little_by_little_is_as_fast_as_before_when_it_is_well_again() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=1.0, bandwidth_bytes_per_s=1e9))
        world.network.slow(ANN, 5.0, over_s=10.0)
        delays, loop = list[float](), asyncio.get_running_loop()
        for at_s in (5.0, 20.0, 30.0):
            await asyncio.sleep(at_s - loop.time())
            if at_s == 30.0:
                world.network.slow(ANN, 1.0)
            world.links[ANN].send(BOB, _note())
            delays.append(await _arrival(world.links[BOB]) - at_s)
        return delays

    assert _run(scenario()) == pytest.approx([3.0, 5.0, 1.0], abs=1e-3)


# -- control that comes twice, late, or far later than usual ------------------------------------------


def _sent_one_a_second(shape: LinkShape, count: int) -> tuple[list[int], list[float], int]:
    """Numbers as they arrived, how long each took, and copies that the network made, in bytes."""

    async def scenario() -> tuple[list[int], list[float], int]:
        world = World(shape)
        loop = asyncio.get_running_loop()
        for number in range(count):
            loop.call_at(0.1 * number, world.links[ANN].send, BOB, _note(number))
        events, times = list[LinkEvent](), list[float]()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1 * count + 100):
                while True:
                    events.append(await world.links[BOB].recv())
                    times.append(loop.time())
        numbers = _numbers(events)
        waits = [time - 0.1 * number for time, number in zip(times, numbers, strict=True)]
        copied = world.network.traffic.count("control").sent - world.links[ANN].stats.bytes_sent["control"]
        return numbers, waits, copied

    return _run(scenario())


def test_nothing_is_duplicated_or_reordered_unless_a_shape_asks_for_it() -> None:
    numbers, _, copied = _sent_one_a_second(LinkShape(latency_s=0.05, jitter_s=0.5, loss=0.2), 300)
    assert numbers == list(range(300))
    assert copied == 0


def test_a_duplicated_message_comes_a_second_time_and_is_counted_as_sent() -> None:
    numbers, _, copied = _sent_one_a_second(LinkShape(latency_s=0.05, duplication=0.3), 300)
    assert list(dict.fromkeys(numbers)) == list(range(300))
    assert all(numbers.count(number) <= 2 for number in range(300))
    assert 60 < len(numbers) - 300 < 120
    assert copied > 0


def test_a_reordered_message_is_overtaken_and_still_comes_once() -> None:
    numbers, waits, _ = _sent_one_a_second(LinkShape(latency_s=0.05, reordering=0.2), 300)
    assert sorted(numbers) == list(range(300))
    assert 30 < sum(later < earlier for earlier, later in pairwise(numbers)) < 120
    assert max(waits) < 2.1


def test_log_normal_jitter_is_mostly_small_and_sometimes_large() -> None:
    shape = LinkShape(latency_s=0.0, jitter_s=0.001, jitter_law="log-normal")
    _, waits, _ = _sent_one_a_second(shape, 1000)
    assert median(waits) == pytest.approx(0.001, rel=0.15)
    assert sorted(waits)[990] > 0.006
    assert min(waits) > 0


def test_bulk_is_neither_duplicated_nor_reordered() -> None:
    async def scenario() -> None:
        world = World(LinkShape(latency_s=0.05, duplication=0.9, reordering=0.9))
        for number in range(50):
            world.links[ANN].send(BOB, _cargo(10, number))
        await asyncio.sleep(100)
        assert _numbers(_drain(world.links[BOB])) == list(range(50))

    _run(scenario())


def test_a_copy_that_is_under_way_when_its_connection_ends_is_lost() -> None:
    async def scenario() -> None:
        world = World(LinkShape(latency_s=0.05, duplication=0.999))
        world.links[ANN].send(BOB, _note(1))
        await asyncio.sleep(0.06)
        world.network.crash(BOB)
        again = world.open(BOB)
        await asyncio.sleep(100)
        assert _drain(again) == []
        assert _drain(world.links[ANN]) == [Closed(BOB)]
        assert world.balance("control") == 0

    _run(scenario())


@pytest.mark.parametrize("bad", [{"duplication": 1.0}, {"reordering": -0.1}])
def test_an_impossible_share_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="link"):
        LinkShape(**bad)
