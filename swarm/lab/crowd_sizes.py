"""What gossip messages weigh on the wire, by arithmetic: a crowd sends too many to encode them all."""

from __future__ import annotations

from swarm.gossip.compact import CLAIM_BYTES, RENEWAL_BYTES, Renewal
from swarm.gossip.messages import Notice, Updates
from transport.wire import PROTOCOL_VERSION, Signed

SEGMENT_BYTES = 1448
"""Payload of a TCP segment on Ethernet with timestamps."""
SEGMENT_OVERHEAD_BYTES = 52
"""IPv4 and TCP headers of a segment, with timestamps."""
FRAME_OVERHEAD_BYTES = 9 + 8 + 8 + 16 + 1
"""ZMTP frame head, CURVE's MESSAGE name, nonce, authenticator and flags (rfc.zeromq.org/spec/26)."""
FRAMES = 2
"""Of a message without tensors: its kind in one byte, and its header."""
OVERHEAD = "52 bytes a TCP segment of 1448, 42 bytes a CURVE frame, one byte of kind"


def on_the_wire(nbytes: int) -> int:
    """Bytes that an encoded header costs with everything around it."""
    framed = nbytes + 1 + FRAMES * FRAME_OVERHEAD_BYTES
    return framed + SEGMENT_OVERHEAD_BYTES * -(-framed // SEGMENT_BYTES)


def uint(value: int) -> int:
    """Bytes of an unsigned number in msgpack."""
    if value < 1 << 7:
        return 1
    return 2 if value < 1 << 8 else 3 if value < 1 << 16 else 5 if value < 1 << 32 else 9


def text(value: str) -> int:
    """Bytes of ASCII text in msgpack."""
    count = len(value)
    return count + (1 if count < 32 else 2 if count < 1 << 8 else 3)


def binary(value: bytes) -> int:
    """Bytes of bytes in msgpack."""
    count = len(value)
    return count + (2 if count < 1 << 8 else 3 if count < 1 << 16 else 5)


def array(count: int) -> int:
    """Bytes of an array's head in msgpack."""
    return 1 if count < 16 else 3


def _field(name: str, value: object) -> int:
    head = text(name)
    if isinstance(value, bool):
        return head + 1
    if isinstance(value, int):
        return head + uint(value)
    if isinstance(value, str):
        return head + text(value)
    if isinstance(value, tuple):
        return head + array(len(value)) + sum(map(text, value))
    assert isinstance(value, bytes), f"no arithmetic for {name}"
    return head + binary(value)


SIGNED_BYTES = 1 + text("payload") + text("signer") + 2 + 64 + text("signature") + 2 + 64
"""Of what is signed beside its payload: a map, a signer of 64 characters, a signature of 64 bytes."""


def _renewal(renewal: Renewal) -> int:
    count = RENEWAL_BYTES + len(renewal.tail)
    return count + (2 if count < 1 << 8 else 3 if count < 1 << 16 else 5)


class Sizes:
    """Encoded sizes of messages."""

    def __init__(self) -> None:
        self._heads: dict[str, tuple[int, tuple[str, ...]]] = {}

    def of(self, body: Updates) -> int:
        """Exactly `len(Schema.pack(body))`."""
        head, names = self._heads.get(body.kind) or self._head(type(body))
        for name in names:
            head += _field(name, getattr(body, name))
        for name, updates in (("records", body.records), ("notices", body.notices)):
            if updates:
                head += text(name) + array(len(updates)) + sum(map(self._update, updates))
        if body.renewals:
            head += text("renewals") + array(len(body.renewals)) + sum(map(_renewal, body.renewals))
        if body.claims:
            head += text("claims") + array(len(body.claims)) + len(body.claims) * (CLAIM_BYTES + 2)
        for name, marks in (("told", body.told), ("wanted", body.wanted)):
            head += _field(name, marks) if marks else 0
        return head

    def _head(self, kind: type[Updates]) -> tuple[int, tuple[str, ...]]:
        """Bytes of map, version and kind, and the fields that vary; the map has at most 15 of all."""
        names = tuple(name for name, field in kind.model_fields.items() if field.is_required())
        updates = {"records", "renewals", "claims", "notices", "told", "wanted"}
        assert set(kind.model_fields) == {*names, *updates, "tensors"}
        bytes_ = 1 + text("v") + uint(PROTOCOL_VERSION) + text("k") + text(kind.kind)
        self._heads[kind.kind] = (bytes_, names)
        return bytes_, names

    def _update(self, value: Signed | Notice) -> int:
        if isinstance(value, Notice):
            head = 1 + _field("topic", value.topic) + _field("version", value.version) + text("notice")
            return head + self._update(value.notice)
        return SIGNED_BYTES + binary(value.payload)
