"""Between the two halves of a node: gossip that training must not stall, and training.

In the real world the halves are two processes joined by a socket pair; in the simulated
world they share a loop and the bridge is two queues. Both speak these bodies.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Protocol

from pydantic import Field

from swarm.gossip.view import Facts, Status
from swarm.messages import Count, NodeText, Reason
from transport.wire import Body, Schema, Signed

Topic = Annotated[str, Field(max_length=96, pattern=r"^[a-z0-9.~:-]+$")]


class MemberChanged(Body):
    """Gossip half -> training half: a row of the view is new or different."""

    kind: ClassVar[str] = "member_changed"

    record: Signed
    status: Status
    reason: Reason = ""


class MemberGone(Body):
    """Gossip half -> training half: a node died or left so long ago that the view has forgotten it."""

    kind: ClassVar[str] = "member_gone"

    node: NodeText


class NoticeLearned(Body):
    """Gossip half -> training half: a signed notice, newest version of its topic.

    Topics: "genesis" (a coordinator's: founding records),
    "revoked" (run key: revoked node ids).
    """

    kind: ClassVar[str] = "notice_learned"

    topic: Topic
    version: Count
    notice: Signed


class Stop(Body):
    """Gossip half -> training half: hand over what you can and leave."""

    kind: ClassVar[str] = "stop"

    reason: Reason


class FactsChanged(Body):
    """Training half -> gossip half: advertise these facts from now on."""

    kind: ClassVar[str] = "facts_changed"

    facts: Facts


class PeerLost(Body):
    """Training half -> gossip half: a work connection closed, look at this peer now."""

    kind: ClassVar[str] = "peer_lost"

    peer: NodeText


class Progress(Body):
    """Training half -> gossip half, about once a second: numbers for status and metrics."""

    kind: ClassVar[str] = "progress"

    cell: str = ""
    iteration: Count = 0
    round: Count = 0
    loss: float | None = None
    tokens: Count = 0
    tokens_per_s: float = 0.0
    bytes_sent: Count = 0
    bytes_received: Count = 0
    dropped: dict[str, Count] = Field(default={})
    memory_bytes: Count = 0
    recoveries: Count = 0
    leader: str = ""
    stages: tuple[int, ...] = ()
    waiting_for: Reason = ""


class Awake(Body):
    """Training half -> gossip half, about once a second: its event loop turns."""

    kind: ClassVar[str] = "awake"


class Left(Body):
    """Training half -> gossip half: everything is handed over, the node may go."""

    kind: ClassVar[str] = "left"

    reason: Reason


class Listening(Body):
    """Training half -> gossip half, first of all: where the work link listens."""

    kind: ClassVar[str] = "listening"

    address: Annotated[str, Field(max_length=128)]


class Begin(Body):
    """Gossip half -> training half: this node was admitted to this job."""

    kind: ClassVar[str] = "begin"

    job_toml: Annotated[str, Field(max_length=65_536)]
    root_key: bytes


class Failed(Body):
    """Training half -> gossip half: a person's mistake ends this node. One sentence."""

    kind: ClassVar[str] = "failed"

    reason: Annotated[str, Field(max_length=2000)]


BRIDGE_SCHEMA = Schema(
    (
        MemberChanged,
        MemberGone,
        NoticeLearned,
        Stop,
        FactsChanged,
        PeerLost,
        Progress,
        Awake,
        Left,
        Listening,
        Begin,
        Failed,
    )
)


def subject_of(body: Body) -> tuple[str, str]:
    """What a body is about: whoever has not read it yet needs only the newest about the same."""
    match body:
        case MemberChanged(record=record):
            return "member", record.signer
        case MemberGone(node=node):
            return "member", node
        case NoticeLearned(topic=topic):
            return body.kind, topic
        case PeerLost(peer=peer):
            return body.kind, peer
        case _:
            return body.kind, ""


class Bridge(Protocol):
    """One half's end. `send` never waits; `recv` raises EOFError when the other half is gone."""

    def send(self, body: Body) -> None:
        """Hand a body over. Bounded: of what a half that stalls leaves unread only the newest is kept."""
        ...

    async def recv(self) -> Body:
        """The next body."""
        ...

    def close(self) -> None:
        """Close this end."""
        ...
