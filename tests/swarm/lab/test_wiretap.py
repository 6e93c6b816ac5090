"""The account that is kept of all bytes is held against what the links themselves have counted."""

from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

import pytest

from swarm.lab.wiretap import TappedNetwork
from transport.machine import NodeId
from transport.sim_link import SimLink
from transport.sim_network import QueueLimits
from transport.sim_paths import LinkShape
from transport.virtual_time import run_virtual
from transport.wire import Body, Lane, Message, Schema

A, B = NodeId("a" * 64), NodeId("b" * 64)


class Note(Body):
    kind: ClassVar[str] = "note"


class Cargo(Body):
    kind: ClassVar[str] = "cargo"
    lane: ClassVar[Lane] = "bulk"


Account = tuple[TappedNetwork, SimLink, SimLink]


def talked(wrong: Callable[[Account], Any] = lambda account: None, **shape: float) -> list[str]:
    """What does not balance after A has sent to B and to a third that is not there, and B was restarted."""

    async def talk() -> list[str]:
        network = TappedNetwork(
            Random(1), LinkShape(latency_s=0.1, **shape), queues=QueueLimits(), tap=lambda *_: None
        )
        schema = Schema((Note, Cargo))
        a, b = (network.open(node, curve_key=node[:40], schema=schema) for node in (A, B))
        a.know(B, b.endpoint)
        b.know(A, a.endpoint)
        for body in (Note(), Cargo(), Note()):
            a.send(B, Message(body))
        for _ in range(3):
            await b.recv()
        network.crash(B)
        a.send(B, Message(Note()))
        network.open(B, curve_key=B[:40], schema=schema)
        wrong((network, a, b))
        return list(network.imbalances())

    return run_virtual(talk())


def says(name: str, lane: Lane, by: int) -> Callable[[Account], None]:
    """The receiver's counter is wrong, or the sender's."""

    def change(account: Account) -> None:
        link = account[1] if name == "bytes_sent" else account[2]
        getattr(link.stats, name)[lane] += by

    return change


def unseen(account: Account) -> None:
    """The network took one byte more than it accounts for."""
    account[0].taken["bulk"] += 1
    account[1].stats.bytes_sent["bulk"] += 1


@pytest.mark.parametrize("shape", [{}, {"duplication": 0.99}], ids=["once", "most control messages twice"])
def test_bytes_balance_also_of_links_that_are_gone(shape: dict[str, float]) -> None:
    assert talked(**shape) == []


@pytest.mark.parametrize(
    "wrong",
    [
        says("bytes_sent", "bulk", 1),
        says("bytes_sent", "control", -1),
        says("bytes_received", "bulk", 1),
        says("bytes_received", "control", -1),
        unseen,
    ],
)
def test_a_byte_that_one_of_them_counts_otherwise_is_found(wrong: Callable[[Account], None]) -> None:
    assert len(talked(wrong)) == 1
