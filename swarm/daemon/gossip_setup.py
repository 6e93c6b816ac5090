"""What a gossip half is built from, and what it shows of itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from swarm.daemon.bridge import Progress
from swarm.daemon.trust import Trust
from swarm.events import Emit
from swarm.gossip.config import GossipConfig
from swarm.gossip.view import Facts, MemberRecord, Role, View
from swarm.job import Job
from transport.identity import Identity
from transport.wire import Signed

DONE_S = 10.0
"""After every live worker has finished: how long a node stays for late readers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSetup:
    """What a gossip half is built from, besides its seams. linger_s: how long it stays when all are done."""

    record: MemberRecord
    sign: Callable[[str, bytes], Signed]
    verifier: Trust
    job: Job
    config: GossipConfig
    rng: random.Random
    wall: Callable[[], float]
    emit: Emit
    linger_s: float = DONE_S

    @classmethod
    def for_member(
        cls,
        identity: Identity,
        certificate: bytes,
        *,
        role: Role,
        job: Job,
        root_key: bytes,
        gossip: str,
        work: str,
        incarnation: int,
        config: GossipConfig,
        rng: random.Random,
        wall: Callable[[], float],
        emit: Emit,
        memory_bytes: int = 0,
        linger_s: float = DONE_S,
    ) -> GossipSetup:
        """The setup of an admitted member that listens at these addresses.

        memory_bytes: what it may hold, said from the first: its training half reads the job's text
        for as long as that takes, and a founding does not wait for it.
        """
        record = MemberRecord(
            job=job.digest,
            node=identity.node,
            incarnation=incarnation,
            seq=0,
            role=role,
            gossip=gossip,
            work=work,
            curve_key=identity.curve_public,
            certificate=certificate,
            facts=Facts(memory_bytes=memory_bytes),
        )
        return cls(
            record=record,
            sign=identity.signing_in(job.digest),
            verifier=Trust(job.digest, root_key, wall),
            job=job,
            config=config,
            rng=rng,
            wall=wall,
            emit=emit,
            linger_s=linger_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusSnapshot:
    """What GET /status tells, as of now.

    gossip_sent_bytes, gossip_received_bytes: by the gossip link; the work link's are in
    `progress`. dropped: gossip that was not believed or not even a message, by reason.
    """

    node: str
    role: str
    job: Job
    view: View
    progress: Progress
    gossip_sent_bytes: int
    gossip_received_bytes: int
    dropped: Mapping[str, int]
