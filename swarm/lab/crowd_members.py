"""Who is in a crowd: identities, certificates and signatures as real members have them.

Nothing is stubbed: records and claims are signed with Ed25519 and believed by `daemon.trust`.
What all nodes would check alike is checked once in the process and remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from swarm.daemon.trust import Trust
from swarm.gossip.messages import Claim
from swarm.gossip.view import MemberRecord
from swarm.job import Job
from swarm.lab.keys import certified, found_authority
from transport.identity import Identity
from transport.machine import NodeId
from transport.wire import Signed

DAYS_S = 365 * 86_400


class Registry:
    """The job's authority, and the identities it admitted."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._job = Job(name="crowd")
        self._authority = found_authority(self._job, rng, not_after=DAYS_S)
        self.trust = RememberedTrust(Trust(self._job.digest, self._authority.root_key, lambda: 0.0))

    def admit(self, index: int) -> tuple[Identity, MemberRecord]:
        """A new member, and its first record."""
        identity, certificate = certified(self._authority, "worker", self._rng, serial=index, now_wall=0.0)
        record = MemberRecord(
            job=self._job.digest,
            node=identity.node,
            incarnation=0,
            seq=0,
            gossip=f"tcp://10.{index >> 16}.{index >> 8 & 255}.{index & 255}:7001",
            work=f"tcp://10.{index >> 16}.{index >> 8 & 255}.{index & 255}:7002",
            curve_key=identity.curve_public,
            certificate=certificate,
        )
        return identity, record


@dataclass(slots=True)
class RememberedTrust:
    """A `Verifier` that checks each signed text once for all who ask. Refusals are not remembered."""

    trust: Trust
    _records: dict[bytes, tuple[Signed, MemberRecord]] = field(default_factory=dict)
    _claims: dict[bytes, tuple[Signed, NodeId, Claim]] = field(default_factory=dict)

    def record(self, signed: Signed) -> MemberRecord:
        """See `Verifier`."""
        known = self._records.get(signed.signature)
        if known is not None and (known[0] is signed or known[0] == signed):
            return known[1]
        record = self.trust.record(signed)
        self._records[signed.signature] = (signed, record)
        return record

    def claim(self, signed: Signed, accuser: MemberRecord) -> Claim:
        """See `Verifier`."""
        known = self._claims.get(signed.signature)
        if known is not None and known[1] == accuser.node and (known[0] is signed or known[0] == signed):
            return known[2]
        claim = self.trust.claim(signed, accuser)
        self._claims[signed.signature] = (signed, NodeId(accuser.node), claim)
        return claim
