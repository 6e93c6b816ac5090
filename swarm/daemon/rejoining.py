"""A node that sees nobody asks the lobby again: everybody it knew may have moved meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from swarm.daemon.gossip_half import GossipHalf
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
    pause_s = LOOK_S
    while True:
        await asyncio.sleep(pause_s * rng.uniform(0.75, 1.25))
        if any(member.node != half.setup.record.node for member in half.view.live()):
            pause_s = LOOK_S
            continue
        pause_s = min(ALONE_MAX_S, pause_s * 1.5)
        found = await ask()
        if found:
            half.seed(found)
