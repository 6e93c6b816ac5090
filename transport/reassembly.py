"""The receiving half of a peer's lanes: frames in, messages and credit out. No socket in sight.

Everything a peer can make us hold is bounded here: a message is declared before its first byte,
memory is taken only for what was declared and allowed, a peer has at most one stream open and a
share of what may be held, a stream that stands still is given up, and credit is withheld while the
application leaves messages lying. See `segments.py` for the frames.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from transport.link import LinkStats
from transport.segments import (
    CREDIT,
    CREDIT_FRAME,
    OPEN,
    SEGMENT,
    STREAM_HEAD,
    WELCOME,
    WHOLE,
    LinkLimits,
    nbytes_of,
)
from transport.wire import Body, Lane, Message, Schema, WireError, check_buffers

_ALIGNMENT_BYTES = 64
_ROUTES_REMEMBERED = 8
_PEER_SHARE = 4
"""One peer holds at most this part of what all may hold: it takes several to keep others out."""
STALL_SWEEPS = 4
"""How often `Inlet.sweep` is called within `LinkLimits.stall_s`."""


class Memory:
    """Buffers for messages that arrive in segments, used again once nobody looks at them.

    A fresh 64 MiB costs more in page faults than its bytes cost to copy. A buffer is free again
    when this pool holds its only reference: views that were handed out hold one each. Fresh memory
    is not cleared: its pages come into being one by one, as segments are copied there.

    kept_bytes_max: how much is kept for reuse; the rest is freed with its last view.
    """

    def __init__(self, held_bytes_max: int, kept_bytes_max: int = 128 << 20) -> None:
        self.held_bytes = 0
        self._held_bytes_max = held_bytes_max
        self._kept_bytes_max = kept_bytes_max
        self._kept: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
        # What the interpreter itself adds to the count differs between its versions.
        self._references_when_free = self._references(0)
        self._kept.clear()

    def hold(self, nbytes: int) -> bool:
        """Account for bytes of a message until `release`; False if that would be too many."""
        if self.held_bytes + nbytes > self._held_bytes_max:
            return False
        self.held_bytes += nbytes
        return True

    def release(self, nbytes: int) -> None:
        """The application took them, or they were dropped."""
        self.held_bytes -= nbytes

    def take(self, nbytes: int) -> memoryview:
        """Writable memory of `nbytes`. Its content is whatever was there before."""
        for index in range(len(self._kept)):
            fits = nbytes <= len(self._kept[index]) <= 2 * nbytes
            if fits and self._references(index) == self._references_when_free:
                return self._kept[index].data[:nbytes]
        fresh = np.empty(nbytes, np.uint8)
        self._keep(fresh)
        return fresh.data

    def _keep(self, fresh: NDArray[np.uint8]) -> None:
        if len(fresh) > self._kept_bytes_max:
            return
        self._kept.append(fresh)
        while sum(map(len, self._kept)) > self._kept_bytes_max:
            del self._kept[0]

    def _references(self, index: int) -> int:
        return sys.getrefcount(self._kept[index])


class Assembly:
    """One message whose segments are arriving, each copied once, to where it stays."""

    def __init__(self, stream: int, body: Body, memory: Memory) -> None:
        self.stream = stream
        self.body = body
        self.nbytes = sum(spec.nbytes for spec in body.tensors)
        self.fresh_bytes = 0
        self.sweeps = 0
        sizes = [spec.nbytes for spec in body.tensors]
        steps = [-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes]
        starts = list(accumulate(steps, initial=0))
        block = memory.take(starts[-1])
        self._views = tuple(block[at : at + size] for at, size in zip(starts, sizes, strict=False))
        self._room = [view for view in reversed(self._views) if view.nbytes]

    def fill(self, segment: memoryview) -> Message | None:
        """Copy the next segment in. The message, when that was its last byte."""
        room = self._room[-1]
        if not 0 < segment.nbytes <= room.nbytes:
            raise WireError("a segment does not fit its tensor")
        room[: segment.nbytes] = segment
        self.fresh_bytes += segment.nbytes
        self._room[-1] = room[segment.nbytes :]
        if not self._room[-1].nbytes:
            self._room.pop()
        return None if self._room else Message(self.body, tuple(view.toreadonly() for view in self._views))


class Inlet:
    """What arrives from one peer. `replies` collects (route, frame) to send back to it.

    A *route* is the ROUTER's name for one connection. It says nothing about who the peer is,
    only which connection a frame came over: when a peer has reconnected, leftovers of its old
    connection are dropped, because they would arrive out of order.
    """

    def __init__(self, schema: Schema, limits: LinkLimits, memory: Memory, stats: LinkStats) -> None:
        self.replies: list[tuple[bytes, bytes]] = []
        self._schema = schema
        self._window = limits.window_bytes
        self._segment_bytes = limits.segment_bytes
        self._share_bytes = limits.held_bytes_max // _PEER_SHARE
        self._memory = memory
        self._stats = stats
        self._routes: dict[Lane, bytes] = {}
        self._retired: deque[bytes] = deque(maxlen=_ROUTES_REMEMBERED)
        self._assembly: Assembly | None = None
        self._epoch = 0
        self._owed = 0
        self._untaken = 0
        self._untaken_messages = 0

    @property
    def routes(self) -> list[bytes]:
        """The connections that the peer's lanes came over last."""
        return list(self._routes.values())

    def take(self, route: bytes, frames: Sequence[memoryview]) -> Message | None:
        """Take in one ZeroMQ message; the message it completes, if any. Raises WireError.

        The caller hands a bulk message's size back through `taken` when the application has it.
        """
        tag = bytes(frames[0][:1])
        lane: Lane = "control" if tag == WHOLE["control"] else "bulk"
        if not self._is_current(lane, route) or not tag:
            return None
        nbytes = nbytes_of(frames)
        self._stats.bytes_received[lane] += nbytes
        if lane == "bulk":
            self._charge(nbytes)
        try:
            return self._whole(lane, frames) if tag == WHOLE[lane] else self._piece(tag, frames)
        finally:
            self._settle()

    def taken(self, nbytes: int) -> None:
        """The application has a bulk message with so many bytes of buffers."""
        self._untaken -= nbytes
        self._untaken_messages -= 1
        self._memory.release(nbytes)
        self._settle()

    def discard(self) -> None:
        """The peer is gone: what it made us hold is dropped."""
        self._abandon()
        self._memory.release(self._untaken)
        self._untaken = self._untaken_messages = 0

    def sweep(self) -> None:
        """Give up a stream that stands still; called `STALL_SWEEPS` times in `stall_s`.

        Calls are counted, not seconds: a process that stood still itself blames nobody. Nor is
        a peer blamed that has no credit because the application lags behind.
        """
        if self._assembly is None or not self._grants:
            return
        self._assembly.sweeps += 1
        if self._assembly.fresh_bytes >= self._segment_bytes:
            self._assembly.fresh_bytes = self._assembly.sweeps = 0
        elif self._assembly.sweeps > STALL_SWEEPS:
            self._abandon()
            self._stats.dropped_stalled += 1

    @property
    def _grants(self) -> bool:
        return self._untaken <= self._window // 2

    def _is_current(self, lane: Lane, route: bytes) -> bool:
        """Whether a connection is this lane's newest; one never seen before is."""
        if route in self._retired:
            return False
        if self._routes.get(lane) != route:
            self._enter(lane, route)
        return True

    def _enter(self, lane: Lane, route: bytes) -> None:
        """A connection is new: welcome the bulk lane, give up what the old one left undone."""
        if lane in self._routes:
            self._retired.append(self._routes[lane])
        self._routes[lane] = route
        if lane == "bulk":
            self._abandon()
            self._epoch += 1
            self._owed = 0
            self.replies.append((route, CREDIT_FRAME.pack(WELCOME, self._epoch, self._window)))

    def _charge(self, nbytes: int) -> None:
        self._owed += nbytes
        # An honest peer may send one window on the credit of a lost connection, and one more.
        if self._owed > 3 * self._window:
            raise WireError("more bytes than it was given credit for")

    def _piece(self, tag: bytes, frames: Sequence[memoryview]) -> Message | None:
        if tag not in (OPEN, SEGMENT) or frames[0].nbytes < STREAM_HEAD.size:
            raise WireError("unknown frame")
        if len(frames) != (1 if tag == OPEN else 2):
            raise WireError("wrong number of frames")
        _, stream = STREAM_HEAD.unpack(frames[0][: STREAM_HEAD.size])
        if tag == OPEN:
            self._open(stream, frames[0][STREAM_HEAD.size :])
            return None
        return self._segment(stream, frames[1])

    def _whole(self, lane: Lane, frames: Sequence[memoryview]) -> Message | None:
        body = self._schema.unpack(frames[0][1:])
        if body.lane != lane:
            raise WireError(f"{body.kind} on the {lane} lane")
        check_buffers(body, frames[1:])
        message = Message(body, tuple(frame.toreadonly() for frame in frames[1:]))
        if lane == "bulk" and not self._hold(message.nbytes):
            return None
        if lane == "bulk":
            self._leave_lying(message)
        return message

    def _open(self, stream: int, header: memoryview) -> None:
        self._abandon()
        body = self._schema.unpack(header)
        nbytes = sum(spec.nbytes for spec in body.tensors)
        if body.lane != "bulk" or not nbytes:
            raise WireError(f"{body.kind} does not come in segments")
        if self._hold(nbytes):
            self._assembly = Assembly(stream, body, self._memory)

    def _segment(self, stream: int, segment: memoryview) -> Message | None:
        # Segments of a stream that was refused or given up are still under way: not an error.
        if self._assembly is None or self._assembly.stream != stream:
            return None
        try:
            message = self._assembly.fill(segment)
        except WireError:
            self._abandon()
            raise
        if message is not None:
            self._assembly = None
            self._leave_lying(message)
        return message

    def _leave_lying(self, message: Message) -> None:
        """A bulk message is whole; what has no bytes is nothing to hold."""
        self._untaken += message.nbytes
        self._untaken_messages += message.nbytes > 0

    def _hold(self, nbytes: int) -> bool:
        # An honest peer sends one message after another, so there may be one that is not taken
        # and one that begins, whatever its share. How large they may be the schema says.
        begun = 0 if self._assembly is None else self._assembly.nbytes
        few = self._untaken_messages + (begun > 0) <= 1
        fair = few or self._untaken + begun + nbytes <= self._share_bytes
        held = fair and self._memory.hold(nbytes)
        self._stats.dropped_full += not held
        return held

    def _abandon(self) -> None:
        if self._assembly is not None:
            self._memory.release(self._assembly.nbytes)
            self._assembly = None

    def _settle(self) -> None:
        """Grant what is owed, a quarter window at a time, unless the application lags behind."""
        if self._owed >= self._window // 4 and self._grants:
            credit = CREDIT_FRAME.pack(CREDIT, self._epoch, self._owed)
            self.replies.append((self._routes["bulk"], credit))
            self._owed = 0
