"""The simulated network: bytes take the time they should, and faults do what they say."""

import asyncio
import subprocess
import sys
from collections.abc import Coroutine
from random import Random
from typing import Any, ClassVar

import pytest

from transport.link import Closed, LinkClosed, LinkEvent, Malformed, Received
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


class Secret(Body):
    kind: ClassVar[str] = "secret"


ANN, BOB, EVE, ZOE = (NodeId(letter * 64) for letter in "abez")
SECOND_AWAY = LinkShape(latency_s=1.0, bandwidth_bytes_per_s=1e15)


class World:
    """Links that all know each other, by letter."""

    def __init__(self, shape: LinkShape = SECOND_AWAY, *, queues: QueueLimits | None = None) -> None:
        self.network = SimNetwork(Random(5), shape, queues=queues, patience_s=30.0)
        self.links = {node: self.open(node) for node in (ANN, BOB, EVE, ZOE)}
        for link in self.links.values():
            self.introduce(link)
        self.ann, self.bob, self.eve, self.zoe = self.links.values()

    def open(self, node: NodeId, schema: Schema | None = None) -> SimLink:
        return self.network.open(node, curve_key=node[:40], schema=schema or Schema((Note, Cargo)))

    def introduce(self, link: SimLink) -> None:
        for node, other in self.links.items():
            if node != link.me:
                link.know(node, other.endpoint)
                other.know(link.me, link.endpoint)

    async def connect(self) -> None:
        """Everybody has heard from everybody."""
        for link in self.links.values():
            for node in self.links:
                link.send(node, Message(Note()))
        await asyncio.sleep(10)
        for link in self.links.values():
            assert len(_drain(link)) == 3


def _note(number: int = 0) -> Message:
    return Message(Note(number=number))


def _cargo(size: int) -> Message:
    spec = TensorSpec(name="x", shape=(size,), dtype="uint8", nbytes=size)
    return Message(Cargo(tensors=(spec,)), (bytes(size),))


def _drain(link: SimLink) -> list[LinkEvent]:
    events = []
    while (event := link.poll()) is not None:
        events.append(event)
    return events


def _numbers(events: list[LinkEvent]) -> list[int]:
    bodies = [event.message.body for event in events if isinstance(event, Received)]
    return [body.number for body in bodies if isinstance(body, Note)]


async def _times(link: SimLink, count: int) -> list[float]:
    times = []
    for _ in range(count):
        await link.recv()
        times.append(asyncio.get_running_loop().time())
    return times


def _run(scenario: Coroutine[Any, Any, Any]) -> Any:
    return run_virtual(scenario)


def test_a_message_takes_its_bytes_over_bandwidth_and_the_latency() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6))
        for peer in (BOB, EVE):
            world.ann.send(peer, _cargo(2_000_000))
        return [*await _times(world.bob, 1), *await _times(world.eve, 1)]

    # One uplink, shared: both go at half its speed. Headers are some 50 bytes.
    assert _run(scenario()) == pytest.approx([4.25, 4.25], abs=1e-3)


def test_control_on_a_slow_path_holds_up_nobody_else() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e9))
        world.network.set_shape(ANN, BOB, LinkShape(latency_s=0.25, bandwidth_bytes_per_s=10.0))
        world.ann.send(BOB, _note())
        world.ann.send(EVE, _note())
        return [*await _times(world.eve, 1), *await _times(world.bob, 1)]

    to_eve, to_bob = _run(scenario())
    assert to_eve == pytest.approx(0.25, abs=1e-3)
    assert to_bob > 1.0


def test_messages_to_one_peer_leave_one_after_the_other() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6))
        for _ in range(2):
            world.ann.send(BOB, _cargo(2_000_000))
        return await _times(world.bob, 2)

    assert _run(scenario()) == pytest.approx([2.25, 4.25], abs=1e-3)


