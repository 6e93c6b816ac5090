"""Names to addresses, without making anybody else wait."""

from __future__ import annotations

import asyncio
import socket


class CannotResolve(OSError):
    """A name that stands for no address, now. The text is one sentence for a person."""


async def resolved(host: str) -> str:
    """An IP address for a name or an address; of several an IPv4 one, which most others can dial.

    Raises CannotResolve.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no name"
        raise CannotResolve(f"{host!r} stands for no address: {why}") from None
    ips = [str(sockaddr[0]) for *_, sockaddr in sorted(found, key=lambda each: each[0] != socket.AF_INET)]
    if not ips:
        raise CannotResolve(f"{host!r} stands for no address")
    return ips[0]
