"""What members sign, as bytes and back; whom to believe is asked of a `Verifier`."""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Protocol

import msgpack
from pydantic import BaseModel, ValidationError

from swarm.gossip.messages import SECONDED_MAX, Claim
from swarm.gossip.view import MemberRecord
from transport.wire import Signed

MEMBER = "member"
CLAIM = "claim"
REVOCATION = "revocation"
"""Signature domains."""

_CLAIM = Struct(">32sQB")
"""Node, incarnation, flags: fixed, as claims are most of what is told of a death."""
_CLOSED, _DEAD, _SECONDED = 1, 2, 4


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
    data: bytes = msgpack.packb(part.model_dump(exclude_defaults=True))
    return data


def pack_claim(claim: Claim) -> bytes:
    """The bytes of a claim that is about to be signed; who signs is the accuser."""
    flags = _CLOSED * claim.closed + _DEAD * claim.dead + _SECONDED * claim.seconded
    return _CLAIM.pack(bytes.fromhex(claim.node), claim.incarnation, flags)


@lru_cache(maxsize=4096)
def _decode_claim(payload: bytes, signer: str) -> Claim:
    # The same claim arrives a dozen times. Raising keeps what is no claim out of the cache.
    if len(payload) != _CLAIM.size or payload[-1] >= _SECONDED * (SECONDED_MAX + 1):
        raise Untrusted("not a claim")
    node, incarnation, flags = _CLAIM.unpack(payload)
    return Claim(
        node=node.hex(),
        incarnation=incarnation,
        by=signer,
        closed=bool(flags & _CLOSED),
        dead=bool(flags & _DEAD),
        seconded=flags // _SECONDED,
    )


def read_claim(signed: Signed) -> Claim:
    """Decode a claim; its signer is the accuser. Raises Untrusted."""
    try:
        return _decode_claim(signed.payload, signed.signer)
    except ValidationError:
        raise Untrusted("not a claim") from None


def claim_of(signed: Signed) -> Claim | None:
    """Decode a claim, None if it is none."""
    try:
        return read_claim(signed)
    except Untrusted:
        return None
