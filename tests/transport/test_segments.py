"""Cutting, reassembly and credit, joined by a wire that the test holds in its hands."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.link import LinkStats
from transport.reassembly import STALL_SWEEPS, Inlet, Memory
from transport.segments import OPEN, SEGMENT, STREAM_HEAD, Credit, LinkLimits, Outbox, nbytes_of
from transport.wire import Body, Lane, Message, Schema, TensorSpec, WireError

KIB = 1 << 10


class Crate(Body):
    kind: ClassVar[str] = "crate"
    lane: ClassVar[Lane] = "bulk"


class Word(Body):
    kind: ClassVar[str] = "word"


SCHEMA = Schema((Crate, Word))
LIMITS = LinkLimits(segment_bytes=KIB, window_bytes=8 * KIB, queue_messages_max=100, held_bytes_max=1 << 20)


def crate(*payloads: bytes) -> Message:
    specs = tuple(
        TensorSpec(name=str(index), shape=(len(payload),), dtype="uint8", nbytes=len(payload))
        for index, payload in enumerate(payloads)
    )
    return Message(Crate(tensors=specs), payloads)


class Wire:
    """A bulk lane without sockets. `route` names its connection."""

    def __init__(
        self, limits: LinkLimits = LIMITS, schema: Schema | None = None, memory: Memory | None = None
    ) -> None:
        self.stats = LinkStats()
        self.memory = memory or Memory(limits.held_bytes_max)
        self.inlet = Inlet(schema or SCHEMA, limits, self.memory, self.stats)
        self.outbox = Outbox(limits, Credit())
        self.connect(b"r1")

    def connect(self, route: bytes) -> None:
        self.route = route
        self.inlet.take(route, [memoryview(b"")])
        self.answer()

    def answer(self) -> None:
        replies, self.inlet.replies = self.inlet.replies, []
        for route, frame in replies:
            if route == self.route:
                self.outbox.hear(memoryview(frame))

    def offer(self, message: Message) -> bool:
        return self.outbox.offer(SCHEMA.pack(message.body), message.buffers)

    def push(self) -> Sequence[memoryview] | None:
        """What the sender's socket is given next."""
        frames = self.outbox.peek()
        if frames is None:
            return None
        self.outbox.advance()
        return [memoryview(frame) for frame in frames]

    def pump(self) -> list[Message]:
        """Move frames until nothing moves; the application takes nothing."""
        arrived = []
        while (frames := self.push()) is not None:
            message = self.inlet.take(self.route, frames)
            self.answer()
            arrived += [message] if message is not None else []
        return arrived


def contents(messages: Sequence[Message]) -> list[list[bytes]]:
    return [[bytes(buffer) for buffer in message.buffers] for message in messages]


@given(st.lists(st.lists(st.binary(max_size=5 * KIB), max_size=4), max_size=12))
def test_what_is_cut_is_put_together_again_in_order(payloads: list[list[bytes]]) -> None:
    wire, arrived = Wire(), list[Message]()
    for payload in payloads:
        assert wire.offer(crate(*payload))
        arrived += wire.pump()
        for message in arrived[-1:]:
            wire.inlet.taken(message.nbytes)
            wire.answer()
    assert contents(arrived) == payloads
    assert wire.memory.held_bytes == 0


def test_a_message_larger_than_the_window_passes() -> None:
    wire = Wire()
    assert wire.offer(crate(b"x" * 100 * KIB))
    assert contents(wire.pump()) == [[b"x" * 100 * KIB]]


def test_an_application_that_takes_nothing_stops_its_senders() -> None:
    wire = Wire()
    offered = [wire.offer(crate(b"x" * KIB)) for _ in range(200)]
    taken = len(wire.pump())
    offered += [wire.offer(crate(b"x" * KIB)) for _ in range(200)]
    assert taken <= 2 * LIMITS.window_bytes // KIB
    assert offered.count(True) == LIMITS.queue_messages_max + taken
    assert wire.memory.held_bytes <= 2 * LIMITS.window_bytes


def test_taking_lets_the_senders_go_on() -> None:
    wire = Wire()
    for _ in range(60):
        assert wire.offer(crate(b"x" * KIB))
    total, arrived = 0, wire.pump()
    while arrived:
        total += len(arrived)
        for message in arrived:
            wire.inlet.taken(message.nbytes)
        wire.answer()
        arrived = wire.pump()
    assert total == 60