def test_senders_to_one_peer_share_its_downlink_and_no_more() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6))
        for sender in (world.ann, world.eve):
            sender.send(BOB, _cargo(2_000_000))
        world.zoe.send(EVE, _cargo(2_000_000))
        return [*await _times(world.eve, 1), *await _times(world.bob, 2)]

    assert _run(scenario()) == pytest.approx([2.25, 4.25, 4.25], abs=1e-3)


def test_a_node_with_a_wider_access_sends_on_two_paths_at_once() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6))
        world.network.set_access(ANN, 4e6, 1e6)
        for peer in (BOB, EVE):
            world.ann.send(peer, _cargo(2_000_000))
        return [*await _times(world.bob, 1), *await _times(world.eve, 1)]

    assert _run(scenario()) == pytest.approx([2.25, 2.25], abs=1e-3)


def test_control_does_not_wait_behind_bulk() -> None:
    async def scenario() -> list[float]:
        world = World(LinkShape(latency_s=0.25, bandwidth_bytes_per_s=1e6))
        world.ann.send(BOB, _cargo(60_000_000))
        world.ann.send(BOB, _note())
        return await _times(world.bob, 2)

    assert _run(scenario()) == pytest.approx([0.25, 60.25], abs=1e-3)


def test_a_pair_may_have_its_own_shape_and_a_node_may_be_slow() -> None:
    async def scenario() -> list[float]:
        world = World()
        world.network.set_shape(ANN, BOB, LinkShape(latency_s=3.0))
        world.ann.send(BOB, _note())
        world.ann.send(EVE, _note())
        times = [*await _times(world.bob, 1), *await _times(world.eve, 1)]
        world.network.slow(BOB, 5)
        world.bob.send(ANN, _note())
        times += await _times(world.ann, 1)
        world.network.slow(BOB, 1)
        world.bob.send(EVE, _note())
        return times + await _times(world.eve, 1)

    assert _run(scenario()) == pytest.approx([3.0, 3.0, 18.0, 19.0], abs=1e-3)


def test_loss_delays_and_never_loses_or_reorders() -> None:
    async def scenario() -> tuple[list[float], list[int]]:
        world = World(LinkShape(latency_s=0.1, loss=0.3))
        loop, arrivals, numbers = asyncio.get_running_loop(), list[float](), list[int]()
        for number in range(200):
            loop.call_at(number, world.ann.send, BOB, _note(number))
        for number in range(200):
            numbers += _numbers([await world.bob.recv()])
            arrivals.append(loop.time() - number)
        return arrivals, numbers

    arrivals, numbers = _run(scenario())
    assert numbers == list(range(200))
    assert min(arrivals) == pytest.approx(0.1, abs=1e-3)
    # A share of 0.3 waits 0.4 s once, 0.09 of them 0.8 s more, and so on.
    late = sum(arrival > 0.3 for arrival in arrivals)
    assert 35 < late < 85
    assert sorted(arrivals)[100 + 60] < 1.4 < max(arrivals)


def test_a_cut_holds_messages_until_it_heals() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.ann.send(BOB, _note(1))
        cut = world.network.cut(ANN, BOB)
        world.ann.send(BOB, _note(2))
        world.bob.send(ANN, _note(3))
        world.ann.send(EVE, _note(4))
        await asyncio.sleep(20)
        assert _drain(world.bob) == _drain(world.ann) == []
        assert _numbers(_drain(world.eve)) == [4]
        world.network.heal(cut)
        world.ann.send(BOB, _note(5))
        assert _drain(world.bob) == []
        await asyncio.sleep(2)
        assert _numbers(_drain(world.bob)) == [1, 2, 5]
        assert _numbers(_drain(world.ann)) == [3]

    _run(scenario())


