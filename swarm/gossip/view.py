"""Members and views: what the others know about a node, and a node's table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from swarm.messages import CellName, Count, Digest, NodeText, StageIndex
from transport.addresses import ADDRESS_CHARS_MAX, without_name
from transport.machine import NodeId
from transport.wire import Signed, WireError, WireLimits, lists_as_tuples, unpack_map

Status = Literal["alive", "suspect", "dead", "left"]
Role = Literal["worker", "coordinator"]


RECORD_BYTES_MAX = 24 << 10
"""Of a signed record. One that holds all 256 stages, with the longest certificate, needs 23 KiB."""

StageKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])$")]
"""A stage index as text: msgpack maps have text as keys."""


PeerAddress = Annotated[str, Field(max_length=ADDRESS_CHARS_MAX), AfterValidator(without_name)]


class Facts(BaseModel):
    """What a node says of itself, changing as it works.

    cell: empty while standby. stages: those it holds at `iteration`, the last committed one; of who is
        in no cell that of the newest checkpoint on its disk.
    hashes: stage (as text) -> hash of its weights at `iteration`, proof of bit-identity.
    round: outer rounds applied. speed_flops: measured, 0 before the first measurement.
    loss: mean training loss of that iteration, nats a token.
    platform: device type, torch version, CPU kind; equal platforms must agree bit for bit.
    state: "standby" holds nothing, "restoring" fetches, "training" takes part, "finished";
        of a coordinator: "standby" until it knows what is in its archive, then "training", and "finished"
        when that is the job's last iteration;
        "stuck" is what its gossip half says while the training half hangs.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    cell: CellName = ""
    stages: Annotated[tuple[StageIndex, ...], Field(max_length=256)] = ()
    iteration: Count = 0
    round: Count = 0
    hashes: Annotated[dict[StageKey, Digest], Field(max_length=256)] = {}
    state: Literal["standby", "restoring", "training", "finished", "stuck"] = "standby"
    loss: Annotated[float, Field(ge=0, le=1e6)] | None = None
    speed_flops: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    memory_bytes: Count = 0
    platform: Annotated[str, Field(max_length=128)] = ""


class MemberRecord(BaseModel):
    """What a node signs about itself. Newer means higher (incarnation, seq).

    gossip, work: addresses ("tcp://IP:port", no names) of its two sockets; both prove `curve_key`,
    which its certificate binds. certificate: signed by the run key, verified once. From
    `incarnation` on stands what changes: it can be sent alone (`swarm.gossip.compact`).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    job: Digest
    node: NodeText
    role: Role = "worker"
    gossip: PeerAddress
    work: PeerAddress
    curve_key: Annotated[str, Field(max_length=40)]
    certificate: Annotated[bytes, Field(max_length=4096)]
    incarnation: Count
    seq: Count
    facts: Facts = Facts()

    @property
    def version(self) -> tuple[int, int]:
        """Order of a node's own records."""
        return (self.incarnation, self.seq)


def read_member(signed: Signed) -> MemberRecord:
    """Decode a record. Raises WireError. Whether to believe it is the verifier's business.

    Everybody keeps and passes on everybody's record: its size is limited before it is looked at.
    """
    if len(signed.payload) > RECORD_BYTES_MAX:
        raise WireError(f"member record: over {RECORD_BYTES_MAX} bytes")
    try:
        return MemberRecord.model_validate(lists_as_tuples(unpack_map(signed.payload, WireLimits())))
    except ValidationError as error:
        raise WireError(f"member record: {error.errors()[0]['msg']}") from None


@dataclass(frozen=True, slots=True)
class Member:
    """One row of a view: the newest record, our verdict, and why."""

    record: MemberRecord
    status: Status
    reason: str = ""

    @property
    def node(self) -> NodeId:
        """Node id of the member."""
        return NodeId(self.record.node)

    @property
    def facts(self) -> Facts:
        """What the member says of itself."""
        return self.record.facts

    @property
    def live(self) -> bool:
        """Fit for the next plan: alive, not even suspected."""
        return self.status == "alive"


@dataclass(frozen=True)
class View:
    """An immutable table of members, by node id. Every query is in node-id order."""

    members: Mapping[NodeId, Member] = field(default_factory=dict)

    def with_member(self, member: Member) -> View:
        """A view in which `member` replaces what was known of its node."""
        return replace(self, members={**self.members, member.node: member})

    def without(self, node: NodeId) -> View:
        """A view that has forgotten a node."""
        return replace(self, members={n: m for n, m in self.members.items() if n != node})

    def live(self) -> tuple[Member, ...]:
        """Live workers."""
        return self._live

    @cached_property
    def _live(self) -> tuple[Member, ...]:
        found = (m for m in self.members.values() if m.live and m.record.role == "worker")
        return tuple(sorted(found, key=lambda m: m.record.node))

    def cell(self, name: str) -> tuple[Member, ...]:
        """Live workers of a cell."""
        return tuple(m for m in self.live() if name and m.facts.cell == name)

    def cells(self) -> tuple[str, ...]:
        """Names of the cells that have a live worker."""
        return tuple(sorted({m.facts.cell for m in self.live() if m.facts.cell}))

    def holders(self, cell: str, stage: int) -> tuple[Member, ...]:
        """Live workers of a cell that hold a stage."""
        return tuple(m for m in self.cell(cell) if stage in m.facts.stages)

    def standby(self) -> tuple[Member, ...]:
        """Live workers that belong to no cell."""
        return tuple(m for m in self.live() if not m.facts.cell)

    def status(self, node: NodeId) -> Status | None:
        """Our verdict on a node, None if it was never heard of."""
        member = self.members.get(node)
        return member.status if member else None
