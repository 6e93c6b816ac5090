"""What every ZeroMQ socket of a link has in common: its options, and messages without waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from transport.link import HEARTBEAT_TIMEOUT_S
from transport.wire import Buffer

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]

# Plain numbers: arithmetic on the enumerations costs more than the calls they are for.
READABLE, WRITABLE = int(zmq.POLLIN), int(zmq.POLLOUT)
NOBLOCK, MORE = int(zmq.NOBLOCK), int(zmq.SNDMORE)

HANDSHAKE_MS = 2_000
"""A silent socket is closed after this long; an unadmitted newcomer dials again as often."""
HEARTBEAT_MS = 5_000
HEARTBEAT_TIMEOUT_MS = int(1000 * HEARTBEAT_TIMEOUT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveKeys:
    """This side's CURVE key pair, Z85 text."""

    public: str
    secret: str


def events_of(socket: Socket) -> int:
    """What the socket is ready for: READABLE, WRITABLE, both or neither.

    Its descriptor tells only that something changed, once, and any call on the socket may
    consume that. So every use of a socket ends by asking here and acting on the answer.
    """
    return int(socket.getsockopt(zmq.EVENTS))


def set_common(socket: Socket, address: str, queued_max: int, frame_bytes_max: int) -> None:
    """Options of every socket that speaks TCP and will dial or bind this address."""
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    socket.setsockopt(zmq.SNDHWM, queued_max)
    socket.setsockopt(zmq.RCVHWM, queued_max)
    socket.setsockopt(zmq.MAXMSGSIZE, frame_bytes_max)
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)


def send_frames(socket: Socket, frames: Sequence[Buffer]) -> None:
    """Send one ZeroMQ message without waiting. Raises zmq.Again if nothing was sent.

    Frames are copied: at most a segment each, they go as fast as shared ones (which cost a
    thread switch to give back), and the sender may write to its buffer again at once.
    """
    last = len(frames) - 1
    for index, frame in enumerate(frames):
        flags = NOBLOCK if index == last else NOBLOCK | MORE
        socket.send(frame, flags)


def receive_frames(socket: Socket, frames_max: int) -> list[zmq.Frame]:
    """The rest of a ZeroMQ message that is there. Of too many frames, one over the limit is kept."""
    frames: list[zmq.Frame] = []
    more = True
    while more:
        frame = socket.recv(NOBLOCK, copy=False)
        more = frame.more
        if len(frames) <= frames_max:
            frames.append(frame)
    return frames