def test_a_message_cut_off_by_a_lost_connection_starts_again_and_arrives_once() -> None:
    wire = Wire()
    wire.offer(crate(b"a" * 4 * KIB))
    wire.offer(crate(b"b"))
    for _ in range(3):
        frames = wire.push()
        assert frames is not None
        assert wire.inlet.take(wire.route, frames) is None
    late = wire.push()
    assert late is not None
    wire.connect(b"r2")
    assert wire.inlet.take(b"r1", late) is None, "a leftover of the old connection"
    assert contents(wire.pump()) == [[b"a" * 4 * KIB], [b"b"]]


def test_nothing_is_sent_before_the_welcome() -> None:
    outbox = Outbox(LIMITS, Credit())
    assert outbox.offer(SCHEMA.pack(Crate()), ())
    assert outbox.peek() is None


def stream(tag: bytes, *rest: bytes, number: int = 1) -> list[memoryview]:
    return [memoryview(STREAM_HEAD.pack(tag, number) + rest[0]), *map(memoryview, rest[1:])]


HEADER = SCHEMA.pack(crate(bytes(3 * KIB)).body)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([[memoryview(b"?")]], "unknown frame"),
        ([[memoryview(b"O123")]], "unknown frame"),
        ([[memoryview(b"B" + SCHEMA.pack(Word()))]], "word on the bulk lane"),
        ([[memoryview(b"M" + SCHEMA.pack(Crate()))]], "crate on the control lane"),
        ([[memoryview(b"B" + HEADER), memoryview(bytes(3 * KIB - 1))]], "has 3071 bytes"),
        ([[memoryview(b"B" + HEADER)]], "0 buffers for 1"),
        ([stream(OPEN, HEADER, b"")], "wrong number of frames"),
        ([stream(OPEN, SCHEMA.pack(Word()))], "does not come in segments"),
        ([stream(OPEN, SCHEMA.pack(Crate()))], "does not come in segments"),
        ([stream(OPEN, b"\xc1")], "not a msgpack map"),
        ([stream(OPEN, HEADER), stream(SEGMENT, b"", bytes(3 * KIB + 1))], "does not fit"),
        ([stream(OPEN, HEADER), stream(SEGMENT, b"", b"")], "does not fit"),
    ],
)
def test_a_bad_frame_is_refused_and_holds_nothing(frames: list[list[memoryview]], reason: str) -> None:
    wire = Wire()
    *before, last = frames
    for good in before:
        wire.inlet.take(wire.route, good)
    with pytest.raises(WireError, match=reason):
        wire.inlet.take(wire.route, last)
    assert wire.memory.held_bytes == 0


def test_segments_of_a_refused_stream_are_ignored_but_earn_credit() -> None:
    wire = Wire(LinkLimits(segment_bytes=KIB, window_bytes=8 * KIB, held_bytes_max=10 * KIB))
    wire.offer(crate(bytes(100 * KIB)))
    wire.offer(crate(b"small"))
    assert contents(wire.pump()) == [[b"small"]]
    assert wire.stats.dropped_full == 1


# -- what is only promised ---------------------------------------------------------------


def opening(nbytes: int, number: int = 1) -> list[memoryview]:
    spec = TensorSpec(name="x", shape=(nbytes,), dtype="uint8", nbytes=nbytes)
    return stream(OPEN, SCHEMA.pack(Crate(tensors=(spec,))), number=number)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_promise_of_half_a_gigabyte_takes_no_memory_before_its_bytes_come() -> None:
    wire = Wire(LinkLimits(held_bytes_max=1 << 30))
    before = resident_bytes()
    wire.inlet.take(wire.route, opening(512 << 20))
    wire.inlet.take(wire.route, stream(SEGMENT, b"", bytes(1 << 20)))
    assert wire.memory.held_bytes == 512 << 20
    assert resident_bytes() - before < 32 << 20


def test_a_body_announces_no_more_than_its_kind_may_have() -> None:
    wire = Wire(schema=SCHEMA.bounded(lambda body: 9 * KIB if isinstance(body, Crate) else 0))
    with pytest.raises(WireError, match="crate: declares more than the 9216 bytes it may have"):
        wire.inlet.take(wire.route, opening(9 * KIB + 1))
    assert wire.memory.held_bytes == 0
    assert wire.offer(crate(bytes(9 * KIB)))
    assert len(wire.pump()) == 1


