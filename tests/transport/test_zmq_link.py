"""What only the real link does: big transfers, slow peers, deaths and returns, over real sockets."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
import zmq

from transport.link import Closed, Endpoint, LinkEvent, Received
from transport.machine import NodeId
from transport.segments import LinkLimits
from transport.wire import Body, Lane, Message, Schema, TensorSpec
from transport.zmq_link import ZmqLink
from transport.zmq_listen import CannotListen, PortInUse

ANN, BOB = NodeId("a" * 64), NodeId("b" * 64)
MIB = 1 << 20


class Note(Body):
    kind: ClassVar[str] = "note"
    number: int = 0


class Cargo(Body):
    kind: ClassVar[str] = "cargo"
    lane: ClassVar[Lane] = "bulk"
    number: int = 0


SCHEMA = Schema((Note, Cargo))
Open = Callable[..., Awaitable[ZmqLink]]


def keys_of(node: NodeId) -> tuple[str, str]:
    """The same keys in every process: a secret made of the node's letter."""
    secret = zmq.utils.z85.encode(node[:32].encode())
    return zmq.curve_public(secret).decode(), secret.decode()


async def open_link(me: NodeId, **options: object) -> ZmqLink:
    public, secret = keys_of(me)
    return await ZmqLink.open(
        me=me, curve_public=public, curve_secret=secret, schema=SCHEMA, host="127.0.0.1", **options
    )


@asynccontextmanager
async def pair(**options: object) -> AsyncIterator[tuple[ZmqLink, ZmqLink]]:
    ann, bob = await open_link(ANN, **options), await open_link(BOB, **options)
    try:
        ann.know(BOB, bob.endpoint)
        bob.know(ANN, ann.endpoint)
        yield ann, bob
    finally:
        await ann.close()
        await bob.close()


def cargo(number: int, payload: bytes) -> Message:
    spec = TensorSpec(name="x", shape=(len(payload),), dtype="uint8", nbytes=len(payload))
    return Message(Cargo(number=number, tensors=(spec,)), (payload,))


async def next_event(link: ZmqLink, kind: type[LinkEvent], timeout_s: float = 10.0) -> LinkEvent:
    """The next event of a kind; others pass."""
    async with asyncio.timeout(timeout_s):
        while True:
            event = await link.recv()
            if isinstance(event, kind):
                return event


async def number_of(link: ZmqLink) -> int:
    event = await next_event(link, Received)
    assert isinstance(event, Received)
    assert isinstance(event.message.body, Note | Cargo)
    return event.message.body.number


async def test_64_mib_arrive_intact() -> None:
    payload = Random(1).randbytes(64 * MIB)
    async with pair() as (ann, bob):
        assert ann.send(BOB, cargo(1, payload))
        event = await next_event(bob, Received)
        assert isinstance(event, Received)
        assert event.message.buffers[0] == payload
        assert bob.stats.bytes_received["bulk"] == ann.stats.bytes_sent["bulk"] > 64 * MIB


async def test_control_passes_a_64_mib_transfer_to_the_same_peer() -> None:
    async with pair() as (ann, bob):
        for warm_up in (Message(Note(number=-1)), cargo(-2, b"")):
            ann.send(BOB, warm_up)
            await number_of(bob)
        assert ann.send(BOB, cargo(1, bytes(64 * MIB)))
        for number in range(10, 20):
            assert ann.send(BOB, Message(Note(number=number)))
        numbers = [await number_of(bob) for _ in range(11)]
        assert numbers[0] == 10
        assert [number for number in numbers if number != 1] == list(range(10, 20))


