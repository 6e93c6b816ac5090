"""Strangers, impostors and hostile members on real sockets: nothing of theirs is delivered."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq
from test_zmq_link import ANN, BOB, SCHEMA, Cargo, Note, keys_of, next_event, number_of, open_link
from zmq.utils.monitor import recv_monitor_message

from transport.link import Endpoint, LinkEvent, Malformed, Received
from transport.machine import NodeId
from transport.segments import OPEN, SEGMENT, STREAM_HEAD, LinkLimits
from transport.wire import Message, TensorSpec
from transport.zmq_link import ZmqLink

EVE = NodeId("e" * 64)
NOTE = b"M" + SCHEMA.pack(Note(number=666))


@asynccontextmanager
async def house(**options: Any) -> AsyncIterator[tuple[ZmqLink, ZmqLink]]:
    """Bob, whom the test attacks, and honest Ann, whom he knows."""
    ann, bob = await open_link(ANN), await open_link(BOB, **options)
    ann.know(BOB, bob.endpoint)
    bob.know(ANN, Endpoint("", ann.endpoint.curve_key))
    try:
        yield ann, bob
    finally:
        await ann.close()
        await bob.close()


@asynccontextmanager
async def dealer(
    bob: ZmqLink, *, me: NodeId | None, server: NodeId = BOB
) -> AsyncIterator[zmq.Socket[bytes]]:
    """A raw client of Bob's, with the keys of `me` (None: no encryption)."""
    context = zmq.Context()
    client = context.socket(zmq.DEALER)
    if me is not None:
        public, secret = keys_of(me)
        client.curve_publickey, client.curve_secretkey = public.encode(), secret.encode()
        client.curve_serverkey = keys_of(server)[0].encode()
    client.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    client.connect(bob.endpoint.address)
    try:
        yield client
    finally:
        context.destroy(linger=0)


async def only_ann_is_heard(ann: ZmqLink, bob: ZmqLink, notes: int = 20) -> None:
    """Everything that Bob hears from now on is what Ann says."""
    for number in range(notes):
        assert ann.send(BOB, Message(Note(number=number)))
        async with asyncio.timeout(10):
            assert await bob.recv() == Received(ANN, Message(Note(number=number)))
    assert bob.stats.messages_received == notes


@pytest.mark.parametrize(
    ("me", "server"),
    [(None, BOB), (EVE, BOB), (ANN, EVE)],
    ids=["no key", "unknown key", "swapped server key"],
)
async def test_a_stranger_is_not_heard(me: NodeId | None, server: NodeId) -> None:
    async with house() as (ann, bob), dealer(bob, me=me, server=server) as client:
        for _ in range(10):
            client.send(NOTE)
        await asyncio.to_thread(recv_monitor_message, client.get_monitor_socket())  # it was hung up on
        await only_ann_is_heard(ann, bob)


async def test_garbage_and_silence_on_the_port_disturb_nobody() -> None:
    async with house() as (ann, bob):
        host, port = bob.endpoint.address.removeprefix("tcp://").split(":")
        raw = [socket.create_connection((host, int(port))) for _ in range(60)]
        for index, connection in enumerate(raw[:40]):
            connection.sendall(bytes([index * 6 % 256]) * (1 + 97 * index))
        await only_ann_is_heard(ann, bob)
        for connection in raw:
            connection.close()


async def test_a_revoked_key_is_ignored_on_a_connection_that_is_still_open() -> None:
    async with house() as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        client.send(NOTE)
        assert await number_of(bob) == 666
        bob.forget(EVE)
        for _ in range(50):
            client.send(NOTE)
        refused = bob.stats.dropped_unauthorised
        async with asyncio.timeout(10):
            while bob.stats.dropped_unauthorised < refused + 50:
                assert bob.poll() is None
                await asyncio.sleep(0)
        ann.send(BOB, Message(Note(number=1)))
        assert await bob.recv() == Received(ANN, Message(Note(number=1)))


async def test_a_key_changed_for_another_admits_only_the_new_one() -> None:
    async with house() as (_, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        client.send(NOTE)
        assert await number_of(bob) == 666
        bob.know(EVE, Endpoint("", keys_of(NodeId("f" * 64))[0]))
        client.send(NOTE)
        async with asyncio.timeout(10):
            while not bob.stats.dropped_unauthorised:
                assert bob.poll() is None
                await asyncio.sleep(0)


@pytest.mark.parametrize("key", ["", "x" * 39, "~" * 40, "#" * 40, "é" * 40])
async def test_a_key_that_is_no_key_is_refused(key: str) -> None:
    async with house() as (_, bob):
        bob.know(EVE, Endpoint("tcp://127.0.0.1:9", key))
        assert bob.stats.dropped_unauthorised == 1
        assert not bob.send(EVE, Message(Note()))


def specs(*sizes: int) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name="x", shape=(size,), dtype="uint8", nbytes=size) for size in sizes)


