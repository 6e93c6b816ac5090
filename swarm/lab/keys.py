"""The keys of a simulated job: who may admit nodes to it, and the certificates of those admitted."""

from __future__ import annotations

from random import Random

from swarm.daemon.admission import Authority
from swarm.job import Job
from swarm.lab.sim_node import CERTIFIED_AT_S
from transport.identity import Identity, RunKeyGrant, SigningKey, sign_grant

YEARS_S = 100 * 365 * 86_400


def found_authority(job: Job, rng: Random, *, not_after: int = CERTIFIED_AT_S + YEARS_S) -> Authority:
    """Fresh root and run keys for a job. Two of them know nothing of each other.

    not_after: wall time until which the run key is granted, seconds since the epoch.
    """
    root, run = SigningKey.create(rng), SigningKey.create(rng)
    grant = RunKeyGrant(job=job.digest, job_name=job.name, run_key=run.public_key, not_after=not_after)
    return Authority(job=job, root_key=root.public_key, run_key=run, grant=sign_grant(root, grant))


def certified(
    authority: Authority, role: str, rng: Random, *, serial: int = 0, now_wall: float = CERTIFIED_AT_S
) -> tuple[Identity, bytes]:
    """A new node, and the certificate that this authority issues to it at this wall time."""
    identity = Identity.create(rng)
    binding = identity.bind_curve(authority.job.digest)
    _, certificate = authority.certify(
        identity.public_key, binding, role=role, serial=serial, now_wall=now_wall
    )
    return identity, certificate
