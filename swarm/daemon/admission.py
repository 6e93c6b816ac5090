"""What it takes to admit nodes to a job: authority to invite and certify, and the spent uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from swarm.gossip.view import Role
from swarm.job import Job
from transport.identity import (
    CERTIFICATE_DAYS,
    DAY_S,
    Certificate,
    CertificateError,
    RunKeyGrant,
    SigningKey,
    check_certificate,
    node_id,
    open_binding,
    open_grant,
    seal_certificate,
)
from transport.invitation import Invitation, InvitationTerms, sign_invitation
from transport.machine import NodeId
from transport.wire import Signed, WireError

REVOKED_NODE = "this node was revoked and may not join this job"


@dataclass(frozen=True, slots=True)
class Ledger:
    """Which nodes spent which invitation, and how many certificates were issued."""

    spent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    serial: int = 0

    def admits(self, invitation: Invitation, node: NodeId) -> bool:
        """Whether a use is left, or this node already had one."""
        nodes = self.spent.get(invitation.jti, ())
        return node in nodes or len(nodes) < invitation.uses

    def after(self, invitation: Invitation, node: NodeId) -> Ledger:
        """The ledger once `node` has been issued a certificate on this invitation."""
        nodes = self.spent.get(invitation.jti, ())
        spent = nodes if node in nodes else (*nodes, node)
        return Ledger({**self.spent, invitation.jti: spent}, self.serial + 1)

    def renewed(self) -> Ledger:
        """The ledger once a certificate was renewed: that spends nothing."""
        return Ledger(self.spent, self.serial + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The run key of a job, with the root key's grant for it."""

    job: Job
    root_key: bytes
    run_key: SigningKey
    grant: Signed

    @property
    def granted(self) -> RunKeyGrant:
        """What the root key says of the run key. Raises WireError if it does not."""
        return open_grant(self.grant, self.root_key)

    def invite(
        self, *, jti: str, role: Role, uses: int, not_after: int, lobby: tuple[str, ...], lobby_key: str
    ) -> Invitation:
        """Sign an invitation; it ends no later than the run key's grant."""
        terms = InvitationTerms(
            job=self.job.digest,
            job_name=self.job.name,
            jti=jti,
            role=role,
            uses=uses,
            not_after=min(not_after, self.granted.not_after),
            lobby=lobby,
            lobby_key=lobby_key,
            root_key=self.root_key,
            grant=self.grant,
        )
        return sign_invitation(self.run_key, terms)

    def certify(
        self, public_key: bytes, binding: Signed, *, role: str, serial: int, now_wall: float
    ) -> tuple[Certificate, bytes]:
        """Certify a node for 30 days. Raises WireError if `binding` is not the node's own."""
        certificate = Certificate(
            job=self.job.digest,
            node=node_id(public_key),
            public_key=public_key,
            curve_key=open_binding(binding, public_key).curve_key,
            binding=binding,
            role=role,
            serial=serial,
            not_before=int(now_wall),
            not_after=min(int(now_wall + CERTIFICATE_DAYS * DAY_S), self.granted.not_after),
        )
        return certificate, seal_certificate(self.run_key, self.grant, certificate)

    def objection(
        self, invitation: Invitation, node: NodeId, ledger: Ledger, revoked: Collection[str], now_wall: float
    ) -> str:
        """Why this (authentic) invitation does not admit this node now; empty if it does."""
        if invitation.job != self.job.digest:
            return f"the invitation is for another job ({invitation.job_name}), this one is {self.job.name}"
        if invitation.root_key != self.root_key:
            return "the invitation was not issued under this job's root key"
        if now_wall > invitation.not_after:
            return "the invitation has expired: ask for a new one"
        if invitation.jti in revoked:
            return "the invitation was revoked: ask for a new one"
        if node in revoked:
            return REVOKED_NODE
        if not ledger.admits(invitation, node):
            return f"the invitation is spent: all its uses ({invitation.uses}) are taken, ask for a new one"
        return ""

    def renewal(
        self, held: bytes, node: NodeId, revoked: Collection[str], now_wall: float
    ) -> tuple[str, str]:
        """(why this certificate is not renewed for this node, its role); one of them is empty."""
        try:
            certificate = check_certificate(
                held, job=self.job.digest, root_public=self.root_key, now_wall=now_wall
            )
        except CertificateError as error:
            return str(error), ""
        if certificate.node != node:
            return "the certificate to be renewed is another node's", ""
        if node in revoked:
            return REVOKED_NODE, ""
        return "", certificate.role

    def binding_objection(self, binding: Signed, public_key: bytes, proved_key: str) -> str:
        """Why this is not the node's word on the CURVE key its connection proves; empty if it is."""
        try:
            bound = open_binding(binding, public_key)
        except WireError as error:
            return str(error)
        if bound.job != self.job.digest:
            return "the CURVE key is bound for another job"
        if bound.curve_key != proved_key:
            return "the CURVE key of the connection is not the one the node's identity binds"
        return ""
