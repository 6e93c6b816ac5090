"""Who was here, kept on disk, so that whoever starts again finds the others without anybody's help.

The dead are kept, too, for a while: they may only have been cut off. Two sides of a partition that
forgot each other when they restarted would refuse each other as strangers for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

from swarm.daemon.gossip_half import GossipHalf
from swarm.events import Event
from swarm.messages import Part
from transport.files import write_private
from transport.identity import pack_payload, unpack_payload
from transport.wire import Signed, WireError, WireLimits

MEMBERS_FILE = "members"
KEEP_DEAD_S = 12 * 3600.0
"""Since a member was first held to be dead, however often this node restarts. As gossip passes the
dead on for as long: longer would bring back whom everybody else has forgotten."""
KEPT_DEAD_MAX = 256
"""Of the dead, the last ones are kept: each is a kilobyte and a half, and probed after a restart."""


class KeptMembers(Part):
    """records: of the living. dead: record and wall time, in seconds, since when it counts as dead."""

    records: tuple[Signed, ...]
    dead: tuple[tuple[Signed, float], ...] = ()


class Dead:
    """Since when members are dead, over the lives of this process."""

    def __init__(self, kept: Iterable[tuple[Signed, float]]) -> None:
        self._since = {signed.signer: (signed.payload, since) for signed, since in kept}

    def note(self, records: Iterable[Signed], wall: float) -> tuple[tuple[Signed, float], ...]:
        """Those that are dead now and were not for long; who signed something since died anew."""
        found = []
        for signed in records:
            payload, since = self._since.get(signed.signer, (b"", wall))
            since = since if payload == signed.payload else wall
            self._since[signed.signer] = (signed.payload, since)
            if wall < since + KEEP_DEAD_S:
                found.append((signed, since))
        return tuple(sorted(found, key=lambda each: -each[1])[:KEPT_DEAD_MAX])


async def remember_members(half: GossipHalf, directory: Path) -> None:
    """Write down who is here whenever that changes, but not that nobody is: it may be us who are cut off."""
    known: tuple[frozenset[str], frozenset[str]] | None = None
    said, setup = "", half.setup
    tombs = Dead(_read(directory).dead)
    while True:
        records, dead = half.records(), tombs.note(half.dead_records(), setup.wall())
        signers = frozenset(record.signer for record in records), frozenset(each.signer for each, _ in dead)
        if signers != known and len(records) + len(dead) > 1:
            try:
                write_private(directory / MEMBERS_FILE, pack_payload(KeptMembers(records=records, dead=dead)))
                known, said = signers, ""
            except OSError as error:
                why = f"who is here cannot be written down: {error.strerror}"
                if why != said:
                    fields = {"what": "members", "why": why}
                    setup.emit(Event("dropped", setup.wall(), setup.record.node, fields))
                said = why
        await asyncio.sleep(1.0)


def read_members(directory: Path) -> tuple[Signed, ...]:
    """The members' records kept at an earlier run, the living first; none if they cannot be read."""
    kept = _read(directory)
    return (*kept.records, *(signed for signed, _ in kept.dead))


def _read(directory: Path) -> KeptMembers:
    try:
        data = (directory / MEMBERS_FILE).read_bytes()
        return unpack_payload(KeptMembers, data, WireLimits(header_bytes_max=64 << 20))
    except (OSError, WireError):
        return KeptMembers(records=())
