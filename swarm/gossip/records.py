"""What members sign, as bytes and back; whom to believe is asked of a `Verifier`."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import msgpack
from pydantic import BaseModel, ValidationError

from swarm.gossip.messages import Claim
from swarm.gossip.view import MemberRecord
from transport.wire import Signed, WireError, WireLimits, lists_as_tuples, unpack_map

MEMBER = "member"
CLAIM = "claim"
REVOCATION = "revocation"
"""Signature domains."""

_LIMITS = WireLimits(header_bytes_max=1 << 12, depth_max=2)


class Untrusted(ValueError):
    """A record, claim or notice that is not believed. The text says why."""


class Verifier(Protocol):
    """Checks what members sign. The real one asks certificates (`swarm/daemon/trust.py`)."""

    def record(self, signed: Signed) -> MemberRecord:
        """The record, if its node signed it and is a member. Raises Untrusted."""
        ...

    def claim(self, signed: Signed, accuser: MemberRecord) -> Claim:
        """The claim, if the accuser signed it. Raises Untrusted."""
        ...


def pack(part: BaseModel) -> bytes:
    """The bytes of what is about to be signed."""
    data: bytes = msgpack.packb(part.model_dump())
    return data


@lru_cache(maxsize=4096)
def _decode_claim(payload: bytes) -> Claim:
    # The same claim arrives a dozen times. Raising keeps what is no claim out of the cache.
    return Claim.model_validate(lists_as_tuples(unpack_map(payload, _LIMITS)))


def read_claim(signed: Signed) -> Claim:
    """Decode a claim that names its signer as the accuser. Raises Untrusted."""
    try:
        claim = _decode_claim(signed.payload)
    except (WireError, ValidationError):
        raise Untrusted("not a claim") from None
    if claim.by != signed.signer:
        raise Untrusted("a claim in another's name")
    return claim


def claim_of(signed: Signed) -> Claim | None:
    """Decode a claim, None if it is none."""
    try:
        return read_claim(signed)
    except Untrusted:
        return None
