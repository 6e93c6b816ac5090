"""Keys prove who signed what; a certificate proves membership to anyone with the root's public key."""

import errno
import os
import random
import stat
from pathlib import Path

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.files import write_private
from transport.identity import (
    CERTIFICATE_BYTES_MAX,
    CLOCK_TOLERANCE_S,
    Certificate,
    CertificateError,
    Identity,
    IdentityError,
    RunKeyGrant,
    SigningKey,
    check_certificate,
    node_id,
    seal_certificate,
    sign_grant,
    unpack_payload,
    verify,
    within,
)
from transport.wire import Signed, WireError

JOB, OTHER_JOB = "ab" * 16, "cd" * 16
NOW = 1_800_000_000
RNG = random.Random(7)
ROOT, RUN, STRANGER = (SigningKey.create(RNG) for _ in range(3))
NODE, OTHER = Identity.create(RNG), Identity.create(RNG)


def grant(root: SigningKey = ROOT, **changes: object) -> Signed:
    fields = {"job": JOB, "job_name": "demo", "run_key": RUN.public_key, "not_after": NOW + 10_000}
    return sign_grant(root, RunKeyGrant.model_validate(fields | changes))


def certificate(run: SigningKey = RUN, granted: Signed | None = None, **changes: object) -> bytes:
    fields = {
        "job": JOB,
        "node": NODE.node,
        "public_key": NODE.public_key,
        "curve_key": NODE.curve_public,
        "binding": NODE.bind_curve(JOB),
        "role": "worker",
        "serial": 1,
        "not_before": NOW,
        "not_after": NOW + 5_000,
    }
    return seal_certificate(run, granted or grant(), Certificate.model_validate(fields | changes))


def check(data: bytes, now_wall: float = NOW) -> Certificate:
    return check_certificate(data, job=JOB, root_public=ROOT.public_key, now_wall=now_wall)


def test_a_seed_makes_one_identity_and_no_seed_makes_fresh_ones() -> None:
    assert Identity.create(random.Random(1)) == Identity.create(random.Random(1))
    assert Identity.create(random.Random(1)) != Identity.create(random.Random(2))
    assert Identity.create().node != Identity.create().node


def test_an_identity_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = Identity.load_or_create(home)
    assert Identity.load_or_create(home) == first
    assert stat.S_IMODE((home / "identity.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == ["identity.json"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"ed25519": "00", "curve": "x"}', b"[1]"])
def test_a_damaged_identity_is_named_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "identity.json").write_bytes(content)
    with pytest.raises(IdentityError, match=r"identity\.json does not hold"):
        Identity.load_or_create(tmp_path)
    assert (tmp_path / "identity.json").read_bytes() == content


def test_secrets_are_not_shown() -> None:
    assert NODE.curve_secret not in repr(NODE)
    assert repr(NODE.key.secret) not in repr(NODE)


def test_a_signature_holds_for_its_bytes_domain_and_signer_only() -> None:
    signed = NODE.sign("member", b"payload")
    assert verify(signed, "member", NODE.public_key)
    assert not verify(signed, "notice", NODE.public_key)
    assert not verify(signed.model_copy(update={"payload": b"payloae"}), "member", NODE.public_key)
    assert not verify(signed, "member", OTHER.public_key)
    assert not verify(signed.model_copy(update={"signer": OTHER.node}), "member", NODE.public_key)
    assert not verify(signed.model_copy(update={"signature": bytes(64)}), "member", NODE.public_key)
    assert not verify(signed, "member", b"short")


def test_what_is_signed_in_one_job_is_signed_in_no_other() -> None:
    signed = NODE.signing_in("ab")("claim", b"payload")
    assert verify(signed, within("ab", "claim"), NODE.public_key)
    assert not verify(signed, within("ac", "claim"), NODE.public_key)
    assert not verify(signed, "claim", NODE.public_key)


def test_a_file_that_was_replaced_is_on_the_disk_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}"))))
    write_private(tmp_path / "kept", b"1")
    assert len(synced) == 2
    assert (synced[0].parent, synced[1]) == (tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_file_that_cannot_be_replaced_stays_as_it_was_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_private(tmp_path / "kept", b"1")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(tmp_path / "kept", b"2")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("kept", b"1")]


def test_domain_and_payload_cannot_be_shifted_into_each_other() -> None:
    signed = NODE.sign("ab", b"c")
    assert not verify(signed.model_copy(update={"payload": b"bc"}), "a", NODE.public_key)


def test_a_member_verifies_a_certificate_alone() -> None:
    data = certificate()
    assert len(data) <= CERTIFICATE_BYTES_MAX
    checked = check(data)
    assert checked.node == node_id(NODE.public_key)
    assert checked.curve_key == NODE.curve_public


def test_clocks_may_be_wrong_by_two_minutes() -> None:
    data = certificate()
    check(data, NOW - CLOCK_TOLERANCE_S)
    check(data, NOW + 5_000 + CLOCK_TOLERANCE_S)


SWAPPED = {"curve_key": OTHER.curve_public}
IMPOSTOR = {"public_key": OTHER.public_key, "binding": OTHER.bind_curve(JOB), "curve_key": OTHER.curve_public}


@pytest.mark.parametrize(
    ("data", "now", "reason"),
    [
        (certificate(run=STRANGER), NOW, "not signed by the job's run key"),
        (certificate(granted=grant(root=STRANGER)), NOW, "not granted by the job's root key"),
        (certificate(), NOW - 121, "not yet valid"),
        (certificate(), NOW + 5_121, "it has expired"),
        (certificate(not_after=NOW + 99_999), NOW + 10_121, "grant of its run key has expired"),
        (certificate(job=OTHER_JOB), NOW, "another job"),
        (certificate(granted=grant(job=OTHER_JOB)), NOW, "another job"),
        (certificate(binding=NODE.bind_curve(OTHER_JOB)), NOW, "another job"),
        (certificate(**SWAPPED), NOW, "CURVE key is not the one"),
        (certificate(binding=OTHER.bind_curve(JOB), **SWAPPED), NOW, "not bound by the node's identity"),
        (certificate(**IMPOSTOR), NOW, "node id is not the hash"),
        (b"", NOW, "not a msgpack map"),
        (certificate()[:-1], NOW, "not a msgpack map"),
        (certificate() + bytes(CERTIFICATE_BYTES_MAX), NOW, "size limit"),
    ],
)
def test_each_wrong_certificate_is_refused_for_its_own_reason(data: bytes, now: float, reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        check(data, now)


def test_no_flipped_bit_of_a_certificate_survives() -> None:
    good = certificate()
    rng = random.Random(3)
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        with pytest.raises(CertificateError):
            check(bytes(bad))


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_the_declared_errors(data: bytes) -> None:
    with pytest.raises(CertificateError):
        check(data)
    with pytest.raises(WireError):
        unpack_payload(Signed, data)


@given(st.binary(max_size=300))
def test_what_even_the_run_key_signed_is_validated(payload: bytes) -> None:
    signed = RUN.sign("certificate", payload)
    data = msgpack.packb({"certificate": signed.model_dump(), "grant": grant().model_dump()})
    with pytest.raises(CertificateError):
        check(data)
