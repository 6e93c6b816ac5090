"""Two views compared by hashes, so that members exchange only what differs.

Each row and notice has a mark, a hash of what is known of it; a bucket's hash is the XOR of its
marks, kept up to date in constant time. A collision hides a difference in one bucket of 2^32,
until anything else in it changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from struct import Struct
from zlib import crc32

from swarm.gossip.compact import Renewal
from swarm.gossip.messages import BUCKETS, HASH_BYTES, MARK_BYTES, SHOWN_BYTES, Notice
from swarm.gossip.records import claim_of
from transport.wire import Signed

_PACKED = Struct(f">{BUCKETS}I")
_MARK, _SHOWN = Struct(">BI"), Struct(">BIHB")
assert (_MARK.size, _SHOWN.size) == (MARK_BYTES, SHOWN_BYTES)
AGE_MAX_S = 255
"""An age that is shown; longer ones are all alike."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What is known of something, as others are told of it: where it counts, and its hash."""

    bucket: int
    hash: int


@dataclass(frozen=True, slots=True)
class Shown:
    """A mark as a view shows it. tag: of that which is known, so that two states of one thing are seen
    to be that; age_s: since when it is known."""

    mark: Mark
    tag: int
    age_s: int


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
    return Mark(bucket_of(name), hash_)


def shown(name: str, hash_: int, age_s: float) -> Shown:
    """The same, as a view shows it."""
    return Shown(mark(name, hash_), int(name[2:6], 16), int(min(max(age_s, 0.0), AGE_MAX_S)))


def pack_marks(marks: Iterable[Mark]) -> bytes:
    """Marks as they are told or asked for."""
    return b"".join(_MARK.pack(each.bucket, each.hash) for each in marks)


def read_marks(data: bytes) -> list[Mark]:
    """Marks that somebody tells or asks for; what is left over at the end is none."""
    return [Mark(bucket, hash_) for bucket, hash_ in _MARK.iter_unpack(_whole(data, MARK_BYTES))]


def pack_shown(marks: Iterable[Shown]) -> bytes:
    """Marks as they are shown."""
    return b"".join(_SHOWN.pack(e.mark.bucket, e.mark.hash, e.tag, e.age_s) for e in marks)


def read_shown(data: bytes) -> list[Shown]:
    """Marks that somebody shows; what is left over at the end is none."""
    found = _SHOWN.iter_unpack(_whole(data, SHOWN_BYTES))
    return [Shown(Mark(bucket, hash_), tag, age_s) for bucket, hash_, tag, age_s in found]


def _whole(data: bytes, size: int) -> bytes:
    return data[: len(data) // size * size]


def mark_of_update(value: Signed | Renewal | Notice, sort: str) -> Mark:
    """Of what is told. A record and its renewal have one mark, and so have all claims that are enough
    for a suspicion: whoever has one needs no other."""
    if isinstance(value, Notice):
        return mark(topic_name(value.topic), crc32(value.notice.signature))
    if isinstance(value, Renewal):
        return mark(value.node, crc32(value.signature))
    if sort != "claims":
        return mark(value.signer, crc32(value.signature))
    claim = claim_of(value)
    enough = claim is not None and claim.seconded and not claim.closed
    return mark(value.payload[:1].hex(), crc32(value.payload[:-1] if enough else value.signature))


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
