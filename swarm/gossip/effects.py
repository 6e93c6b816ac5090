"""What membership wants done, besides sending."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.gossip.messages import Notice
from swarm.gossip.register import Row
from swarm.gossip.view import Member
from transport.link import Endpoint
from transport.machine import Effect, NodeId
from transport.wire import Signed


@dataclass(frozen=True, slots=True)
class Know(Effect):
    """Where a member's gossip link listens."""

    peer: NodeId
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Forget(Effect):
    """A member that was revoked, or has been gone for long: admit it no more."""

    peer: NodeId


@dataclass(frozen=True, slots=True)
class MemberUpdated(Effect):
    """A row of the view is new or different; `signed` proves the record."""

    member: Member
    signed: Signed


@dataclass(frozen=True, slots=True)
class NoticeUpdated(Effect):
    """A newer notice of a topic."""

    notice: Notice


def updated(row: Row) -> MemberUpdated:
    """A row, as it is now."""
    return MemberUpdated(row.member, row.signed)
