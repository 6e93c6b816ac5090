"""The header codec refuses what is not exactly a message."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.messages import WORK_KINDS, Accept
from transport import wire
from transport.wire import OtherVersion, Schema, WireError

SCHEMA = Schema(WORK_KINDS)
ACCEPT = Accept(cell="c0", slot=3, term=1, digest="ab")


def packed(**changes: object) -> bytes:
    return msgpack.packb(msgpack.unpackb(SCHEMA.pack(ACCEPT)) | changes)


def test_a_body_survives_the_wire() -> None:
    assert SCHEMA.unpack(SCHEMA.pack(ACCEPT)) == ACCEPT


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (packed(v=2), "speaks version 2; this node speaks 1"),
        (packed(v=True), "no protocol version"),
        (packed(v="1"), "no protocol version"),
        (packed(v=0), "no protocol version"),
        (packed(k="nope"), "unknown kind"),
        (packed(slot=-1), "slot"),
        (packed(slot="3"), "slot"),
        (packed(extra=1), "extra"),
        (packed(digest=float("nan")), "non-finite"),
        (SCHEMA.pack(ACCEPT) + b"\x00", "not a msgpack map"),
        (b"\x82\xa1v\x01\xa1v\x01", "duplicate key"),
        (msgpack.packb([1, 2]), "not a map"),
        (b"\xdd\xff\xff\xff\xff", "not a msgpack map"),
        (b"\x81\xa1v" + b"\x91" * 600 + b"\x01", "nested too deep"),
    ],
)
def test_bad_headers_are_refused_with_a_reason(header: bytes, reason: str) -> None:
    with pytest.raises(WireError, match=reason):
        SCHEMA.unpack(header)


def test_only_another_version_is_an_other_version() -> None:
    with pytest.raises(OtherVersion):
        SCHEMA.unpack(packed(v=2, k="nope", extra=1))
    with pytest.raises(WireError) as raised:
        SCHEMA.unpack(packed(v=None))
    assert not isinstance(raised.value, OtherVersion)


def test_a_node_that_has_learned_a_version_reads_it_and_still_refuses_what_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "VERSIONS_READ", (1, 2))
    assert SCHEMA.unpack(packed(v=2)) == SCHEMA.unpack(packed(v=1)) == ACCEPT
    with pytest.raises(WireError, match="extra"):
        SCHEMA.unpack(packed(v=2, extra=1))
    with pytest.raises(OtherVersion, match="speaks version 3; this node speaks 1 and 2"):
        SCHEMA.unpack(packed(v=3))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_wire_errors(data: bytes) -> None:
    with pytest.raises(WireError):
        SCHEMA.unpack(data)
