"""The lobby's door: how many strangers stand there, how long, and how much any of them may say.

libzmq keeps all parts of a message until the last has come, however many there are, and the lobby
lets any key in. So strangers do not reach libzmq: each connection is taken in here, its bytes are
counted as they pass, and whoever says more than a join takes is shown out. Behind the door every
connection has a room of its own, of which nothing is left when it ends.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from swarm.daemon.buckets import Bucket, Sources
from swarm.daemon.options import UserError

CHUNK_BYTES = 1 << 14
"""Read at once, and kept for whoever does not read."""
BACKLOG = 64
"""Connections that the system holds until they are taken in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorLimits:
    """What strangers may cost: at most `places` times `said_bytes_max`, and what a socket needs.

    places: connections at once.
    said_bytes_max: bytes that one connection may say. A join takes 20 KB, handshake and all.
    stay_s: how long one connection may last. A slow line needs it to hear a welcome.
    source_rate_per_s, source_burst: connections from one IP address; one machine that starts
        dozens of nodes at once needs the burst.
    rate_per_s, burst: connections from everybody. Each costs about 1 ms of CPU.
    sources_max: addresses remembered; the longest silent is forgotten.
    """

    places: int = 64
    said_bytes_max: int = 1 << 17
    stay_s: float = 120.0
    source_rate_per_s: float = 5.0
    source_burst: float = 128.0
    rate_per_s: float = 200.0
    burst: float = 512.0
    sources_max: int = 1024


class Room(Protocol):
    """What answers one connection."""

    async def attend(self) -> None:
        """Answer until cancelled."""
        ...

    def close(self) -> None:
        """Leave nothing."""
        ...


class Door:
    """Takes strangers in, each into a room of its own.

    open_room: a room for an IP address that listens at an "ipc://" address from then on. Raises
        OSError if the system has none.
    dropped: told why a connection ended that might have gone on: the first time, the second, the
        fourth and so on, with how often by then, because strangers shall not fill our events.
    """

    def __init__(
        self,
        open_room: Callable[[str, str], Room],
        dropped: Callable[[str, int], None],
        limits: DoorLimits | None = None,
    ) -> None:
        self._open_room, self._dropped = open_room, dropped
        self._limits = limits or DoorLimits()
        self._inside: dict[asyncio.Task[None], str] = {}
        self._all = Bucket(self._limits.rate_per_s, self._limits.burst, self._limits.burst, at=0.0)
        self._sources = Sources(
            self._limits.source_rate_per_s, self._limits.source_burst, self._limits.sources_max
        )
        self._dropped_count = 0

    async def run(self, listening: socket.socket) -> None:
        """Take strangers in until cancelled."""
        with tempfile.TemporaryDirectory(prefix="lobby-") as folder:
            async with asyncio.TaskGroup() as tasks:
                numbers = count()

                def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                    address = str(writer.get_extra_info("peername", ("nobody",))[0])
                    if not self._has_room_for(address):
                        writer.transport.abort()
                        return
                    place = Path(folder) / str(next(numbers))
                    visit = tasks.create_task(self._visit(reader, writer, address, place))
                    self._inside[visit] = address
                    visit.add_done_callback(lambda visit: self._inside.pop(visit, None))

                server = await asyncio.start_server(enter, sock=listening, limit=CHUNK_BYTES, backlog=BACKLOG)
                async with server:
                    await server.serve_forever()

    def _has_room_for(self, address: str) -> bool:
        """Whether one more may enter; if need be one from where most are leaves for it."""
        now = asyncio.get_running_loop().time()
        if not self._sources.of(address, now).take(now) or not self._all.take(now):
            self._drop(f"too many connections to the lobby, now from {address}")
            return False
        if len(self._inside) < self._limits.places:
            return True
        crowds = Counter(self._inside.values())
        [(crowd, size)] = crowds.most_common(1)
        self._drop(f"the lobby is full, mostly of {crowd}")
        if crowds[address] == size:
            return False
        oldest = next(visit for visit, source in self._inside.items() if source == crowd)
        del self._inside[oldest]
        oldest.cancel()
        return True

    async def _visit(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str, place: Path
    ) -> None:
        """One connection, until either side or the time ends it."""
        try:
            with closing(self._open_room(address, f"ipc://{place}")) as room:
                inside = await asyncio.open_unix_connection(str(place), limit=CHUNK_BYTES)
                try:
                    async with asyncio.timeout(self._limits.stay_s), asyncio.TaskGroup() as sides:
                        sides.create_task(room.attend())
                        sides.create_task(self._let_in(reader, inside[1], address))
                        sides.create_task(self._let_out(inside[0], writer))
                finally:
                    inside[1].transport.abort()
        except* (_Over, TimeoutError):
            pass
        except* OSError as group:
            self._drop(f"no room for {address}: {group.exceptions[0]}")
        finally:
            writer.transport.abort()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str) -> None:
        left = self._limits.said_bytes_max
        while chunk := await _read(reader):
            left -= len(chunk)
            if left < 0:
                self._drop(f"more than {self._limits.said_bytes_max} bytes for the lobby from {address}")
                break
            await _write(writer, chunk)
        raise _Over

    async def _let_out(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await _read(reader):
            await _write(writer, chunk)
        raise _Over

    def _drop(self, why: str) -> None:
        self._dropped_count += 1
        if self._dropped_count.bit_count() == 1:
            self._dropped(why, self._dropped_count)


class _Over(Exception):
    """One side of a connection has ended."""


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(CHUNK_BYTES)
    except ConnectionError:
        raise _Over from None


async def _write(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    try:
        writer.write(chunk)
        await writer.drain()
    except ConnectionError:
        raise _Over from None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"the lobby cannot listen on {host}:{port}, as invitations say "
            f"({os.strerror(error.errno or 0)}): is this job already running?"
        ) from None
