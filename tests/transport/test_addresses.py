"""Addresses between peers are numbers: whoever goes by a name looks it up, alone and without a stop."""

import asyncio
import socket
from typing import ClassVar

import pytest
import zmq

from transport.addresses import host_and_port, is_address, tcp_address, without_name
from transport.link import Received
from transport.machine import NodeId
from transport.resolving import CannotResolve, resolved
from transport.wire import Body, Message, Schema
from transport.zmq_link import ZmqLink
from transport.zmq_listen import CannotListen


class Note(Body):
    kind: ClassVar[str] = "note"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://[::1]:65535", "tcp://[2001:db8::1.2.3.4]:9"])
def test_an_ip_address_with_a_port_can_be_dialled(address: str) -> None:
    assert is_address(address)
    assert without_name(address) == address
    assert tcp_address(*host_and_port(address)) == address


@pytest.mark.parametrize(
    "address",
    [
        "tcp://slow.example.org:4000",
        "tcp://localhost:4000",
        "tcp://h:1",
        "tcp://1:4000",
        "tcp://1.2.3:4000",
        "tcp://0x7f.0.0.1:4000",
        "tcp://127.0.0.01:4000",
        "tcp://1.2.3.4;5.6.7.8:4000",
        "tcp://[fe80::1%eth0]:4000",
        "tcp://[slow.example.org]:4000",
        "tcp://::1:4000",
        "tcp://0.0.0.0:4000",
        "tcp://[::]:4000",
        "tcp://224.0.0.1:4000",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:4000\n",
        "tcp://\u0661.1.1.1:4000",
        "tcp://eth0:4000",
        "tcp://",
    ],
)
def test_nothing_else_can_and_least_of_all_a_name(address: str) -> None:
    assert not is_address(address)
    with pytest.raises(ValueError, match="no IP address and port"):
        without_name(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_address_stands_for_itself(host: str) -> None:
    assert await resolved(host) == host


async def test_of_a_name_the_address_is_taken_that_most_can_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(*_: object, **__: object) -> list[object]:
        v6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
        return [v6, (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    assert await resolved("both.example.org") == "192.0.2.1"


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("long")])
async def test_a_name_without_an_address_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def look_up(*_: object, **__: object) -> list[object]:
        raise error

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", look_up)
    with pytest.raises(CannotResolve, match=r"'nobody\.example\.org' stands for no address: "):
        await resolved("nobody.example.org")


async def open_link(letter: str, host: str, advertise: str = "") -> ZmqLink:
    public, secret = zmq.curve_keypair()
    return await ZmqLink.open(
        me=NodeId(letter * 64),
        curve_public=public.decode(),
        curve_secret=secret.decode(),
        schema=Schema((Note,)),
        host=host,
        advertise=advertise,
    )


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="needs IPv6"))],
)
async def test_peers_meet_at_either_kind_of_address(host: str) -> None:
    ann, bob = await open_link("a", host), await open_link("b", host)
    try:
        ann.know(NodeId("b" * 64), bob.endpoint)
        bob.know(NodeId("a" * 64), ann.endpoint)
        assert ann.send(NodeId("b" * 64), Message(Note()))
        async with asyncio.timeout(10):
            assert await bob.recv() == Received(NodeId("a" * 64), Message(Note()))
    finally:
        await ann.close()
        await bob.close()


@pytest.mark.parametrize(
    ("host", "advertise"), [("localhost", ""), ("127.0.0.1", "a.example.org"), ("::", ""), ("::", "0.0.0.0")]
)
async def test_nobody_listens_under_a_name(host: str, advertise: str) -> None:
    with pytest.raises(CannotListen, match="needs an address that peers can dial"):
        await open_link("a", host, advertise)
