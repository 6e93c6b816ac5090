"""Who was here, kept on disk, so that whoever starts again finds the others without anybody's help."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from swarm.daemon.gossip_half import GossipHalf
from swarm.events import Event
from swarm.messages import Part
from transport.files import write_private
from transport.identity import pack_payload, unpack_payload
from transport.wire import Signed, WireError, WireLimits

MEMBERS_FILE = "members"


class _Members(Part):
    records: tuple[Signed, ...]


async def remember_members(half: GossipHalf, directory: Path) -> None:
    """Write down who is here whenever that changes, but not that nobody is: it may be us who are cut off."""
    known: frozenset[str] = frozenset()
    said = ""
    while True:
        records = half.records()
        signers = frozenset(record.signer for record in records)
        if signers != known and len(signers) > 1:
            try:
                write_members(directory, records)
                known, said = signers, ""
            except OSError as error:
                why = f"who is here cannot be written down: {error.strerror}"
                if why != said:
                    setup, fields = half.setup, {"what": "members", "why": why}
                    setup.emit(Event("dropped", setup.wall(), setup.record.node, fields))
                said = why
        await asyncio.sleep(1.0)


def write_members(directory: Path, records: Sequence[Signed]) -> None:
    """Keep the members' records, in one step. Raises OSError."""
    write_private(directory / MEMBERS_FILE, pack_payload(_Members(records=tuple(records))))


def read_members(directory: Path) -> tuple[Signed, ...]:
    """The members' records kept at an earlier run; none if they cannot be read."""
    try:
        data = (directory / MEMBERS_FILE).read_bytes()
        return unpack_payload(_Members, data, WireLimits(header_bytes_max=64 << 20)).records
    except (OSError, WireError):
        return ()
