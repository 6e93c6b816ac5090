"""The owner's end of a fork server: ask for children, hear of their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from swarm.lab.fork_server import PACKET_BYTES_MAX, encode_options, kill_group

COMMAND = (sys.executable, "-m", "swarm.lab.fork_server")


class SpawnError(Exception):
    """The fork server ended: it could not import the project, or was killed."""


class Spawner:
    """An async context manager. Leaving it kills every child that is left, groups and all.

    `command` is what runs the server; the number of its socket is appended.
    """

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._replies: deque[asyncio.Future[int]] = deque()
        self._exits: dict[int, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Spawner:
        self._start()
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[int] = loop.create_future()
        self._replies.append(ready)
        loop.add_reader(self._socket, self._take_replies)
        try:
            await ready
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self._exits:
            kill_group(pid)
        self._close()

    @property
    def children(self) -> list[int]:
        """Process ids that were spawned and have not ended."""
        return [pid for pid, end in self._exits.items() if not end.done()]

    async def spawn(self, kind: str, options: Any, log: Path, namespace: str = "") -> int:
        """Fork a child that runs `options`; its output goes to `log`. Returns its process id.

        namespace: of the network in which it runs; empty: the owner's.
        """
        assert self._socket is not None, "spawn inside `async with`"
        request = {"kind": kind, "options": encode_options(options), "log": str(log), "namespace": namespace}
        packet = json.dumps(request).encode()
        assert len(packet) <= PACKET_BYTES_MAX, "options are small"
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        try:
            self._socket.send(packet)
        except OSError as error:
            raise SpawnError(f"the fork server is gone: {error.strerror}") from None
        return await reply

    def signal(self, pid: int, number: signal.Signals) -> None:
        """Signal the child alone, if it has not ended."""
        if pid in self.children:
            # The fork server may have reaped it already and not have told us yet.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def wait(self, pid: int) -> int:
        """The child's exit code; negative is the signal that ended it."""
        return await asyncio.shield(self._exits[pid])

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        with theirs:
            command = [*self._command, str(theirs.fileno())]
            # Its own session: Ctrl-C in the terminal reaches us, and we decide what it means.
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)

    def _take_replies(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(PACKET_BYTES_MAX)
        except BlockingIOError:
            return
        except ConnectionError:
            packet = b""
        if not packet:
            return self._server_ended()
        reply = json.loads(packet)
        if "exited" in reply:
            self._exits[reply["exited"]].set_result(reply["code"])
            return
        pid = reply.get("spawned", 0)
        if pid:
            self._exits[pid] = asyncio.get_running_loop().create_future()
        waiting = self._replies.popleft()
        if not waiting.done():
            waiting.set_result(pid)

    def _server_ended(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().remove_reader(self._socket)
        while self._replies:
            waiting = self._replies.popleft()
            if not waiting.done():
                waiting.set_exception(SpawnError("the fork server ended: see the error above"))
        for end in self._exits.values():
            if not end.done():
                end.set_result(-signal.SIGKILL)  # children are killed with the server

    def _close(self) -> None:
        assert self._socket is not None
        assert self._process is not None
        self._server_ended()
        self._socket.close()
        self._process.kill()
        self._process.wait()
