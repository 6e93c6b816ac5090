"""The two bridges: queues within one process, and a socket pair between two."""

from __future__ import annotations

import asyncio
import socket

from swarm.daemon.bridge import BRIDGE_SCHEMA, Awake, Progress
from transport.wire import Body

BACKLOG_BYTES = 4 << 20
"""What a stalled half leaves unread before the other stops reporting progress to it."""
HEADER_BYTES = 4


class MemoryBridge:
    """One end of a pair of queues."""

    def __init__(self, inbox: asyncio.Queue[Body | None], outbox: asyncio.Queue[Body | None]) -> None:
        self._inbox, self._outbox = inbox, outbox

    @classmethod
    def pair(cls) -> tuple[MemoryBridge, MemoryBridge]:
        """Two ends; what one sends the other receives."""
        one: asyncio.Queue[Body | None] = asyncio.Queue()
        other: asyncio.Queue[Body | None] = asyncio.Queue()
        return cls(one, other), cls(other, one)

    def send(self, body: Body) -> None:
        """See `Bridge`."""
        self._outbox.put_nowait(body)

    async def recv(self) -> Body:
        """See `Bridge`."""
        body = await self._inbox.get()
        if body is None:
            raise EOFError
        return body

    def close(self) -> None:
        """See `Bridge`."""
        self._outbox.put_nowait(None)


class SocketBridge:
    """One end of a stream socket pair; bodies are length-prefixed headers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, end: socket.socket) -> SocketBridge:
        """Take over one end of a pair."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, body: Body) -> None:
        """See `Bridge`."""
        backlog = self._writer.transport.get_write_buffer_size()
        if self._writer.is_closing() or (isinstance(body, Progress | Awake) and backlog > BACKLOG_BYTES):
            return
        data = BRIDGE_SCHEMA.pack(body)
        self._writer.write(len(data).to_bytes(HEADER_BYTES, "big") + data)

    async def recv(self) -> Body:
        """See `Bridge`. A torn message is the other half's death."""
        try:
            length = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
            return BRIDGE_SCHEMA.unpack(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def drain(self) -> None:
        """Wait until what was sent is on its way."""
        await self._writer.drain()

    def close(self) -> None:
        """See `Bridge`."""
        self._writer.close()
