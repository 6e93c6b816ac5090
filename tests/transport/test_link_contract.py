"""What every link promises, whatever carries it. Each world runs in its own kind of loop.

To add a link: an async function that opens one and a runner for its loop, entered in WORLDS.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import msgpack
import pytest
import zmq

from transport.link import Closed, Endpoint, Link, LinkClosed, LinkEvent, Malformed, Received
from transport.machine import NodeId
from transport.segments import LinkLimits
from transport.sim_network import LinkShape, SimNetwork
from transport.virtual_time import run_virtual
from transport.wire import Body, Lane, Message, Schema, TensorSpec, WireLimits
from transport.zmq_link import ZmqLink


class Note(Body):
    kind: ClassVar[str] = "note"
    number: int = 0


class Cargo(Body):
    kind: ClassVar[str] = "cargo"
    lane: ClassVar[Lane] = "bulk"
    number: int = 0


SCHEMA = Schema((Note, Cargo))
ANN, BOB, EVE = NodeId("a" * 64), NodeId("b" * 64), NodeId("e" * 64)
Open = Callable[..., Awaitable[Link]]


class Rude(Body):
    """A kind that only a rude peer speaks."""

    kind: ClassVar[str] = "rude"
    number: int = 0


class Gossipy(Body):
    """What this says others may have made as long as they liked."""

    kind: ClassVar[str] = "gossipy"
    text: str = ""


class Newer(Schema):
    """A note says which protocol version it is of."""

    def pack(self, body: Body) -> bytes:
        assert isinstance(body, Note)
        return bytes(msgpack.packb({"v": body.number, "k": body.kind, "number": body.number}))


@dataclass(frozen=True)
class World:
    """run: runs a coroutine to its end. opener: called inside it, gives what opens links.

    brief: opens links whose cut-offs end within the test, in this world's time.
    """

    run: Callable[[Coroutine[Any, Any, None]], None]
    opener: Callable[[], Open]
    brief: Callable[[], Open]


def _simulated() -> Open:
    return _on(SimNetwork(Random(1), LinkShape(latency_s=0.05, jitter_s=0.02, loss=0.1)))


def _simulated_and_worn() -> Open:
    """Narrow, so that messages share their way, and with waits that are sometimes very long."""
    shape = LinkShape(
        latency_s=0.1, bandwidth_bytes_per_s=2e7, jitter_s=0.02, jitter_law="log-normal", loss=0.25
    )
    return _on(SimNetwork(Random(2), shape))


def _on(network: SimNetwork) -> Open:
    async def open_link(me: NodeId, schema: Schema = SCHEMA) -> Link:
        return network.open(me, curve_key=me[:1] * 40, schema=schema)

    return open_link


def _over_sockets(limits: LinkLimits | None = None) -> Open:
    async def open_link(me: NodeId, schema: Schema = SCHEMA) -> Link:
        public, secret = zmq.curve_keypair()
        return await ZmqLink.open(
            me=me,
            curve_public=public.decode(),
            curve_secret=secret.decode(),
            schema=schema,
            host="127.0.0.1",
            limits=limits,
        )

    return open_link


WORLDS = {
    "simulated": World(run_virtual, _simulated, _simulated),
    "worn": World(run_virtual, _simulated_and_worn, _simulated_and_worn),
    "zmq": World(asyncio.run, _over_sockets, lambda: _over_sockets(LinkLimits(cut_off_s=0.2))),
}


@pytest.fixture(params=WORLDS.values(), ids=WORLDS.keys())
def world(request: pytest.FixtureRequest) -> World:
    return request.param


@asynccontextmanager
async def _links(
    world: World, *nodes: NodeId, eve: Schema = SCHEMA, brief: bool = False
) -> AsyncIterator[list[Link]]:
    """eve: what Eve speaks."""
    open_link = world.brief() if brief else world.opener()
    links = [await open_link(node, eve if node == EVE else SCHEMA) for node in nodes]
    try:
        yield links
    finally:
        for link in links:
            await link.close()


def _introduce(**links: Link) -> None:
    """Everybody knows everybody."""
    named = {NodeId(name[0] * 64): link for name, link in links.items()}
    for me, link in named.items():
        for peer, other in named.items():
            if peer != me:
                link.know(peer, other.endpoint)


def _cargo(number: int, payload: bytes | bytearray | memoryview) -> Message:
    size = memoryview(payload).nbytes
    spec = TensorSpec(name="x", shape=(size,), dtype="uint8", nbytes=size)
    return Message(Cargo(number=number, tensors=(spec,)), (payload,))


async def _received(link: Link, count: int, timeout_s: float = 30.0) -> list[Received]:
    """The next `count` messages; any other event is a failure."""
    got = []
    async with asyncio.timeout(timeout_s):
        while len(got) < count:
            event = await link.recv()
            assert isinstance(event, Received), event
            got.append(event)
    return got


def test_messages_arrive_from_the_authenticated_sender(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            assert ann.send(BOB, Message(Note(number=7)))
            assert bob.send(ANN, Message(Note(number=8)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=7)))]
            assert await _received(ann, 1) == [Received(BOB, Message(Note(number=8)))]

    world.run(scenario())


def test_each_lane_keeps_order_and_delivers_once(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            for number in range(200):
                assert ann.send(BOB, Message(Note(number=number)))
                assert ann.send(BOB, _cargo(number, bytes(100)))
            bodies = [event.message.body for event in await _received(bob, 400)]
            assert [body.number for body in bodies if isinstance(body, Note)] == list(range(200))
            assert [body.number for body in bodies if isinstance(body, Cargo)] == list(range(200))
            assert bob.poll() is None

    world.run(scenario())


def test_tensors_arrive_as_they_were_read_only(world: World) -> None:
    payload = Random(3).randbytes(3_000_001)

    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            assert ann.send(BOB, _cargo(1, payload))
            assert ann.send(BOB, _cargo(2, b""))
            assert ann.send(BOB, _cargo(3, bytearray(b"whole")))
            big, empty, whole = await _received(bob, 3)
            assert bytes(big.message.buffers[0]) == payload
            assert bytes(empty.message.buffers[0]) == b""
            assert memoryview(big.message.buffers[0]).nbytes == big.message.nbytes
            for event in (big, whole):
                with pytest.raises(TypeError):
                    memoryview(event.message.buffers[0])[0] = 0

    world.run(scenario())


def test_control_overtakes_bulk(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            # Both lanes first open their connections, which takes however long it takes.
            ann.send(BOB, Message(Note()))
            ann.send(BOB, _cargo(0, b""))
            await _received(bob, 2)
            for number in range(8):
                assert ann.send(BOB, _cargo(number, bytes(16 << 20)))
            assert ann.send(BOB, Message(Note(number=9)))
            kinds = [event.message.body.kind for event in await _received(bob, 9)]
            assert kinds.index("note") < 8

    world.run(scenario())


def test_an_unknown_peer_cannot_be_sent_to(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN) as (ann,):
            assert not ann.send(BOB, Message(Note()))
            assert ann.stats.messages_sent == 0

    world.run(scenario())


def test_a_sender_whose_key_is_not_admitted_is_refused_and_counted(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB, EVE) as (ann, bob, eve):
            _introduce(ann=ann, bob=bob)
            eve.know(BOB, bob.endpoint)
            eve.send(BOB, Message(Note(number=666)))
            async with asyncio.timeout(10):
                while not bob.stats.dropped_unauthorised:  # noqa: ASYNC110 - nothing is told, only counted
                    await asyncio.sleep(0.01)
            ann.send(BOB, Message(Note(number=1)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=1)))]

    world.run(scenario())


def test_a_key_that_is_another_peers_is_not_taken_over(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            bob.know(EVE, ann.endpoint)
            assert bob.stats.dropped_unauthorised == 1
            assert not bob.send(EVE, Message(Note()))
            ann.send(BOB, Message(Note(number=1)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=1)))]

    world.run(scenario())


def test_a_forgotten_peer_is_neither_sent_to_nor_heard(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB, EVE) as (ann, bob, eve):
            _introduce(ann=ann, bob=bob, eve=eve)
            eve.send(BOB, Message(Note(number=1)))
            await _received(bob, 1)
            bob.forget(EVE)
            assert not bob.send(EVE, Message(Note()))
            async with asyncio.timeout(10):
                assert await eve.recv() == Closed(BOB)
            eve.send(BOB, Message(Note(number=2)))
            ann.send(BOB, Message(Note(number=3)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=3)))]

    world.run(scenario())


async def _insulted(bob: Link, eve: Link) -> list[str]:
    """Eve says what nobody understands until Bob has had enough; the reasons he gives."""
    reasons = list[str]()
    async with asyncio.timeout(30):
        for number in range(1000):
            eve.send(BOB, Message(Rude(number=number)))
        while not reasons or "cut off" not in reasons[-1]:
            event = await bob.recv()
            reasons += [event.reason] if isinstance(event, Malformed) else []
    return reasons


def test_a_peer_that_keeps_sending_nonsense_is_cut_off_though_it_be_known_again(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB, EVE, eve=Schema((Note, Rude))) as (ann, bob, eve):
            _introduce(ann=ann, bob=bob, eve=eve)
            *before, last = await _insulted(bob, eve)
            assert set(before) <= {"unknown kind 'rude'"}, "told once, if there was time to ask"
            assert len(before) <= 1
            assert last == "cut off for 600 s: too many malformed messages, at last unknown kind 'rude'"
            bob.know(EVE, eve.endpoint)
            bob.know(EVE, Endpoint("tcp://127.0.0.1:1", eve.endpoint.curve_key))
            bob.forget(EVE)
            bob.know(EVE, eve.endpoint)
            assert not bob.send(EVE, Message(Note()))
            refused = bob.stats.dropped_unauthorised
            async with asyncio.timeout(10):
                while bob.stats.dropped_unauthorised == refused:
                    eve.send(BOB, Message(Note(number=666)))
                    await asyncio.sleep(0.01)
            ann.send(BOB, Message(Note(number=1)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=1)))]

    world.run(scenario())


def test_a_cut_off_ends_by_itself(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, BOB, EVE, eve=Schema((Note, Rude)), brief=True) as (bob, eve):
            _introduce(bob=bob, eve=eve)
            await _insulted(bob, eve)
            heard: LinkEvent | None = None
            async with asyncio.timeout(700):
                while not isinstance(heard, Received):
                    eve.send(BOB, Message(Note(number=1)))
                    await asyncio.sleep(0.05)
                    heard = bob.poll()
            assert heard == Received(EVE, Message(Note(number=1)))

    world.run(scenario())


def test_another_protocol_version_is_told_once_and_never_cut_off(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, BOB, EVE, eve=Newer((Note,))) as (bob, eve):
            _introduce(bob=bob, eve=eve)
            for _ in range(300):
                assert eve.send(BOB, Message(Note(number=2)))
            assert eve.send(BOB, Message(Note(number=1)))
            async with asyncio.timeout(30):
                assert await bob.recv() == Malformed(EVE, "speaks version 2; this node speaks 1")
                assert await bob.recv() == Received(EVE, Message(Note(number=1)))
            assert bob.stats.dropped_version == 300
            assert bob.stats.dropped_malformed == 0

    world.run(scenario())


def test_what_is_too_large_to_send_is_told_once_dropped_and_nobodys_fault(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, EVE, BOB, eve=Schema((Note, Gossipy), WireLimits(header_bytes_max=999))) as (
            eve,
            bob,
        ):
            _introduce(eve=eve, bob=bob)
            for _ in range(300):
                assert not eve.send(BOB, Message(Gossipy(text="x" * 1000)))
            assert eve.poll() == Malformed(BOB, "gossipy: too large to send")
            assert eve.send(BOB, Message(Note(number=1)))
            assert await _received(bob, 1) == [Received(EVE, Message(Note(number=1)))]
            assert eve.stats.dropped_too_large == 300
            assert eve.stats.dropped_malformed == 0

    world.run(scenario())


def test_a_link_that_closes_is_reported_once(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            ann.send(BOB, Message(Note(number=1)))
            ann.send(BOB, _cargo(2, b"x"))
            await _received(bob, 2)
            bob.send(ANN, Message(Note(number=3)))
            bob.send(ANN, _cargo(4, b"y"))
            await _received(ann, 2)
            await ann.close()
            async with asyncio.timeout(10):
                assert await bob.recv() == Closed(ANN)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await bob.recv()

    world.run(scenario())


def test_closing_lets_what_is_queued_leave_first(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            ann.send(BOB, Message(Note()))
            await _received(bob, 1)
            for number in range(50):
                ann.send(BOB, Message(Note(number=number)))
            await ann.close()
            assert [e.message.body.number for e in await _received(bob, 50)] == list(range(50))  # type: ignore[attr-defined]

    world.run(scenario())


def test_a_closed_link_says_so_and_sends_nothing(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(_raises_link_closed(ann))
                await asyncio.sleep(0)
                await ann.close()
                assert await waiting
            assert await _raises_link_closed(ann)
            assert not ann.send(BOB, Message(Note()))
            await ann.close()

    world.run(scenario())


async def _raises_link_closed(link: Link) -> bool:
    with pytest.raises(LinkClosed):
        await link.recv()
    return True


async def _within(seconds: float, link: Link) -> LinkEvent:
    async with asyncio.timeout(seconds):
        return await link.recv()


def test_cancelling_recv_loses_nothing(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            with pytest.raises(TimeoutError):  # nothing was sent yet: this one is cancelled for certain
                await _within(0.001, bob)
            for number in range(100):
                ann.send(BOB, Message(Note(number=number)))
            got = list[LinkEvent]()
            async with asyncio.timeout(20):
                while len(got) < 100:
                    with suppress(TimeoutError):
                        got.append(await _within(0.001, bob))
            assert got == [Received(ANN, Message(Note(number=number))) for number in range(100)]

    world.run(scenario())


def test_stats_count_the_same_bytes_at_both_ends(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            _introduce(ann=ann, bob=bob)
            ann.send(BOB, Message(Note(number=5)))
            ann.send(BOB, _cargo(6, bytes(1000)))
            await _received(bob, 2)
            assert ann.stats.messages_sent == bob.stats.messages_received == 2
            assert ann.stats.bytes_sent == bob.stats.bytes_received
            assert ann.stats.bytes_sent["bulk"] > 1000 > ann.stats.bytes_sent["control"] > 0

    world.run(scenario())


def test_knowing_twice_changes_nothing_and_a_moved_peer_is_found_again(world: World) -> None:
    async def scenario() -> None:
        async with _links(world, ANN, BOB) as (ann, bob):
            elsewhere = Endpoint("tcp://127.0.0.1:1", bob.endpoint.curve_key)
            ann.know(BOB, elsewhere)
            _introduce(ann=ann, bob=bob)
            _introduce(ann=ann, bob=bob)
            ann.send(BOB, Message(Note(number=1)))
            assert await _received(bob, 1) == [Received(ANN, Message(Note(number=1)))]
            assert bob.poll() is None

    world.run(scenario())