async def test_a_peer_that_does_not_read_is_not_sent_more_than_the_queue_and_the_window() -> None:
    limits = LinkLimits(window_bytes=4 * MIB, queue_bytes_max=8 * MIB)
    async with pair(limits=limits) as (ann, bob):
        payload, accepted = bytes(MIB // 2), 0
        refused_at = asyncio.get_running_loop().time() + 1
        while asyncio.get_running_loop().time() < refused_at:
            accepted += ann.send(BOB, cargo(accepted, payload))
            await asyncio.sleep(0)
        assert ann.stats.dropped_full > 0
        assert accepted * len(payload) <= (8 + 2 * 4 + 2) * MIB
        assert [await number_of(bob) for _ in range(accepted)] == list(range(accepted))
        assert ann.send(BOB, cargo(accepted, payload))
        assert await number_of(bob) == accepted


async def test_control_queues_are_bounded_too() -> None:
    async with pair(limits=LinkLimits(inbox_messages_max=10, queue_messages_max=10)) as (ann, bob):
        note, accepted = Message(Note()), 0
        while ann.stats.dropped_full < 1000:
            accepted += ann.send(BOB, note)
            await asyncio.sleep(0)
        for _ in range(accepted):
            await number_of(bob)
        assert ann.send(BOB, note)
        assert await number_of(bob) == 0


async def test_polling_alone_moves_messages() -> None:
    async with pair() as (ann, bob):
        ann.send(BOB, Message(Note()))
        assert await number_of(bob) == 0
        for number in range(1, 1000):
            assert ann.send(BOB, Message(Note(number=number)))
            ann.poll()
        got = []
        while len(got) < 999:
            ann.poll()
            event = bob.poll()
            got += [event.message.body.number] if isinstance(event, Received) else []
        assert got == list(range(1, 1000))


async def test_a_newcomer_refused_at_first_is_let_in_once_known() -> None:
    ann, bob = await open_link(ANN), await open_link(BOB)
    try:
        ann.know(BOB, bob.endpoint)
        assert ann.send(BOB, Message(Note(number=1)))
        while not bob.stats.dropped_unauthorised:  # noqa: ASYNC110 - nothing is told, only counted
            await asyncio.sleep(0)
        bob.know(ANN, ann.endpoint)
        started = asyncio.get_running_loop().time()
        assert await number_of(bob) == 1
        assert asyncio.get_running_loop().time() - started < 1
    finally:
        await ann.close()
        await bob.close()


async def test_a_newcomer_refused_for_long_is_let_in_once_known() -> None:
    ann, bob = await open_link(ANN), await open_link(BOB)
    try:
        ann.know(BOB, bob.endpoint)
        assert ann.send(BOB, Message(Note(number=1)))
        while bob.stats.dropped_unauthorised < 2:  # noqa: ASYNC110 - the first handshake has expired
            await asyncio.sleep(0.01)
        bob.know(ANN, ann.endpoint)
        assert await number_of(bob) == 1
    finally:
        await ann.close()
        await bob.close()


async def test_forgotten_and_known_again_the_bulk_lane_flows_again() -> None:
    async with pair(limits=LinkLimits(window_bytes=4 * MIB)) as (ann, bob):
        assert ann.send(BOB, cargo(1, b"x"))
        assert await number_of(bob) == 1
        bob.forget(ANN)
        for number in range(10):
            ann.send(BOB, cargo(number, bytes(MIB)))
        assert await next_event(ann, Closed) == Closed(BOB)
        bob.know(ANN, ann.endpoint)
        ann.send(BOB, cargo(99, b"x"))
        while await number_of(bob) != 99:
            pass


async def test_forgetting_and_closing_say_nothing_to_oneself() -> None:
    async with pair() as (ann, bob):
        ann.send(BOB, Message(Note(number=1)))
        await number_of(bob)
        bob.send(ANN, Message(Note(number=2)))
        await number_of(ann)
        ann.forget(BOB)
        assert await next_event(bob, Closed) == Closed(ANN)
        assert ann.poll() is None


ECHO = """
import asyncio, sys
sys.path[:0] = sys.argv[3:]
from test_zmq_link import ANN, BOB, Endpoint, Message, Note, keys_of, open_link
async def main():
    link = await open_link(BOB, port=int(sys.argv[2]))
    link.know(ANN, Endpoint(sys.argv[1], keys_of(ANN)[0]))
    print(link.endpoint.address, flush=True)
    while True:
        event = await link.recv()
        link.send(ANN, Message(Note(number=event.message.body.number + 1)))
asyncio.run(main())
"""


@asynccontextmanager
async def echo_process(ann: ZmqLink, port: int = 0) -> AsyncIterator[tuple[subprocess.Popen[str], str]]:
    """Bob in a process of his own, who answers each number with the next."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent.parent)]
    command = [sys.executable, "-c", ECHO, ann.endpoint.address, str(port), *paths]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    assert process.stdout is not None
    try:
        yield process, (await asyncio.to_thread(process.stdout.readline)).strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.e2e
async def test_a_killed_peer_is_reported_at_once_and_found_again_at_its_address() -> None:
    ann = await open_link(ANN)
    loop = asyncio.get_running_loop()
    try:
        async with echo_process(ann) as (process, address):
            ann.know(BOB, Endpoint(address, keys_of(BOB)[0]))
            assert ann.send(BOB, Message(Note(number=1)))
            assert await number_of(ann) == 2
            assert ann.send(BOB, cargo(2, bytes(3 * MIB)))
            assert await number_of(ann) == 3
            os.kill(process.pid, signal.SIGKILL)
            killed_at = loop.time()
            assert await next_event(ann, Closed) == Closed(BOB)
            assert loop.time() - killed_at < 0.5  # about 0.03 s, but the machine may be busy
        async with echo_process(ann, int(address.rsplit(":", 1)[1])) as (_, again):
            assert again == address
            assert ann.send(BOB, Message(Note(number=5)))
            event = await ann.recv()
            assert event == Received(BOB, Message(Note(number=6))), "one loss is told once"
            assert ann.send(BOB, cargo(7, bytes(3 * MIB)))
            assert await number_of(ann) == 8
    finally:
        await ann.close()


async def test_a_peer_that_was_never_there_is_reported_once() -> None:
    ann, gone = await open_link(ANN), await open_link(BOB)
    try:
        await gone.close()
        ann.know(BOB, gone.endpoint)
        ann.send(BOB, Message(Note()))
        assert await ann.recv() == Closed(BOB)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await ann.recv()
    finally:
        await ann.close()


async def until_at_rest(ann: ZmqLink) -> None:
    async with asyncio.timeout(20):
        while any(dialer.is_dialled for dialer in ann._peers[BOB]._dialers.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_who_is_away_for_long_is_dialled_only_when_there_is_something_to_say() -> None:
    brief = LinkLimits(stall_s=0.1, redial_s=0.3, redial_turn_s=0.2)
    ann, bob = await open_link(ANN, limits=brief), await open_link(BOB)
    try:
        ann.know(BOB, bob.endpoint)
        bob.know(ANN, ann.endpoint)
        assert ann.send(BOB, Message(Note(number=1)))
        assert await number_of(bob) == 1
        await bob.close()
        assert await next_event(ann, Closed) == Closed(BOB)
        await until_at_rest(ann)
        assert ann.send(BOB, cargo(2, b"to nobody"))
        await until_at_rest(ann)
        assert not ann._peers[BOB].waiting
        bob = await open_link(BOB, port=int(bob.endpoint.address.rsplit(":", 1)[1]))
        bob.know(ANN, ann.endpoint)
        assert ann.send(BOB, cargo(3, b"you are back"))
        assert await number_of(bob) == 3
        assert ann.send(BOB, Message(Note(number=4)))
        assert await number_of(bob) == 4
        assert bob.send(ANN, Message(Note(number=5)))
        assert await number_of(ann) == 5
        assert ann.poll() is None, "one loss is told once"
    finally:
        await ann.close()
        await bob.close()


async def test_a_peer_that_never_lets_us_in_is_left_alone_too() -> None:
    brief = LinkLimits(stall_s=0.1, redial_s=0.3, redial_turn_s=0.2)
    ann, bob = await open_link(ANN, limits=brief), await open_link(BOB)
    try:
        ann.know(BOB, bob.endpoint)
        assert ann.send(BOB, Message(Note(number=1)))
        await until_at_rest(ann)
        bob.know(ANN, ann.endpoint)
        assert ann.send(BOB, Message(Note(number=2)))
        assert await number_of(bob) == 2
    finally:
        await ann.close()
        await bob.close()


async def test_closing_does_not_wait_for_the_dead() -> None:
    ann, gone = await open_link(ANN), await open_link(BOB)
    await gone.close()
    ann.know(BOB, gone.endpoint)
    ann.send(BOB, Message(Note()))
    assert await next_event(ann, Closed) == Closed(BOB)
    started = asyncio.get_running_loop().time()
    await ann.close()
    assert asyncio.get_running_loop().time() - started < 0.5


async def test_a_port_in_use_is_one_clear_sentence() -> None:
    ann = await open_link(ANN)
    try:
        port = int(ann.endpoint.address.rsplit(":", 1)[1])
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            await open_link(BOB, port=port)
    finally:
        await ann.close()


@pytest.mark.parametrize("host", ["0.0.0.0", "203.0.113.7", "no such interface"])
async def test_an_address_that_cannot_be_used_is_one_clear_sentence(host: str) -> None:
    public, secret = keys_of(ANN)
    with pytest.raises(CannotListen, match="listen"):
        await ZmqLink.open(me=ANN, curve_public=public, curve_secret=secret, schema=SCHEMA, host=host)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ipc:///tmp/x",
        "tcp://a;b:1",
        "tcp://127.0.0.1:0",
        "tcp://1.2.3.4:99999",
        "sim://a",
        "tcp://localhost:4000",
    ],
)
async def test_a_peer_without_a_usable_address_can_be_heard_and_not_sent_to(address: str) -> None:
    ann, bob = await open_link(ANN), await open_link(BOB)
    try:
        bob.know(ANN, Endpoint(address, ann.endpoint.curve_key))
        ann.know(BOB, bob.endpoint)
        assert not bob.send(ANN, Message(Note()))
        assert ann.send(BOB, Message(Note(number=3)))
        assert await number_of(bob) == 3
    finally:
        await ann.close()
        await bob.close()
