"""Whom a member believes: signatures checked against certificates that the job's keys issued."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from swarm.gossip.messages import Claim, Notice, Revocation
from swarm.gossip.records import CLAIM, MEMBER, REVOCATION, Untrusted, pack, read_claim
from swarm.gossip.view import MemberRecord, read_member
from transport.identity import (
    Certificate,
    CertificateError,
    SigningKey,
    check_certificate,
    granted_run_key,
    unpack_payload,
    verify,
    within,
)
from transport.machine import NodeId
from transport.wire import Signed, WireError, WireLimits

REVOKED = "revoked"
"""Topic of the notice that names who is a member no more."""
_CERTIFICATES_MAX = 65_536
_LIMITS = WireLimits(header_bytes_max=1 << 18, depth_max=3)


@dataclass(slots=True)
class Trust:
    """A `Verifier` of members' records and claims, and of revocations.

    wall: seconds since the epoch, for expiry only. Certificates are checked once; one that
    expires later is not asked again, revocation is how a member is removed.
    """

    job: str
    root_key: bytes
    wall: Callable[[], float]
    _certificates: dict[bytes, Certificate] = field(default_factory=dict)

    def record(self, signed: Signed) -> MemberRecord:
        """The record, if its node signed it and its certificate says what it says."""
        try:
            record = read_member(signed)
        except WireError as error:
            raise Untrusted(str(error)) from None
        certificate = self._certificate(record.certificate)
        said = (record.node, record.curve_key, record.role, record.job)
        if said != (certificate.node, certificate.curve_key, certificate.role, self.job):
            raise Untrusted("the record is not what its certificate says")
        if not verify(signed, within(self.job, MEMBER), certificate.public_key):
            raise Untrusted("the record has a bad signature")
        return record

    def claim(self, signed: Signed, accuser: MemberRecord) -> Claim:
        """The claim, if the accuser signed it."""
        claim = read_claim(signed)
        if claim.by != accuser.node or not verify(signed, within(self.job, CLAIM), self.public_key(accuser)):
            raise Untrusted("the claim has a bad signature")
        return claim

    def public_key(self, record: MemberRecord) -> bytes:
        """The Ed25519 key of a record that was verified. Raises Untrusted."""
        return self._certificate(record.certificate).public_key

    def revoked(self, notice: Notice, certificate: bytes) -> tuple[NodeId, ...]:
        """Who is a member no more, by the run key that issued `certificate`. Raises Untrusted."""
        try:
            run_key = granted_run_key(certificate, self.root_key)
            if not verify(notice.notice, REVOCATION, run_key):
                raise Untrusted("the revocation is not signed by the job's run key")
            revocation = unpack_payload(Revocation, notice.notice.payload, _LIMITS)
        except WireError as error:
            raise Untrusted(str(error)) from None
        if revocation.job != self.job or notice.version != len(revocation.nodes):
            raise Untrusted("the revocation is not for this job and version")
        return tuple(NodeId(node) for node in revocation.nodes)

    def _certificate(self, data: bytes) -> Certificate:
        known = self._certificates.get(data)
        if known is None:
            try:
                known = check_certificate(data, job=self.job, root_public=self.root_key, now_wall=self.wall())
            except CertificateError as error:
                raise Untrusted(str(error)) from None
            if len(self._certificates) >= _CERTIFICATES_MAX:
                self._certificates.clear()
            self._certificates[data] = known
        return known


def revoke(run: SigningKey, job: str, nodes: Iterable[str]) -> Notice:
    """The notice that ends the membership of all these nodes: earlier ones must be among them."""
    everyone = tuple(sorted(set(nodes)))
    notice = run.sign(REVOCATION, pack(Revocation(job=job, nodes=everyone)))
    return Notice(topic=REVOKED, version=len(everyone), notice=notice)