BIG = SCHEMA.pack(Cargo(tensors=specs(4 << 20)))
HOSTILE = {
    "not a message": [[b"hello"]],
    "wrong declared bytes": [[b"B" + SCHEMA.pack(Cargo(tensors=specs(10))), bytes(11)]],
    "a missing buffer": [[b"B" + SCHEMA.pack(Cargo(tensors=specs(10)))]],
    "too many frames": [[b"M" + SCHEMA.pack(Note()), *[b""] * 5000]],
    "not finite": [[b"M\x83\xa1v\x01\xa1k\xa4note\xa6number\xcb\x7f\xf8" + bytes(6)]],
    "a bomb": [[b"M\xdd\xff\xff\xff\xff"]],
    "a terabyte": [[STREAM_HEAD.pack(OPEN, 1) + SCHEMA.pack(Cargo(tensors=specs(1 << 40)))]],
    "a segment too long": [
        [STREAM_HEAD.pack(OPEN, 1) + SCHEMA.pack(Cargo(tensors=specs(10)))],
        [STREAM_HEAD.pack(SEGMENT, 1), bytes(11)],
    ],
    "a header in a segment": [[STREAM_HEAD.pack(OPEN, 1) + BIG], [b"S", b""]],
}


@pytest.mark.parametrize("messages", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_malformed_message_of_a_member_is_reported_once_and_dropped(
    messages: list[list[bytes]],
) -> None:
    async with house() as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        for _ in range(3):
            for message in messages:
                client.send_multipart(message)
        client.send(NOTE)
        events = list[LinkEvent]()
        while not events or not isinstance(events[-1], Received):
            async with asyncio.timeout(10):
                events.append(await bob.recv())
        assert [type(event) for event in events] == [Malformed, Received]
        assert events[0].peer == EVE
        assert bob.stats.dropped_malformed == 3
        ann.send(BOB, Message(Note(number=1)))
        assert await number_of(bob) == 1


async def test_a_frame_over_the_size_limit_ends_only_its_own_connection() -> None:
    async with house() as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        client.send_multipart([b"M" + SCHEMA.pack(Note()), bytes(64 << 20)])
        await only_ann_is_heard(ann, bob)


async def test_what_is_told_of_a_peer_s_nonsense_is_bounded_before_it_is_cut_off() -> None:
    eve = Endpoint("", keys_of(EVE)[0])
    async with house(limits=LinkLimits(errors_max=5)) as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, eve)
        for index in range(50):
            client.send(b"M" + bytes([index]))
        client.send(NOTE)
        reasons = []
        while "cut off" not in (reasons or [""])[-1]:
            event = await next_event(bob, Malformed)
            assert isinstance(event, Malformed)
            reasons.append(event.reason)
        assert len(reasons) <= 6
        async with asyncio.timeout(10):
            while bob.stats.dropped_unauthorised < 45:
                assert bob.poll() is None
                await asyncio.sleep(0)
        bob.know(EVE, eve)
        client.send(NOTE)
        ann.send(BOB, Message(Note(number=1)))
        assert await number_of(bob) == 1


async def test_a_promise_that_nobody_keeps_holds_nothing_for_long() -> None:
    async with house(limits=LinkLimits(stall_s=0.2)) as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        client.send(STREAM_HEAD.pack(OPEN, 1) + BIG)
        async with asyncio.timeout(10):
            while not bob.stats.dropped_stalled:
                assert bob.poll() is None
                await asyncio.sleep(0.01)
        assert bob._memory.held_bytes == 0
        await only_ann_is_heard(ann, bob)


async def test_a_flood_from_one_member_does_not_starve_another() -> None:
    async with house() as (ann, bob), dealer(bob, me=EVE) as client:
        bob.know(EVE, Endpoint("", keys_of(EVE)[0]))
        client.send(NOTE)
        await number_of(bob)
        client.sndhwm = 0
        for _ in range(20_000):
            client.send(NOTE)
        ann.send(BOB, Message(Note(number=1)))
        before_ann = 0
        while await number_of(bob) == 666:
            before_ann += 1
        assert before_ann < 20_000


async def test_an_answer_that_is_not_credit_is_counted_against_the_peer() -> None:
    """Bob listens as a hostile server would: Ann dials him and is answered with nonsense."""
    ann, context = await open_link(ANN), zmq.Context()
    public, secret = keys_of(BOB)
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_publickey, router.curve_secretkey = (
        True,
        public.encode(),
        secret.encode(),
    )
    port = router.bind_to_random_port("tcp://127.0.0.1")
    try:
        ann.know(BOB, Endpoint(f"tcp://127.0.0.1:{port}", public))
        ann.send(BOB, Message(Note()))
        route, _ = await asyncio.to_thread(router.recv_multipart)
        router.send_multipart([route, b"W" + bytes(40)])
        router.send_multipart([route, b"C", b"C"])
        reasons = [await next_event(ann, Malformed) for _ in range(2)]
        assert [event.reason for event in reasons] == ["credit for the control lane", "too many frames"]  # type: ignore[union-attr]
    finally:
        await ann.close()
        context.destroy(linger=0)
