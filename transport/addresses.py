"""Addresses that peers give each other: numbers, never names.

libzmq looks a name up in the one thread that carries everybody's messages, and waits there: a
single peer whose name server does not answer would silence all others. So a name is resolved by
whoever goes by it (`transport.resolving`), and nobody else ever sees it.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

ADDRESS_CHARS_MAX = 128
_ADDRESS = re.compile(r"tcp://(?:(?P<v4>[0-9.]+)|\[(?P<v6>[0-9a-fA-F:.]+)\]):(?P<port>[0-9]{1,5})", re.ASCII)


def is_address(text: str) -> bool:
    """Whether a peer's claim of where it listens is something to dial: tcp://IP:PORT, v6 in brackets."""
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        return False
    try:
        ip = IPv4Address(match["v4"]) if match["v4"] else IPv6Address(match["v6"])
    except AddressValueError:
        return False
    return not (ip.is_unspecified or ip.is_multicast)


def without_name(address: str) -> str:
    """The address, unless somebody would have to look a name up in it. Raises ValueError."""
    if address.startswith("tcp:") and not is_address(address):
        raise ValueError("an address is no IP address and port")
    return address


def tcp_address(ip: str, port: int | str) -> str:
    """What to dial or to bind."""
    return f"tcp://[{ip}]:{port}" if ":" in ip else f"tcp://{ip}:{port}"


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of tcp://HOST:PORT. Raises ValueError."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    if not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address} has no port that there is")
    return host.removeprefix("[").removesuffix("]"), int(port)
