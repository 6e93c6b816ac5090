"""Addresses that people name: what others can dial, and what this machine can listen on."""

from __future__ import annotations

import socket

from swarm.daemon.options import UserError

WILDCARDS = ("", "*", "0.0.0.0", "::")  # noqa: S104 - refused, not bound


def check_dialable(host: str) -> None:
    """Raise UserError if `host` is nothing that others could dial, before silence would tell."""
    if host in WILDCARDS or any(char.isspace() or char == "/" for char in host):
        raise UserError(f"{host!r} is not an address others can dial: name the one they will")
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        raise UserError(
            f"{host!r} is neither an address nor a name that resolves: name the one others will dial"
        ) from None


def check_listenable(host: str, announced: str) -> None:
    """Raise UserError if this machine cannot listen on `host`. announced: what invitations name."""
    if host in WILDCARDS:
        return
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        forwarded = f": where a router forwards {announced} to it, listen with --host 0.0.0.0"
        raise UserError(f"{host} is no address of this machine{forwarded}") from None
