"""Certificates last a month: a node that runs longer asks the lobby for the next one in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from swarm.daemon.gossip_half import GossipHalf
from swarm.daemon.jobdir import JobDir
from swarm.daemon.joining import Welcomed, join
from swarm.daemon.options import UserError
from swarm.events import Event
from transport.identity import Certificate, Identity
from transport.invitation import Invitation

USED_SHARE = 2 / 3
"""Of a certificate's life: what is left bears a coordinator that is away for days."""
RETRY_S = 3600.0
ASK_S = 60.0


def due_at(certificate: Certificate) -> float:
    """Wall time from which on the certificate is to be renewed."""
    return certificate.not_before + USED_SHARE * (certificate.not_after - certificate.not_before)


async def keep_itself_certified(half: GossipHalf, jobdir: JobDir, wall: Callable[[], float]) -> None:
    """The same for a coordinator, which asks nobody: it has the run key."""
    certificate, _ = jobdir.certify_itself(wall())
    while True:
        await asyncio.sleep(max(0.0, min(RETRY_S, due_at(certificate) - wall())))
        if wall() < due_at(certificate):
            continue
        renewed, data = jobdir.certify_itself(wall())
        half.recertify(data)
        fields = {"renewed_until": renewed.not_after}
        half.setup.emit(Event("joined", wall(), jobdir.identity.node, fields))
        if renewed.not_after <= certificate.not_after:
            return  # the grant of the run key ends then
        certificate = renewed


async def keep_certified(
    half: GossipHalf,
    identity: Identity,
    invitation: Invitation,
    welcomed: Welcomed,
    directory: Path,
    wall: Callable[[], float],
) -> None:
    """Renew in time, keep what is given, show it to the others. Ends with the run key's own life.

    The wall clock is looked at once an hour, because it may be set meanwhile. `invitation` says
    where the lobby is; whether it is spent or has expired does not matter.
    """
    certificate = welcomed.check(identity, welcomed.job.digest, wall())
    while True:
        await asyncio.sleep(max(0.0, min(RETRY_S, due_at(certificate) - wall())))
        if wall() < due_at(certificate):
            continue
        record = half.setup.record
        try:
            newer = await join(
                invitation,
                identity,
                gossip=record.gossip,
                work=record.work,
                timeout_s=ASK_S,
                certificate=welcomed.certificate,
            )
            renewed = newer.check(identity, welcomed.job.digest, wall())
            newer.save(directory)
        except (UserError, OSError) as error:
            half.setup.emit(Event("refused", wall(), identity.node, {"reason": f"not renewed: {error}"}))
            await asyncio.sleep(RETRY_S)
            continue
        half.recertify(newer.certificate)
        half.setup.emit(Event("joined", wall(), identity.node, {"renewed_until": renewed.not_after}))
        if renewed.not_after <= certificate.not_after:
            return  # the grant of the run key ends then, and nobody can go beyond it
        welcomed, certificate = newer, renewed
