"""What members tell each other about members."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, PlainSerializer, PlainValidator

from swarm.gossip.compact import Renewal, claim_from, packed_claim, packed_renewal, renewal_from
from swarm.messages import Count, NodeText, Part
from transport.wire import Body, Signed

SignedClaim = Annotated[Signed, PlainValidator(claim_from), PlainSerializer(packed_claim)]
CompactRecord = Annotated[Renewal, PlainValidator(renewal_from), PlainSerializer(packed_renewal)]
Topic = Annotated[str, Field(max_length=96, pattern=r"^[a-z0-9.~:-]+$")]
UPDATES_MAX = 512
"""Updates of one sort in one message."""
BUCKETS = 128
"""Of node ids, by their first two hex digits, in a comparison of views."""
HASH_BYTES = 4
HASHES_BYTES = BUCKETS * HASH_BYTES
MARK_BYTES = 5
SHOWN_BYTES = MARK_BYTES + 3
"""A mark, and a mark with a tag and an age (`comparing`)."""
SHOWN_MAX = 8192
"""Marks shown in one message: 64 KiB."""
WANTED_MAX = 64
"""Marks, or nodes, asked for in one message."""
TOLD_MAX = 512
"""Updates told by their marks in one message."""
SECONDED_MAX = 3
"""Others that a claim counts."""
REVOKED_MAX = 3_000
"""Nodes that a job can revoke; a `Revocation` names them all."""


class Claim(Part):
    """One node's word about another, signed in domain "claim": never more than a suspicion.

    About oneself it is a farewell. closed: the accuser's own connection to the node closed.
    dead: its suspicion ran out. seconded: how many others did not reach the node for it, either.
    """

    node: NodeText
    incarnation: Count
    by: NodeText
    closed: bool = False
    dead: bool = False
    seconded: Annotated[int, Field(ge=0, le=SECONDED_MAX)] = 0


class Notice(Part):
    """A signed text for everyone; the highest version of a topic replaces the others."""

    topic: Topic
    version: Count
    notice: Signed


class Revocation(Part):
    """Payload of a notice in domain "revocation", signed by a run key: members no more.

    The list only grows, so the newest version tells all.
    """

    job: Annotated[str, Field(max_length=64)]
    nodes: Annotated[tuple[NodeText, ...], Field(max_length=REVOKED_MAX)]


class Updates(Body):
    """Base: updates that ride on every gossip message.

    renewals: records of nodes of which the receiver probably has an earlier one. told: marks of
    updates that it probably has; of those that it has not it tells by `wanted`.
    """

    records: Annotated[tuple[Signed, ...], Field(max_length=UPDATES_MAX)] = ()
    renewals: Annotated[tuple[CompactRecord, ...], Field(max_length=UPDATES_MAX)] = ()
    claims: Annotated[tuple[SignedClaim, ...], Field(max_length=UPDATES_MAX)] = ()
    notices: Annotated[tuple[Notice, ...], Field(max_length=UPDATES_MAX)] = ()
    told: Annotated[bytes, Field(max_length=TOLD_MAX * MARK_BYTES)] = b""
    wanted: Annotated[bytes, Field(max_length=WANTED_MAX * MARK_BYTES)] = b""


class Ping(Updates):
    """Are you there? `seq` comes back in the Ack."""

    kind: ClassVar[str] = "ping"

    seq: Count


class Ack(Updates):
    """I am, or: the one you asked me to ask is."""

    kind: ClassVar[str] = "ack"

    seq: Count


class PingRequest(Updates):
    """Ask `target` for me; I do not reach it."""

    kind: ClassVar[str] = "ping_request"

    seq: Count
    target: NodeText


class Nack(Updates):
    """I do not reach it either."""

    kind: ClassVar[str] = "nack"

    seq: Count


class Spread(Updates):
    """Updates alone."""

    kind: ClassVar[str] = "spread"


class Compare(Updates):
    """Hashes of the sender's view, by bucket of node ids. Who differs answers with its rows there.

    answer: asks the receiver for its own hashes, too, if they differ: then both learn.
    newcomer: the sender wants all that differs, however much that is.
    whole: the sender may have no earlier records of what differs; renewals are of no use to it.
    """

    kind: ClassVar[str] = "compare"

    hashes: Annotated[bytes, Field(min_length=HASHES_BYTES, max_length=HASHES_BYTES)]
    answer: bool
    newcomer: bool
    whole: bool


class Marks(Updates):
    """What the sender holds in the buckets in which it differs from one that showed hashes.

    buckets: one byte each. shown: marks, with tags and ages, of all that it holds there.
    """

    kind: ClassVar[str] = "marks"

    buckets: Annotated[bytes, Field(min_length=1, max_length=BUCKETS)]
    shown: Annotated[bytes, Field(max_length=SHOWN_MAX * SHOWN_BYTES)]


class Want(Updates):
    """Tell me the whole records of these nodes."""

    kind: ClassVar[str] = "want"

    nodes: Annotated[tuple[NodeText, ...], Field(max_length=WANTED_MAX)]


class Exchange(Updates):
    """Rows of the sender's view, those in which it differs from the receiver's."""

    kind: ClassVar[str] = "exchange"


GOSSIP_KINDS: tuple[type[Body], ...] = (Ping, Ack, PingRequest, Nack, Spread, Compare, Marks, Want, Exchange)
