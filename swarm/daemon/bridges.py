"""The two bridges: queues within one process, and a socket pair between two.

Both keep little for a half that does not read, and let nothing be lost that still counts: of what
waits, a newer body replaces the older one about the same (`subject_of`).
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque

from swarm.daemon.bridge import BRIDGE_SCHEMA, subject_of
from transport.wire import Body

BACKLOG_BYTES = 4 << 20
"""What a half may leave unread before only the newest of each subject is kept for it."""
BACKLOG_BODIES = 4096
"""The same between two halves in one process."""
HEADER_BYTES = 4


class Backlog:
    """What waits for the other half, the longest waiting first: one body of each subject."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Body] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, body: Body) -> None:
        """Add a body, in place of an older one."""
        subject = subject_of(body)
        self._waiting.pop(subject, None)
        self._waiting[subject] = body

    def pop(self) -> Body:
        """Take the next one out."""
        return self._waiting.pop(next(iter(self._waiting)))


class Pipe(asyncio.Queue[Body | None]):
    """One direction within a process. None is its end."""

    def _init(self, maxsize: int) -> None:
        del maxsize
        self._queue = deque[Body | None]()
        self._backlog = Backlog()

    def _put(self, item: Body | None) -> None:
        if item is not None and (self._backlog or len(self._queue) >= BACKLOG_BODIES):
            self._backlog.put(item)
            return
        while self._backlog:
            self._queue.append(self._backlog.pop())
        self._queue.append(item)

    def _get(self) -> Body | None:
        if self._backlog:
            self._queue.append(self._backlog.pop())
        return self._queue.popleft()


class MemoryBridge:
    """One end of a pair of queues."""

    def __init__(self, inbox: asyncio.Queue[Body | None], outbox: asyncio.Queue[Body | None]) -> None:
        self._inbox, self._outbox = inbox, outbox

    @classmethod
    def pair(cls) -> tuple[MemoryBridge, MemoryBridge]:
        """Two ends; what one sends the other receives."""
        one, other = Pipe(), Pipe()
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
    """One end of a stream socket pair; bodies are length-prefixed headers.

    What waits moves on whenever something is sent or received: a half that lives says something
    about once a second.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._backlog = Backlog()

    @classmethod
    async def open(cls, end: socket.socket) -> SocketBridge:
        """Take over one end of a pair."""
        return cls(*await asyncio.open_connection(sock=end))

    @property
    def unread_bytes(self) -> int:
        """Written, and not yet taken by the system."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, body: Body) -> None:
        """See `Bridge`."""
        self._backlog.put(body)
        self._move_on()

    async def recv(self) -> Body:
        """See `Bridge`. A torn message is the other half's death."""
        self._move_on()
        try:
            length = int.from_bytes(await self._reader.readexactly(HEADER_BYTES), "big")
            return BRIDGE_SCHEMA.unpack(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    async def drain(self) -> None:
        """Wait until what was sent is on its way."""
        while True:
            self._move_on()
            await self._writer.drain()
            if not self._backlog or self._writer.is_closing():
                return

    def close(self) -> None:
        """See `Bridge`."""
        self._move_on()
        self._writer.close()

    def _move_on(self) -> None:
        while self._backlog and not self._writer.is_closing() and self.unread_bytes <= BACKLOG_BYTES:
            data = BRIDGE_SCHEMA.pack(self._backlog.pop())
            self._writer.write(len(data).to_bytes(HEADER_BYTES, "big") + data)
