"""Who may connect: the answer to ZAP, ZeroMQ's authentication protocol (rfc.zeromq.org/spec/27).

The user id of a connection is the CURVE key that it proved, so every frame says which key it
came from. Who that key belongs to is looked up for each message, because ZeroMQ does not close
what is open when a key is admitted no longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils import z85

from transport.zmq_socket import NOBLOCK, READABLE, Context, events_of

ZAP_ADDRESS = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
UNDECIDED_MAX = 256


@dataclass(frozen=True, slots=True)
class Question:
    """A handshake that waits for our answer. route, request: where the answer goes."""

    route: bytes
    request: bytes
    key: str


class Gatekeeper:
    """Answers ZAP in the loop's thread: yes to admitted CURVE keys, nothing to all others.

    An unknown key gets no answer rather than a no: a newcomer often dials before the news of it
    has arrived. Becomes its key known in time, its handshake goes on at once; else the handshake
    expires and the newcomer dials again. After a no, a ZeroMQ client would never try again.

    admits: whether a key (Z85) may connect. refused: told of every question about another.
    """

    def __init__(
        self,
        context: Context,
        admits: Callable[[str], bool],
        refused: Callable[[], None],
    ) -> None:
        self._admits = admits
        self._refused = refused
        self._undecided: dict[bytes, Question] = {}
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ZAP_ADDRESS)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._answer)

    def admit(self, key: str) -> None:
        """A key became known: let in whoever waits with it."""
        waiting = [question for question in self._undecided.values() if question.key == key]
        for question in waiting:
            del self._undecided[question.route]
            self._say_yes(question)
        # Sending may have swallowed the wake-up for a question that just arrived.
        self._loop.call_soon(self._answer)

    def close(self) -> None:
        """Answer nothing more."""
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _answer(self) -> None:
        while not self._socket.closed and events_of(self._socket) & READABLE:
            question = _parse(self._socket.recv_multipart(NOBLOCK))
            if question is not None and self._admits(question.key):
                self._say_yes(question)
            else:
                self._refused()
                self._postpone(question)

    def _say_yes(self, question: Question) -> None:
        head = [question.route, b"", ZAP_VERSION, question.request]
        self._socket.send_multipart([*head, b"200", b"OK", question.key.encode(), b""], NOBLOCK)

    def _postpone(self, question: Question | None) -> None:
        if question is None:
            return
        self._undecided[question.route] = question
        if len(self._undecided) > UNDECIDED_MAX:
            del self._undecided[next(iter(self._undecided))]


def _parse(frames: list[bytes]) -> Question | None:
    """A CURVE question, or None. Only libzmq itself can ask; the key is the one it verified."""
    if len(frames) != 9 or frames[2] != ZAP_VERSION or frames[7] != b"CURVE" or len(frames[8]) != 32:
        return None
    return Question(frames[0], frames[3], z85.encode(frames[8]).decode())
