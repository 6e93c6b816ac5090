"""What nodes say to each other while they train, with the limits of every field.

What cells say to each other is in `swarm/meetings.py`. Gossip has its own messages
(`swarm/gossip/messages.py`), state transfer its own (`recovery/transfer.py`), the lobby its own
(`swarm/daemon/lobby.py`). All are `Body`s.

The cell's log. A cell advances in *slots*: slot 0 founds it, each later slot is one lockstep
step (an iteration), one outer round, or a mere change of the roster. A slot is decided by one
signed `CellRecord` that a majority of the last record's roster has accepted (single-decree Paxos
per slot; `term` is the ballot), so no slot of a cell ever has two records.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from transport.wire import Body, Lane, Signed

NodeText = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
CellName = Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9.~-]*$")]
Digest = Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]*$")]
StageIndex = Annotated[int, Field(ge=0, lt=256)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Reason = Annotated[str, Field(max_length=200)]
Hop = tuple[NodeText, StageIndex]
Path = Annotated[tuple[Hop, ...], Field(min_length=1, max_length=256)]
Holders = Annotated[tuple[NodeText, ...], Field(max_length=256)]
Roster = Annotated[tuple[Holders, ...], Field(min_length=1, max_length=256)]
"""Holders of each stage, by stage; an empty entry is a stage that is lost and skipped."""


class Part(BaseModel):
    """Base of what bodies are made of."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


def origin_of(cell: str) -> str:
    """The name with which the history of a cell began: survivors go on as `origin~founder.slot`."""
    return cell.partition("~")[0]


def first_name_of(cell: str) -> str:
    """What a cell would be called had its job been founded only once: `c0` for `c0.6561f2a1`.

    A job that goes on from its checkpoints has new cells, but draws the data it would have drawn.
    """
    origin, sign, rest = cell.partition("~")
    return origin.partition(".")[0] + sign + rest


class StageSum(Part):
    """What a stage contributed to a slot: who was averaged, over how many tokens, which bytes.

    For a step `contributors` are nodes and `digest` is of the summed gradient. For a round they
    are cell names and `digest` is of the new anchor, the outer momentum and how many rounds made
    them: of all that is applied. An empty digest means not averaged.
    """

    contributors: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=4096)] = ()
    tokens: Count = 0
    digest: Digest = ""


class CellRecord(Part):
    """One decided slot of a cell's log; the payload of a `Signed` in domain "cell-record".

    iteration and round count what is done once this record is applied. clip_scale multiplies
    every stage's mean gradient. loss is the mean over `tokens` target tokens, in nats.
    """

    cell: CellName
    slot: Count
    term: Count
    act: Literal["found", "step", "round", "roster"]
    iteration: Count
    round: Count
    previous: Digest
    roster: Roster
    sums: Annotated[tuple[StageSum, ...], Field(max_length=256)] = ()
    clip_scale: Annotated[float, Field(ge=0, le=1)] = 1.0
    loss: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    tokens: Count = 0
    leader: NodeText


class PlannedMicrobatch(Part):
    """A microbatch and its path. path[0] is its data node and stage 0."""

    index: Count
    path: Path


class CellBody(Body):
    """What every message inside a cell carries: which cell, which slot, which leadership."""

    cell: CellName
    slot: Count
    term: Count


class Plan(CellBody):
    """Leader -> members: run this iteration. `base` is the digest of the last record."""

    kind: ClassVar[str] = "plan"

    iteration: Count
    base: Digest
    roster: Roster
    microbatches: Annotated[tuple[PlannedMicrobatch, ...], Field(max_length=65_536)]


class Forward(CellBody):
    """Hop -> next hop: activations [sequences, tokens, width]. Token ids stay with their data node."""

    kind: ClassVar[str] = "forward"
    lane: ClassVar[Lane] = "bulk"

    microbatch: Count
    attempt: Count
    path: Path
    position: Annotated[int, Field(ge=0, lt=256)]


class Backward(CellBody):
    """Hop -> previous hop: gradient of the activations that position's stage had sent."""

    kind: ClassVar[str] = "backward"
    lane: ClassVar[Lane] = "bulk"

    microbatch: Count
    attempt: Count
    path: Path
    position: Annotated[int, Field(ge=0, lt=256)]
    target_tokens: Count


class Lost(CellBody):
    """Hop -> data node: this attempt cannot go on, and why. Data node -> hops: it does not, forget it."""

    kind: ClassVar[str] = "lost"

    microbatch: Count
    attempt: Count
    reason: Reason


class Report(CellBody):
    """Data node -> leader: all its microbatches are done, partial or given up."""

    kind: ClassVar[str] = "report"

    done: Count
    partial: Count
    lost: Count
    tokens: Count
    loss_sum: float


