"""Two views compared by hashes, so that members exchange only what differs.

Each row and notice has a mark, a hash of what is known of it; a bucket's hash is the XOR of its
marks, kept up to date in constant time. A collision hides a difference in one bucket of 2^32,
until anything else in it changes.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct

from swarm.gossip.messages import BUCKETS, HASH_BYTES

_PACKED = Struct(f">{BUCKETS}I")


def bucket_of(name: str) -> int:
    """Bucket of a node id, or of another hex name."""
    return int(name[:2], 16) >> 1


def bucket_starts(bucket: int) -> str:
    """The least text that a node id in this bucket can begin with; beyond the last bucket, none can."""
    return f"{2 * bucket:02x}" if bucket < BUCKETS else "g"


def mark_of(text: str) -> int:
    """The hash of what is known."""
    return int.from_bytes(blake2b(text.encode(), digest_size=HASH_BYTES).digest(), "big")


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
