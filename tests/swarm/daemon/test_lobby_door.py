"""Who may stand at the lobby's door: strangers that take all places, or the last socket, keep nobody out."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swarm.daemon.jobdir import init_job, open_job
from swarm.daemon.lobby_door import Door, DoorLimits, Room, listen
from swarm.daemon.lobby_server import open_lobby, serve_lobby
from swarm.daemon.options import UserError
from swarm.daemon.revoking import RevokedList
from swarm.job import Job

LIMITS = DoorLimits(places=4, said_bytes_max=1000)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A room that says back what it hears."""

    def __init__(self, place: str) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(place.removeprefix("ipc://"))
        self.listening.listen()
        self.listening.setblocking(False)

    async def attend(self) -> None:
        loop = asyncio.get_running_loop()
        heard, _ = await loop.sock_accept(self.listening)
        with heard:
            while said := await loop.sock_recv(heard, 100):
                await loop.sock_sendall(heard, said)

    def close(self) -> None:
        self.listening.close()


@dataclass
class Street:
    """Where strangers come from, and what is told of them."""

    port: int
    told: list[str]
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def dial(self, source: str = "127.0.0.1") -> Streams:
        streams = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self.writers.append(streams[1])
        return streams


@contextlib.asynccontextmanager
async def open_door(
    open_room: Callable[[str, str], Room], limits: DoorLimits = LIMITS
) -> AsyncIterator[Street]:
    told: list[str] = []
    listening = listen("127.0.0.1", 0)
    street = Street(listening.getsockname()[1], told)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        door = tasks.create_task(Door(open_room, lambda why, _: told.append(why), limits).run(listening))
        yield street
        door.cancel()
    for writer in street.writers:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def hears(streams: Streams, said: bytes) -> bool:
    reader, writer = streams
    with contextlib.suppress(ConnectionError):
        writer.write(said)
        return await reader.read(100) == said
    return False


async def test_who_takes_all_places_loses_one_to_somebody_else() -> None:
    async with open_door(lambda _, place: Echo(place)) as street:
        crowd = [await street.dial() for _ in range(LIMITS.places)]
        assert [await hears(each, b"here") for each in crowd] == [True] * LIMITS.places
        assert not await hears(await street.dial(), b"one more of us")
        assert await hears(await street.dial("127.0.0.2"), b"somebody else")
        assert [await hears(each, b"still") for each in crowd] == [False] + [True] * (LIMITS.places - 1)
    assert street.told == ["the lobby is full, mostly of 127.0.0.1"] * 2


async def test_who_connects_too_often_is_turned_away_and_costs_nobody_else_a_turn() -> None:
    opened: list[str] = []

    def open_room(address: str, place: str) -> Echo:
        opened.append(address)
        return Echo(place)

    slow = DoorLimits(places=4, source_rate_per_s=1e-6, source_burst=2)
    async with open_door(open_room, slow) as street:
        assert [await hears(await street.dial(), b"here") for _ in range(4)] == [True, True, False, False]
        assert await hears(await street.dial("127.0.0.2"), b"somebody else")
    assert opened == ["127.0.0.1"] * 2 + ["127.0.0.2"]
    assert street.told == ["too many connections to the lobby, now from 127.0.0.1"] * 2


async def test_whoever_says_too_much_is_shown_out_and_the_next_is_heard() -> None:
    async with open_door(lambda _, place: Echo(place)) as street:
        reader, writer = await street.dial()
        writer.write(bytes(LIMITS.said_bytes_max + 1))
        with contextlib.suppress(ConnectionError):
            while await reader.read(100):
                pass
        assert await hears(await street.dial(), b"next")
    assert street.told == ["more than 1000 bytes for the lobby from 127.0.0.1"]


async def test_without_a_socket_left_a_connection_ends_and_the_door_stays_open() -> None:
    left = iter([False, True])

    def open_room(_: str, place: str) -> Echo:
        if not next(left):
            raise OSError("too many open files")
        return Echo(place)

    async with open_door(open_room) as street:
        assert not await hears(await street.dial(), b"here")
        assert await hears(await street.dial(), b"here")
    assert street.told == ["no room for 127.0.0.1: too many open files"]


async def test_a_lobby_that_listens_under_a_name_looks_it_up_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_job(tmp_path, job=Job(), host="localhost", lobby_port=0)
    job, told = open_job(tmp_path), list[tuple[str, int]]()

    def no_listening(host: str, port: int) -> socket.socket:
        told.append((host, port))
        raise UserError("that is all")

    monkeypatch.setattr("swarm.daemon.lobby_server.listen", no_listening)
    revoked = RevokedList(job, lambda _: None)
    for host in ("localhost", "0.0.0.0", "::1"):
        with pytest.raises(UserError):
            await serve_lobby(open_lobby(job), job, revoked, host, 4000, lambda: (), lambda _: None)
    assert told == [("127.0.0.1", 4000), ("0.0.0.0", 4000), ("::1", 4000)]
