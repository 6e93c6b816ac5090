"""Between the halves of a node: a half that hangs costs the other little, and misses nothing that counts."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.daemon.bridge import Awake, FactsChanged, MemberChanged, MemberGone, NoticeLearned, Progress
from swarm.daemon.bridges import BACKLOG_BODIES, BACKLOG_BYTES, Backlog, MemoryBridge, SocketBridge
from swarm.gossip.view import Facts
from transport.wire import Body, Signed

NODES = [f"{number:064x}" for number in range(8)]


def changed(node: str, number: int = 0) -> MemberChanged:
    payload = number.to_bytes(4, "big") + bytes(2000)
    return MemberChanged(record=Signed(payload=payload, signer=node, signature=bytes(64)), status="alive")


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[SocketBridge, SocketBridge]]:
    one, other = socket.socketpair()
    ours, theirs = await SocketBridge.open(one), await SocketBridge.open(other)
    try:
        yield ours, theirs
    finally:
        for bridge in (ours, theirs):
            bridge.close()
            with contextlib.suppress(ConnectionError):
                await bridge._writer.wait_closed()


async def test_a_half_that_reads_nothing_is_kept_a_limited_number_of_bytes_for() -> None:
    async with pair() as (ours, theirs):
        for number in range(20_000):
            ours.send(changed(random.Random(number).choice(NODES), number))
            assert ours.unread_bytes < BACKLOG_BYTES + 10_000
        assert len(ours._backlog) <= len(NODES)
        theirs.close()


async def test_what_a_half_reads_when_it_is_back_ends_with_the_newest_of_everybody() -> None:
    async with pair() as (ours, theirs):
        last = dict[str, int]()
        for number in range(5_000):
            node = NODES[number % len(NODES)]
            ours.send(changed(node, number))
            last[node] = number
        ours.send(Progress(iteration=7))
        seen = dict[str, int]()
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(ours.drain())
            while True:
                body = await theirs.recv()
                if isinstance(body, Progress):
                    break
                assert isinstance(body, MemberChanged)
                seen[body.record.signer] = int.from_bytes(body.record.payload[:4], "big")
            await draining
        assert seen == last


async def test_what_waits_moves_on_when_the_other_half_says_it_is_awake() -> None:
    async with pair() as (ours, theirs):
        while not ours._backlog:
            ours.send(changed(NODES[0]))
        theirs.send(Awake())
        async with asyncio.timeout(20):
            while ours.unread_bytes:
                await theirs.recv()
            assert isinstance(await ours.recv(), Awake)
            theirs.send(Awake())
            assert isinstance(await ours.recv(), Awake)
        assert not ours._backlog


async def test_within_one_process_the_same_holds() -> None:
    ours, theirs = MemoryBridge.pair()
    count = BACKLOG_BODIES + 1000
    for number in range(count):
        ours.send(changed(NODES[number % len(NODES)], number))
    ours.send(Progress(iteration=7))
    ours.close()
    bodies = list[Body]()
    with contextlib.suppress(EOFError):
        while True:
            bodies.append(await theirs.recv())
    assert len(bodies) == BACKLOG_BODIES + len(NODES) + 1
    assert bodies[-1] == Progress(iteration=7)
    assert bodies[-1 - len(NODES) : -1] == [
        changed(NODES[number % len(NODES)], number) for number in range(count - len(NODES), count)
    ]


SAID = st.lists(
    st.one_of(
        st.builds(changed, st.sampled_from(NODES), st.integers(0, 99)),
        st.builds(lambda node: MemberGone(node=node), st.sampled_from(NODES)),
        st.builds(
            lambda topic, version: NoticeLearned(
                topic=topic, version=version, notice=changed(NODES[0]).record
            ),
            st.sampled_from(["genesis", "revoked"]),
            st.integers(0, 9),
        ),
        st.builds(lambda n: FactsChanged(facts=Facts(iteration=n)), st.integers(0, 9)),
        st.just(Awake()),
    )
)


@settings(deadline=None)
@given(SAID)
def test_of_each_subject_the_newest_waits_in_the_order_they_were_said(said: list[Body]) -> None:
    backlog = Backlog()
    for body in said:
        backlog.put(body)

    def about(body: Body) -> object:
        match body:
            case MemberChanged(record=record):
                return record.signer
            case MemberGone(node=node):
                return node
            case NoticeLearned(topic=topic):
                return topic
            case _:
                return type(body)

    newest = [body for index, body in enumerate(said) if about(body) not in map(about, said[index + 1 :])]
    assert [backlog.pop() for _ in range(len(backlog))] == newest
