"""Two views compared by hashes, so that members exchange only what differs.

Each row and notice has a mark, a hash of what is known of it; a bucket's hash is the XOR of its
marks, kept up to date in constant time. A collision hides a difference in one bucket of 2^32,
until anything else in it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from zlib import crc32

from swarm.gossip.compact import Renewal
from swarm.gossip.messages import BUCKETS, HASH_BYTES, MARK_BYTES, SHOWN_BYTES, Notice
from transport.wire import Signed

_PACKED = Struct(f">{BUCKETS}I")
_MARK, _SHOWN = Struct(">3sI"), Struct(">3sIB")
assert (_MARK.size, _SHOWN.size) == (MARK_BYTES, SHOWN_BYTES)
_NAME_DIGITS = 6
AGE_MAX_S = 255
"""An age that is shown; longer ones are all alike."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of something, as others are asked for it: the first digits of a node id, or of a
    topic's hash, and the hash of what is known."""

    name: str
    hash: int


def bucket_of(name: str) -> int:
    """Bucket of a node id, or of another hex name."""
    return int(name[:2], 16) >> 1


def bucket_starts(bucket: int) -> str:
    """The least text that a node id in this bucket can begin with; beyond the last bucket, none can."""
    return f"{2 * bucket:02x}" if bucket < BUCKETS else "g"


def mark_of(text: str) -> int:
    """The hash of what is known."""
    return int.from_bytes(blake2b(text.encode(), digest_size=HASH_BYTES).digest(), "big")


def topic_name(topic: str) -> str:
    """Where a notice stands among the node ids."""
    return blake2b(topic.encode(), digest_size=HASH_BYTES).hexdigest()


def notice_hash(notice: Notice) -> int:
    """The hash of a notice that is known."""
    return mark_of(f"{notice.topic} {notice.version}")


def mark(name: str, hash_: int) -> Mark:
    """The mark of what is known of a node id or `topic_name`."""
    return Mark(name[:_NAME_DIGITS], hash_)


def pack_marks(marks: Iterable[Mark]) -> bytes:
    """Marks as they are asked for."""
    return b"".join(_MARK.pack(bytes.fromhex(each.name), each.hash) for each in marks)


def read_marks(data: bytes) -> list[Mark]:
    """Marks that somebody asks for; what is left over at the end is none."""
    whole = data[: len(data) // MARK_BYTES * MARK_BYTES]
    return [Mark(name.hex(), hash_) for name, hash_ in _MARK.iter_unpack(whole)]


def pack_shown(marks: Iterable[tuple[Mark, float]]) -> bytes:
    """Marks as they are shown, each with how many seconds ago what is known last changed."""
    return b"".join(
        _SHOWN.pack(bytes.fromhex(each.name), each.hash, int(min(max(age_s, 0.0), AGE_MAX_S)))
        for each, age_s in marks
    )


def read_shown(data: bytes) -> Iterator[tuple[Mark, int]]:
    """Marks that somebody shows; what is left over at the end is none."""
    whole = data[: len(data) // SHOWN_BYTES * SHOWN_BYTES]
    return ((Mark(name.hex(), hash_), age_s) for name, hash_, age_s in _SHOWN.iter_unpack(whole))


def mark_of_update(value: Signed | Renewal | Notice, sort: str) -> Mark:
    """Of what is told: a record and its renewal have one mark."""
    if isinstance(value, Notice):
        return mark(topic_name(value.topic), crc32(value.notice.signature))
    if isinstance(value, Renewal):
        return mark(value.node, crc32(value.signature))
    about = value.payload[:MARK_BYTES].hex() if sort == "claims" else value.signer
    return mark(about, crc32(value.signature))


class Hashes:
    """The hashes of one view."""

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS

    def replace(self, bucket: int, old: int, new: int) -> None:
        """A mark changed; 0 is the mark of nothing."""
        self._buckets[bucket] ^= old ^ new

    def packed(self) -> bytes:
        """As they travel."""
        return _PACKED.pack(*self._buckets)

    def differing(self, theirs: bytes) -> list[int]:
        """Buckets in which another view is not like this one."""
        pairs = zip(self._buckets, _PACKED.unpack(theirs), strict=True)
        return [bucket for bucket, (ours, others) in enumerate(pairs) if ours != others]