class Close(CellBody):
    """Leader -> members: no new work for this slot; average. First named holder reduces.

    round_attempt grows when a reducer vanished and the averaging starts again.
    """

    kind: ClassVar[str] = "close"

    act: Literal["step", "round"]
    round_attempt: Count
    roster: Roster


class Gradient(CellBody):
    """Holder -> reducer: its gradient summed over tokens, one flat float32 tensor."""

    kind: ClassVar[str] = "gradient"
    lane: ClassVar[Lane] = "bulk"

    stage: StageIndex
    round_attempt: Count
    target_tokens: Count


class Averaged(CellBody):
    """Reducer -> holders: what this slot applies to a stage, flat float32 tensors.

    A step: the gradient summed over contributors. A round: the new anchor, then the outer momentum;
    `anchor` is how many outer rounds made it.
    """

    kind: ClassVar[str] = "averaged"
    lane: ClassVar[Lane] = "bulk"

    stage: StageIndex
    round_attempt: Count
    total: StageSum
    anchor: Count = 0


class Summed(CellBody):
    """Reducer -> leader: the stage is averaged. `squares` is the sum of squares of the sum."""

    kind: ClassVar[str] = "summed"

    stage: StageIndex
    round_attempt: Count
    total: StageSum
    squares: Annotated[float, Field(ge=0)]
    reason: Reason = ""


class Propose(CellBody):
    """Leader -> roster: accept this record for the slot."""

    kind: ClassVar[str] = "propose"

    record: Signed


class Accept(CellBody):
    """Member -> leader: stored, promised to nobody newer."""

    kind: ClassVar[str] = "accept"

    digest: Digest


class Commit(CellBody):
    """Leader -> everyone: decided. Apply it."""

    kind: ClassVar[str] = "commit"

    record: Signed


class Query(CellBody):
    """New leader -> roster: promise me this term and tell me what you have."""

    kind: ClassVar[str] = "query"


class Promise(CellBody):
    """Member -> new leader: last decided record, and the newest accepted one if not decided.

    `ballot` is the leadership, (term, leader), under which it was accepted: a record that is
    proposed again keeps its own term, so that alone would not say which is newest.
    """

    kind: ClassVar[str] = "promise"

    decided: Signed
    accepted: Signed | None = None
    ballot: tuple[Count, NodeText] | None = None


class Stale(CellBody):
    """Member -> leader: a newer term or slot exists; here is the last decided record.

    leader: whom that term belongs to, empty if the sender does not know.
    """

    kind: ClassVar[str] = "stale"

    decided: Signed
    leader: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""


class Restore(CellBody):
    """Leader -> taker: hold this stage. `how` and `reason` are the policy's decision.

    donors are asked in order; for "checkfree" they are the holders of `neighbours`.
    `same_state` demands the state exactly at this slot, because another holder goes on.
    `rehearsal`: fetch it as it is now, keep nothing, and answer: the cell goes on meanwhile, and
    sees how long it would have to wait.
    """

    kind: ClassVar[str] = "restore"

    stage: StageIndex
    how: Literal["holder", "other_cell", "plus_copy", "checkfree", "checkpoint", "seed"]
    donors: Holders
    same_state: bool
    rehearsal: bool = False
    neighbours: Annotated[tuple[StageIndex, ...], Field(max_length=2)] = ()
    decided: Signed
    reason: Reason


class Ready(CellBody):
    """Taker -> leader: the stage is held (or could not be: ok is False)."""

    kind: ClassVar[str] = "ready"

    stage: StageIndex
    ok: bool
    reason: Reason = ""


class Absent(CellBody):
    """Member -> leader: count me out, I do not hold what the roster says. Place me anew.

    stages: those that are not held; empty means that the sender is not in this cell at all.
    """

    kind: ClassVar[str] = "absent"

    reason: Reason
    stages: Annotated[tuple[StageIndex, ...], Field(max_length=256)] = ()


class Leave(CellBody):
    """Member -> leader: the owner wants the machine back; give my stages to others, soon."""

    kind: ClassVar[str] = "leave"

    reason: Reason


WORK_KINDS: tuple[type[Body], ...] = (
    Plan,
    Forward,
    Backward,
    Lost,
    Report,
    Close,
    Gradient,
    Averaged,
    Summed,
    Propose,
    Accept,
    Commit,
    Query,
    Promise,
    Stale,
    Restore,
    Ready,
    Absent,
    Leave,
)
"""Spoken on the work link, with `swarm.meetings.MEETING_KINDS` and `recovery.transfer.TRANSFER_KINDS`."""
