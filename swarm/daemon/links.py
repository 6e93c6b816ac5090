"""A real link that proves an identity: the same for gossip and work, nodes and coordinators."""

from __future__ import annotations

from transport.identity import Identity
from transport.segments import LinkLimits
from transport.wire import Schema
from transport.zmq_link import ZmqLink


async def open_link(
    identity: Identity,
    schema: Schema,
    *,
    host: str,
    port: int,
    advertise: str = "",
    limits: LinkLimits | None = None,
) -> ZmqLink:
    """Listen as this identity. port: 0 takes a free one. Raises CannotListen."""
    return await ZmqLink.open(
        me=identity.node,
        curve_public=identity.curve_public,
        curve_secret=identity.curve_secret,
        schema=schema,
        host=host,
        advertise=advertise,
        port=port,
        limits=limits,
    )
