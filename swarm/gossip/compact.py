"""Claims and renewed records as they travel: in as few bytes as prove them.

A claim has a fixed size. A record is mostly what does not change, its certificate above all:
whoever has an earlier one of the node is sent only the end of a newer one, and puts it behind the
beginning that it has. The signature covers the whole. So nothing is believed that would not be
believed of a record sent whole: another beginning fails the check, a forged end the signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from zlib import crc32

from transport.wire import Signed

_CLAIM = Struct(">41s32s64s")
"""Payload, signer, signature."""
CLAIM_BYTES = _CLAIM.size
_RENEWAL = Struct(">32s64sHI")
"""Node, signature, bytes kept and their check; then the end."""
RENEWAL_BYTES = _RENEWAL.size
TAIL_BYTES_MAX = 1 << 17
_CHANGES = b"\xabincarnation"
"""With this field begins what changes in a record (`view.MemberRecord`), as msgpack has it."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """The end of a node's newer record. kept: bytes of an earlier one that come before it.

    check: of these bytes, so that who has others notices before it asks the signature.
    """

    node: str
    kept: int
    check: int
    tail: bytes
    signature: bytes


@lru_cache(maxsize=512)
def renewal_of(signed: Signed) -> Renewal | None:
    """A record without its beginning; None if it does not say where that ends."""
    kept = signed.payload.find(_CHANGES)
    if not 0 < kept < 1 << 16:
        return None
    beginning, tail = signed.payload[:kept], signed.payload[kept:]
    return Renewal(signed.signer, kept, crc32(beginning), tail, signed.signature)


@lru_cache(maxsize=512)
def completed(renewal: Renewal, earlier: bytes) -> Signed | None:
    """The whole record, from the payload of an earlier one; None if that began otherwise."""
    beginning = earlier[: renewal.kept]
    if crc32(beginning) != renewal.check:
        return None
    payload = beginning + renewal.tail
    return Signed(payload=payload, signer=renewal.node, signature=renewal.signature)


def begin_alike(one: Signed, other: Signed) -> bool:
    """Whether two records differ only in what changes."""
    kept = one.payload.find(_CHANGES)
    return kept > 0 and one.payload[: kept + len(_CHANGES)] == other.payload[: kept + len(_CHANGES)]


def packed_claim(signed: Signed) -> bytes:
    """A claim on the wire."""
    return signed.payload + bytes.fromhex(signed.signer) + signed.signature


@lru_cache(maxsize=4096)
def _claim_from(data: bytes) -> Signed:
    # The same claim arrives a dozen times.
    if len(data) != CLAIM_BYTES:
        raise ValueError("not a claim")
    payload, signer, signature = _CLAIM.unpack(data)
    return Signed(payload=payload, signer=signer.hex(), signature=signature)


def claim_from(value: object) -> Signed:
    """A claim from the wire, or as it is here. Raises ValueError."""
    if isinstance(value, Signed):
        return value
    if not isinstance(value, bytes):
        raise ValueError("a claim is bytes")
    return _claim_from(value)


def packed_renewal(renewal: Renewal) -> bytes:
    """A renewal on the wire."""
    head = _RENEWAL.pack(bytes.fromhex(renewal.node), renewal.signature, renewal.kept, renewal.check)
    return head + renewal.tail


def renewal_from(value: object) -> Renewal:
    """A renewal from the wire, or as it is here. Raises ValueError."""
    if isinstance(value, Renewal):
        return value
    if not isinstance(value, bytes) or not RENEWAL_BYTES < len(value) <= RENEWAL_BYTES + TAIL_BYTES_MAX:
        raise ValueError("not a renewal")
    node, signature, kept, check = _RENEWAL.unpack_from(value)
    return Renewal(node.hex(), kept, check, value[RENEWAL_BYTES:], signature)