def test_one_peer_cannot_keep_the_others_out() -> None:
    """It leaves lying what it may, and opens as much as it likes: there is room for another."""
    eve = Wire()
    ann = Wire(memory=eve.memory)
    for number in range(8):
        assert eve.offer(crate(bytes(200 * KIB)))
        eve.pump()
        eve.inlet.take(eve.route, opening(200 * KIB, number))
    assert eve.memory.held_bytes <= 2 * 200 * KIB
    assert ann.offer(crate(bytes(200 * KIB)))
    assert len(ann.pump()) == 1
    assert ann.stats.dropped_full == 0


def test_a_peer_within_its_share_may_leave_many_messages_lying() -> None:
    wire = Wire()
    for _ in range(3):
        assert wire.offer(crate(b"x" * 2 * KIB))
    assert len(wire.pump()) == 3
    assert wire.stats.dropped_full == 0


@pytest.mark.parametrize("dripping", [False, True])
def test_a_stream_that_stands_still_is_given_up_and_its_memory_is_free(dripping: bool) -> None:
    wire = Wire()
    wire.inlet.take(wire.route, opening(100 * KIB))
    for _ in range(STALL_SWEEPS):
        wire.inlet.sweep()
        if dripping:
            wire.inlet.take(wire.route, stream(SEGMENT, b"", b"x"))
    assert wire.memory.held_bytes == 100 * KIB
    wire.inlet.sweep()
    assert (wire.memory.held_bytes, wire.stats.dropped_stalled) == (0, 1)
    assert wire.inlet.take(wire.route, stream(SEGMENT, b"", bytes(KIB))) is None
    assert wire.offer(crate(b"next"))
    assert contents(wire.pump()) == [[b"next"]]


def test_a_stream_that_moves_slowly_is_not_given_up() -> None:
    wire, arrived = Wire(), list[Message]()
    assert wire.offer(crate(b"y" * 5 * KIB))
    while (frames := wire.push()) is not None:
        message = wire.inlet.take(wire.route, frames)
        arrived += [message] if message is not None else []
        for _ in range(STALL_SWEEPS - 1):
            wire.inlet.sweep()
    assert contents(arrived) == [[b"y" * 5 * KIB]]
    assert wire.stats.dropped_stalled == 0


def test_a_stream_that_has_no_credit_is_not_given_up() -> None:
    wire = Wire()
    for _ in range(3):
        assert wire.offer(crate(b"z" * 12 * KIB))
    arrived = wire.pump()
    assert len(arrived) < 3
    for _ in range(10 * STALL_SWEEPS):
        wire.inlet.sweep()
    while len(arrived) < 3:
        for message in arrived[-1:]:
            wire.inlet.taken(message.nbytes)
        wire.answer()
        arrived += wire.pump()
    assert wire.stats.dropped_stalled == 0


def flood(wire: Wire, kib: int) -> None:
    frames = [memoryview(b"B" + SCHEMA.pack(crate(bytes(KIB)).body)), memoryview(bytes(KIB))]
    for _ in range(kib):
        wire.inlet.take(wire.route, frames)


def test_a_peer_that_ignores_its_credit_is_found_out() -> None:
    wire = Wire()
    with pytest.raises(WireError, match="credit"):
        flood(wire, kib=100)
    assert wire.memory.held_bytes <= 4 * LIMITS.window_bytes


def test_a_buffer_is_used_again_only_when_nobody_sees_it() -> None:
    memory = Memory(held_bytes_max=1 << 30)
    first = memory.take(4 * KIB)
    view = first[10:20]
    first[:] = b"a" * 4 * KIB
    del first
    second = memory.take(4 * KIB)
    second[:] = b"b" * 4 * KIB
    assert bytes(view) == b"a" * 10
    del view
    assert bytes(memory.take(4 * KIB)[:1]) == b"a", "the freed one came back"


def test_more_than_the_kept_memory_is_given_and_not_kept() -> None:
    memory = Memory(held_bytes_max=1 << 30, kept_bytes_max=KIB)
    assert nbytes_of([memory.take(4 * KIB)]) == 4 * KIB


@pytest.mark.parametrize("frame", [b"", b"C", b"X" + bytes(12), b"W" + bytes(13)])
def test_a_malformed_credit_is_refused(frame: bytes) -> None:
    with pytest.raises(WireError, match="not a credit frame"):
        Outbox(LIMITS, Credit()).hear(memoryview(frame))


def test_limits_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="four segments"):
        LinkLimits(window_bytes=1 << 20)