def test_behind_a_one_way_cut_no_connection_opens_and_no_bulk_moves() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        cut = world.network.cut(ANN, [BOB, EVE], both_ways=False)
        world.bob.send(ANN, _cargo(1000))
        await asyncio.sleep(20)
        assert _drain(world.ann) == []
        await asyncio.sleep(20)
        assert {type(event) for event in [*_drain(world.ann), *_drain(world.bob)]} == {Closed}
        world.eve.send(ANN, _note(7))
        await asyncio.sleep(20)
        assert _drain(world.ann) == [], "a handshake needs an answer"
        world.network.heal(cut)
        await asyncio.sleep(1)
        assert _numbers(_drain(world.ann)) == [7]

    _run(scenario())


def test_a_one_way_cut_lets_control_of_open_connections_through_the_other_way() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.cut(ANN, BOB, both_ways=False)
        world.ann.send(BOB, _note(1))
        world.bob.send(ANN, _note(2))
        await asyncio.sleep(5)
        assert _drain(world.bob) == []
        assert _numbers(_drain(world.ann)) == [2]

    _run(scenario())


def test_a_partition_that_outlives_patience_breaks_connections_once() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.partition([[ANN, BOB], [EVE]])
        world.ann.send(EVE, _note(1))
        world.ann.send(BOB, _note(2))
        world.ann.send(ZOE, _note(3))
        await asyncio.sleep(100)
        assert _drain(world.ann) == [Closed(EVE)]
        assert _drain(world.eve) == [Closed(ANN), Closed(BOB)]
        assert _numbers(_drain(world.zoe)) == [3]
        world.network.heal()
        world.ann.send(EVE, _note(4))
        await asyncio.sleep(5)
        assert _numbers(_drain(world.eve)) == [4]

    _run(scenario())


def test_a_crash_is_heard_after_the_latency_and_unsent_messages_are_lost() -> None:
    async def scenario() -> None:
        world = World(LinkShape(latency_s=1.0, bandwidth_bytes_per_s=1e6))
        await world.connect()
        began = asyncio.get_running_loop().time()
        world.ann.send(BOB, _note(1))
        world.ann.send(BOB, _cargo(500_000_000))
        await asyncio.sleep(0.5)
        world.network.crash(ANN)
        with pytest.raises(LinkClosed):
            await world.ann.recv()
        assert _numbers([await world.bob.recv()]) == [1]
        assert await world.bob.recv() == Closed(ANN)
        assert asyncio.get_running_loop().time() == pytest.approx(began + 1.5, abs=0.01)
        await asyncio.sleep(1000)
        assert _drain(world.bob) == []
        assert _drain(world.eve) == [Closed(ANN)]

    _run(scenario())


def test_a_silent_crash_is_heard_by_nobody() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.crash(ANN, silent=True)
        assert world.bob.send(ANN, _note())
        await asyncio.sleep(1000)
        assert _drain(world.bob) == _drain(world.eve) == []

    _run(scenario())


def test_a_crash_behind_a_cut_is_heard_when_it_heals() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.cut(ANN, [BOB, EVE])
        world.ann.send(BOB, _note(1))
        world.network.crash(ANN)
        await asyncio.sleep(5)
        assert _drain(world.bob) == []
        assert _drain(world.zoe) == [Closed(ANN)]
        world.network.heal()
        await asyncio.sleep(5)
        assert _drain(world.bob) == _drain(world.eve) == [Closed(ANN)]

    _run(scenario())


def test_a_node_comes_back_on_a_new_link() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.crash(ANN)
        await asyncio.sleep(5)
        world.links[ANN] = again = world.open(ANN)
        world.introduce(again)
        world.bob.send(ANN, _note(1))
        assert _numbers([await again.recv()]) == [1]
        again.send(BOB, _note(2))
        await asyncio.sleep(5)
        assert _drain(world.bob)[0] == Closed(ANN)

    _run(scenario())


