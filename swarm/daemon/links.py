"""A real link that proves an identity, and the port it listens on, which outlives the process.

Whoever comes back after an outage is known at the address of its earlier life. If it listened
elsewhere, two that moved while neither heard the other could never find each other again without
somebody's help.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from swarm.daemon.addresses import WILDCARDS
from swarm.events import Emit, Event, wall_time
from transport.files import write_private
from transport.identity import Identity
from transport.resolving import resolved
from transport.segments import LinkLimits
from transport.wire import Schema
from transport.zmq_link import ZmqLink
from transport.zmq_listen import CannotListen

What = Literal["gossip", "work"]
"""The two links of a process."""


async def open_link(
    identity: Identity,
    schema: Schema,
    *,
    what: What,
    directory: Path,
    emit: Emit,
    host: str,
    port: int,
    advertise: str = "",
    limits: LinkLimits | None = None,
) -> ZmqLink:
    """Listen as this identity, and keep the port in its directory. Raises CannotListen, CannotResolve.

    host, advertise: names are looked up here and now, because others are told numbers alone.
    port: 0 takes the one that an earlier life had; if that is in use by now, or there was none,
    a free one.
    """
    listening, shown = [
        named if named in WILDCARDS else await resolved(named) for named in (host, advertise or host)
    ]

    async def at(port: int) -> ZmqLink:
        return await ZmqLink.open(
            me=identity.node,
            curve_public=identity.curve_public,
            curve_secret=identity.curve_secret,
            schema=schema,
            host=listening,
            advertise=shown,
            port=port,
            limits=limits,
        )

    def tell(why: str) -> None:
        emit(Event("dropped", wall_time(), identity.node, {"what": f"{what} port", "why": why}))

    kept = kept_port(directory, what)
    try:
        link = await at(port or kept)
    except CannotListen as error:
        if port or not kept:
            raise
        link = await at(0)
        tell(f"{error}: it listens at {link.endpoint.address} instead")
    bound = port_of(link.endpoint.address)
    try:
        if bound != kept:
            keep_port(directory, what, bound)
    except OSError as error:
        tell(f"port {bound} cannot be written down: {error.strerror}")
    return link


def kept_port(directory: Path, what: What) -> int:
    """Where an earlier life from this directory listened; 0: nowhere, or nobody knows."""
    try:
        port = int((directory / f"{what}-port").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
    return port if 0 < port < 1 << 16 else 0


def keep_port(directory: Path, what: What, port: int) -> None:
    """Remember where this life listens. Raises OSError."""
    write_private(directory / f"{what}-port", str(port).encode("ascii"))


def forget_ports(directory: Path) -> None:
    """Let the next life listen elsewhere, as on a machine whose ports others have taken."""
    for what in ("gossip", "work"):
        (directory / f"{what}-port").unlink(missing_ok=True)


def port_of(address: str) -> int:
    """The port of an address that ends in one."""
    return int(address.rpartition(":")[2])
