"""Where a link listens: binding its ROUTER, and the two ways that fails."""

from __future__ import annotations

import errno

import zmq

from transport.addresses import tcp_address
from transport.segments import LinkLimits
from transport.wire import Schema
from transport.zmq_socket import CurveKeys, Socket, set_common

INBOUND_QUEUED_MAX = 64
"""Messages of one connection that libzmq reads ahead of us."""
FRAME_OVERHEAD_BYTES = 1 << 10


class CannotListen(OSError):
    """The address to listen on cannot be used. The text is one sentence for a person."""


class PortInUse(CannotListen):
    """Somebody else listens on that port."""


def listen(router: Socket, keys: CurveKeys, schema: Schema, limits: LinkLimits, host: str, port: int) -> int:
    """Bind the ROUTER as a CURVE server; the port it listens on. Raises CannotListen."""
    largest = max(limits.segment_bytes, schema.limits.header_bytes_max)
    address = tcp_address(host, port or "*")
    set_common(router, address, INBOUND_QUEUED_MAX, largest + FRAME_OVERHEAD_BYTES)
    router.curve_server = True
    router.curve_publickey = keys.public.encode()
    router.curve_secretkey = keys.secret.encode()
    try:
        router.bind(address)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {port} on {host} is in use; choose another or 0 for any") from None
        raise CannotListen(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return int(str(router.getsockopt_string(zmq.LAST_ENDPOINT)).rsplit(":", 1)[1])