def test_a_node_paused_for_long_is_taken_for_gone_as_by_heartbeats() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.pause(ANN)
        await asyncio.sleep(15)
        world.network.resume(ANN)
        world.network.pause(ANN)
        world.bob.send(ANN, _note(1))
        await asyncio.sleep(29.9)
        assert [_drain(link) for link in world.links.values()] == [[], [], [], []]
        await asyncio.sleep(0.2)
        assert _drain(world.bob) == [Closed(ANN)]
        world.network.resume(ANN)
        world.bob.send(ANN, _note(2))
        await asyncio.sleep(5)
        assert _numbers(_drain(world.ann)) == [2]

    _run(scenario())


def test_a_paused_node_hears_everything_later_and_nobody_hears_closed() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        world.network.pause(ANN)
        world.bob.send(ANN, _note(1))
        world.ann.send(BOB, _note(2))
        await asyncio.sleep(29)
        assert [_drain(link) for link in world.links.values()] == [[], [], [], []]
        world.network.resume(ANN)
        await asyncio.sleep(5)
        assert _numbers(_drain(world.ann)) == [1]
        assert _numbers(_drain(world.bob)) == [2]

    _run(scenario())


def test_a_peer_that_takes_nothing_fills_its_queue_and_no_other() -> None:
    async def scenario() -> None:
        world = World(queues=QueueLimits(messages=3, control_bytes=1 << 20, bulk_bytes=1000))
        assert [world.ann.send(BOB, _note(number)) for number in range(5)] == [True] * 3 + [False] * 2
        assert [world.ann.send(BOB, _cargo(400)) for _ in range(4)] == [True] * 2 + [False] * 2
        assert world.ann.send(EVE, _cargo(5000))
        assert world.ann.stats.dropped_full == 4
        await asyncio.sleep(5)
        assert not world.ann.send(BOB, _note(9))
        assert _numbers(_drain(world.bob)) == [0, 1, 2]
        assert world.ann.send(BOB, _note(10))

    _run(scenario())


def test_a_buffer_that_changes_after_send_arrives_as_it_was() -> None:
    async def scenario() -> None:
        world = World()
        source = bytearray(b"then")
        spec = TensorSpec(name="x", shape=(4,), dtype="uint8", nbytes=4)
        body = Cargo(tensors=(spec, spec, spec))
        kept = b"kept"
        world.ann.send(BOB, Message(body, (source, memoryview(source).toreadonly(), kept)))
        source[:] = b"now!"
        event = await world.bob.recv()
        assert isinstance(event, Received)
        views = [memoryview(buffer) for buffer in event.message.buffers]
        assert [bytes(view) for view in views] == [b"then", b"then", b"kept"]
        assert all(view.readonly for view in views)
        assert views[2].obj is kept

    _run(scenario())


def test_a_damaged_header_is_malformed_counted_and_reported_once() -> None:
    async def scenario() -> None:
        world = World()
        world.network.corrupt(ANN, 3)
        for number in range(5):
            world.ann.send(BOB, _note(number))
        await asyncio.sleep(5)
        refused, *handled = _drain(world.bob)
        assert isinstance(refused, Malformed)
        assert refused.peer == ANN
        assert _numbers(handled) == [3, 4]
        assert world.bob.stats.dropped_malformed == 3
        assert world.bob.stats.messages_received == 2

    _run(scenario())


def test_what_the_receiver_does_not_speak_is_malformed() -> None:
    async def scenario() -> None:
        world = World()
        world.links[ANN] = stranger = world.open(ANN, Schema((Secret, Cargo)))
        world.introduce(stranger)
        stranger.send(BOB, Message(Secret()))
        spec = TensorSpec(name="x", shape=(4,), dtype="uint8", nbytes=4)
        stranger.send(BOB, Message(Cargo(tensors=(spec,)), (b"four, not nine",)))
        await asyncio.sleep(5)
        reasons = [event.reason for event in _drain(world.bob) if isinstance(event, Malformed)]
        assert reasons == ["unknown kind 'secret'", "cargo: x has 14 bytes"]

    _run(scenario())


