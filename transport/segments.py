"""The sending half of a lane: what waits for a peer, cut into segments, held back by credit.

A ZeroMQ message between two links is one of these; the first byte of its first frame says which.
On the peer's ROUTER:

    M header | buffer...      a whole message of the control lane
    B header | buffer...      a whole message of the bulk lane
    O stream header           a bulk message of more than one segment begins
    S stream | bytes          its next segment, in order, never across two tensors
    (empty)                   the bulk connection is new (ZMQ_PROBE_ROUTER sends it)

and back to the DEALER that sent them:

    W epoch window            welcome: this many bulk bytes may be on their way
    C epoch bytes             credit: so many of them are dealt with
    G                         goodbye: you are not admitted here (any more), hang up

No socket in sight: `reassembly.py` is the other half, `zmq_link.py` joins the two.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from struct import Struct

from transport.wire import Buffer, Lane, WireError

WHOLE: dict[Lane, bytes] = {"control": b"M", "bulk": b"B"}
OPEN, SEGMENT, WELCOME, CREDIT, GOODBYE = b"O", b"S", b"W", b"C", b"G"
STREAM_HEAD = Struct(">cQ")
CREDIT_FRAME = Struct(">cIQ")

Frames = Sequence[Buffer]


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkLimits:
    """How much one link holds, and where it says no.

    segment_bytes: largest piece of a bulk message. Larger delays what shares the connection and
        is slower to encrypt (one 64 MiB frame takes twice as long as 64 of 1 MiB); smaller costs
        more messages.
    window_bytes: bulk bytes a peer may have on their way to us before we deal with them. At
        least bandwidth x round trip for a full pipe: 32 MiB is 1 Gbit/s over 250 ms. Also what a
        slow application holds per peer, so larger costs memory.
    queue_messages_max, queue_bytes_max: what waits to be sent to one peer on one lane; beyond
        it `send` says False. One message larger than the bytes still passes an empty queue.
    inbox_messages_max, inbox_bytes_max: received and not yet taken, of all peers. Beyond it the
        link stops reading, and TCP slows the senders.
    held_bytes_max: tensor bytes of all peers, declared or received and not yet taken. A message
        that would exceed it is dropped and counted as `dropped_full`. One peer may hold a
        quarter of it, or two messages. Larger costs memory when many send at once.
    stall_s: a message is given up when for so long not even a segment of it came, and counted as
        `dropped_stalled`. Larger suits slower links; smaller frees sooner what was only promised.
    errors_max, errors_forgiven_per_s: malformed messages after which a peer is cut off, and how
        fast old ones are forgotten.
    cut_off_s: how long a peer stays cut off, whatever else is heard of it. Longer spares us more
        of its nonsense; shorter brings a peer back sooner that was only damaged on the way.
    redial_s: how long a lost peer is dialled again and again. Longer meets it at once after a
        longer outage; shorter spares the network of a swarm that many have left.
    redial_turn_s: how long it is dialled after that whenever there is something to say to it.
    """

    segment_bytes: int = 1 << 20
    window_bytes: int = 32 << 20
    queue_messages_max: int = 1024
    queue_bytes_max: int = 256 << 20
    inbox_messages_max: int = 4096
    inbox_bytes_max: int = 64 << 20
    held_bytes_max: int = 1 << 30
    stall_s: float = 120.0
    errors_max: int = 64
    errors_forgiven_per_s: float = 1.0
    cut_off_s: float = 600.0
    redial_s: float = 600.0
    redial_turn_s: float = 10.0

    def __post_init__(self) -> None:
        if not 0 < 4 * self.segment_bytes <= self.window_bytes:
            raise ValueError("a window holds at least four segments of at least one byte")
        if min(self.queue_messages_max, self.inbox_messages_max, self.errors_max) < 1:
            raise ValueError("queues and the error budget hold at least one")


def nbytes_of(frames: Frames) -> int:
    """Bytes of some frames together."""
    return sum(memoryview(frame).nbytes for frame in frames)


def flat(buffer: Buffer) -> memoryview:
    """A buffer as bytes in one dimension, not copied. It must be C-contiguous."""
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else memoryview(b"")


def cut(stream: int, header: bytes, buffers: Sequence[memoryview], segment_bytes: int) -> Iterator[Frames]:
    """The ZeroMQ messages that carry a bulk message: itself, or its header and its segments."""
    if nbytes_of(buffers) <= segment_bytes:
        yield (WHOLE["bulk"] + header, *buffers)
        return
    yield (STREAM_HEAD.pack(OPEN, stream) + header,)
    for buffer in buffers:
        for start in range(0, buffer.nbytes, segment_bytes):
            yield (STREAM_HEAD.pack(SEGMENT, stream), buffer[start : start + segment_bytes])


class Credit:
    """Bytes that may be on their way over one bulk connection; none before the peer's welcome."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._window = 0
        self._outstanding = 0

    def allows(self, nbytes: int) -> bool:
        """Whether `nbytes` more may go.

        The peer grants in batches of a quarter window, so up to a quarter may stay outstanding
        for ever: below that anything goes, else a single frame larger than the rest would wait
        for ever.
        """
        if self._epoch is None:
            return False
        return self._outstanding <= self._window // 4 or self._outstanding + nbytes <= self._window

    def spend(self, nbytes: int) -> None:
        """`nbytes` went."""
        self._outstanding += nbytes

    def hear(self, frame: memoryview) -> bool:
        """Take in a welcome or a credit; True if it is a welcome, to a connection that is new."""
        if frame.nbytes != CREDIT_FRAME.size:
            raise WireError("not a credit frame")
        tag, epoch, amount = CREDIT_FRAME.unpack(frame)
        if tag == WELCOME:
            self._epoch, self._window, self._outstanding = epoch, amount, 0
        elif tag != CREDIT:
            raise WireError("not a credit frame")
        elif epoch == self._epoch:
            self._outstanding = max(0, self._outstanding - amount)
        return bool(tag == WELCOME)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A message in an outbox."""

    header: bytes
    buffers: tuple[memoryview, ...]
    nbytes: int


class Outbox:
    """What waits for one peer on one lane, in order. `credit` is None on the control lane."""

    def __init__(self, limits: LinkLimits, credit: Credit | None) -> None:
        self._limits = limits
        self._credit = credit
        self._queue: deque[Waiting] = deque()
        self._stream = 0
        self._pieces: Iterator[Frames] = iter(())
        self._next: Frames | None = None
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    def offer(self, header: bytes, buffers: Sequence[Buffer]) -> bool:
        """Queue a message, or say that there is no room."""
        views = tuple(flat(buffer) for buffer in buffers)
        nbytes = len(header) + nbytes_of(views)
        assert self._credit or nbytes <= self._limits.segment_bytes, "a control message must be small"
        full = self._queue and self.nbytes + nbytes > self._limits.queue_bytes_max
        if full or len(self._queue) >= self._limits.queue_messages_max:
            return False
        self._queue.append(Waiting(header, views, nbytes))
        self.nbytes += nbytes
        if self._next is None:
            self._begin()
        return True

    def peek(self) -> Frames | None:
        """The next ZeroMQ message, if there is one and credit allows it now."""
        if self._next is None or self._credit is None or self._credit.allows(nbytes_of(self._next)):
            return self._next
        return None

    def advance(self) -> bool:
        """What `peek` returned was handed over. True if that was the last of its message."""
        assert self._next is not None
        if self._credit is not None:
            self._credit.spend(nbytes_of(self._next))
        self._next = next(self._pieces, None)
        if self._next is not None:
            return False
        self.nbytes -= self._queue.popleft().nbytes
        self._begin()
        return True

    def hear(self, frame: memoryview) -> None:
        """Take in what the peer says about credit. Raises WireError.

        On a new connection a message that was half sent starts again: the peer has dropped its
        half, so it still arrives at most once.
        """
        if self._credit is None:
            raise WireError("credit for the control lane")
        if self._credit.hear(frame):
            self._begin()

    def clear(self) -> None:
        """Drop everything."""
        self._queue.clear()
        self.nbytes = 0
        self._begin()

    def _begin(self) -> None:
        """Stand before the first piece of the first message."""
        self._pieces = iter(())
        if self._queue:
            first = self._queue[0]
            self._pieces = self._cut(first.header, first.buffers)
        self._next = next(self._pieces, None)

    def _cut(self, header: bytes, buffers: Sequence[memoryview]) -> Iterator[Frames]:
        if self._credit is None:
            return iter([(WHOLE["control"] + header, *buffers)])
        self._stream += 1
        return cut(self._stream, header, buffers, self._limits.segment_bytes)
