"""An admitted node that, besides its work, tells the others what is not so about everybody.

It holds a certificate and a link like everybody, so what it says is heard. It passes on records
that their owners never signed, old ones that it has kept, and those of strangers whom nobody admitted.
"""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from swarm.daemon.admission import Authority
from swarm.gossip.messages import Spread
from swarm.gossip.records import MEMBER, pack
from swarm.gossip.view import MemberRecord, read_member
from swarm.lab.keys import certified, found_authority
from transport.sim_network import SIMULATED
from transport.wire import Message, Signed

if TYPE_CHECKING:
    from swarm.lab.world import World

EVERY_S = 1.0
KEPT = 64


async def lie(world: World, rng: Random) -> None:
    """The first node of a world lies to one other at a time, for as long as it lives."""
    kept: list[Signed] = []
    liar, foreign = world.nodes[0], found_authority(world.job, rng)
    while True:
        await asyncio.sleep(EVERY_S)
        if not liar.running or liar.gossip is None:
            continue
        known = [signed for signed in liar.gossip.records() if signed.signer != liar.node]
        kept = (kept + known)[:KEPT]  # the oldest ones
        others = [process for process in world.live() if process is not liar]
        if not known or not others:
            continue
        told = rng.choice(others).node
        lies = (forged(rng.choice(known), rng), rng.choice(kept), stranger(foreign, rng))
        liar.links[0].send(told, Message(Spread(records=lies)))


def stranger(foreign: Authority, rng: Random) -> Signed:
    """The record of a node that some other authority has admitted, as if to this job."""
    identity, certificate = certified(foreign, "worker", rng)
    job = foreign.job.digest
    record = MemberRecord(
        job=job,
        node=identity.node,
        incarnation=1,
        seq=0,
        gossip=f"{SIMULATED}1",
        work=f"{SIMULATED}2",
        curve_key=identity.curve_public,
        certificate=certificate,
    )
    return identity.signing_in(job)(MEMBER, pack(record))


def forged(signed: Signed, rng: Random) -> Signed:
    """A newer record of the same node, under the signature of the old one."""
    record = read_member(signed)
    version = {"incarnation": record.incarnation + rng.randrange(2), "seq": record.seq + rng.randint(1, 1000)}
    return signed.model_copy(update={"payload": pack(record.model_copy(update=version))})