def test_a_peer_with_another_key_than_known_gets_nothing() -> None:
    async def scenario() -> None:
        world = World()
        impostor = world.network.open(BOB, curve_key="i" * 40, schema=Schema((Note,)))
        impostor.know(ANN, world.ann.endpoint)
        impostor.send(ANN, _note(1))
        await asyncio.sleep(5)
        assert _drain(world.ann) == []
        assert world.ann.stats.dropped_unauthorised == 1

    _run(scenario())


def test_forgetting_drops_what_has_arrived_but_not_been_taken() -> None:
    async def scenario() -> None:
        world = World(queues=QueueLimits(messages=1))
        world.ann.send(BOB, _note(1))
        world.eve.send(BOB, _note(2))
        await asyncio.sleep(5)
        world.bob.forget(ANN)
        assert _numbers(_drain(world.bob)) == [2]
        await asyncio.sleep(5)
        assert _drain(world.ann) == [Closed(BOB)]
        world.introduce(world.ann)
        assert world.ann.send(BOB, _note(3))
        await asyncio.sleep(5)
        assert _numbers(_drain(world.bob)) == [3]

    _run(scenario())


def test_a_peer_forgotten_behind_a_cut_hears_it_when_it_heals() -> None:
    async def scenario() -> None:
        world = World()
        await world.connect()
        cut = world.network.cut(ANN, BOB)
        world.ann.forget(BOB)
        await asyncio.sleep(5)
        assert _drain(world.bob) == []
        world.network.heal(cut)
        await asyncio.sleep(50)
        assert _drain(world.bob) == [Closed(ANN)]

    _run(scenario())


@pytest.mark.parametrize(
    "bad",
    [{"latency_s": -1.0}, {"bandwidth_bytes_per_s": 0.0}, {"jitter_s": -0.1}, {"loss": 1.0}],
)
def test_an_impossible_shape_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="link"):
        LinkShape(**bad)


CHATTER = """
import asyncio, sys
from random import Random
from typing import ClassVar
from transport.machine import NodeId
from transport.sim_network import LinkShape, SimNetwork
from transport.virtual_time import run_virtual
from transport.wire import Body, Message, Schema

class Note(Body):
    kind: ClassVar[str] = "note"
    number: int = 0

async def node(link, peers, rng):
    try:
        while True:
            async with asyncio.timeout(rng.uniform(0.1, 2)):
                event = await link.recv()
                print(asyncio.get_running_loop().time(), link.me[:4], event)
    except TimeoutError:
        for peer in rng.sample(peers, 3):
            link.send(peer, Message(Note(number=rng.randrange(1000))))

async def forever(*args):
    while True:
        await node(*args)

async def main():
    network = SimNetwork(Random(9), LinkShape(latency_s=0.05, jitter_s=0.2, loss=0.2), patience_s=5)
    nodes = [NodeId(f"{n:064x}"[::-1]) for n in range(12)]
    links = [network.open(node, curve_key=node[:40], schema=Schema((Note,))) for node in nodes]
    for link in links:
        for other in links:
            link.know(other.me, other.endpoint)
    loop = asyncio.get_running_loop()
    loop.call_at(10, network.partition, [nodes[:4], nodes[4:]])
    loop.call_at(20, network.heal)
    loop.call_at(25, network.slow, nodes[3], 9)
    loop.call_at(30, network.corrupt, nodes[5], 20)
    try:
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            for number, link in enumerate(links):
                group.create_task(forever(link, nodes, Random(number)))
    except TimeoutError:
        print("end")

run_virtual(main())
"""


def test_two_processes_with_different_hash_seeds_see_the_same_network() -> None:
    def trace(seed: str) -> bytes:
        command = [sys.executable, "-c", CHATTER]
        return subprocess.run(command, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True).stdout

    first = trace("1")
    assert first.count(b"Received") > 500
    assert first.count(b"Closed") > 10
    assert first.count(b"Malformed") > 0
    assert first == trace("2")
