"""A node that sees nobody asks the lobby again: everybody it knew may have moved meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from swarm.daemon.gossip_half import GossipHalf
from transport.backoff import Backoff
from transport.wire import Signed

LOOK_S = 5.0
ALONE_MAX_S = 300.0
"""The longest pause between two questions; the first pauses are as short as a look."""


async def keep_in_touch(
    half: GossipHalf, ask: Callable[[], Awaitable[Sequence[Signed]]], rng: random.Random
) -> None:
    """While nobody else lives in the view, ask who is here, ever more seldom.

    Membership calls the dead at the addresses that it knows. After an outage of a whole site all
    of them may be wrong; whoever came back before the coordinator would be alone for good.
    ask: the lobby; returns the records of the members, none if it cannot be reached.
    """
    backoff = Backoff(LOOK_S, ALONE_MAX_S, rng)
    while True:
        await asyncio.sleep(backoff.pause_s())
        if any(member.node != half.setup.record.node for member in half.view.live()):
            backoff.reset()
            continue
        found = await ask()
        if found:
            half.seed(found)
