"""Machine: the holders of a stage in a cell bring their gradients together, one slot at a time.

The first holder of a stage's row reduces: it adds what the others send in row order and gives
everybody the same bytes, so holders are bit-identical by construction. A holder that does not
deliver in time is left out, and the total says whom it covers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swarm.messages import Averaged, CellRecord, Close, Gradient, Roster, StageSum, Summed
from swarm.pipeline.follower import Ignored
from swarm.pipeline.work import ShipFlat
from transport.machine import Effect, NodeId, Send
from transport.patience import Patience
from transport.wire import Message

EARLY_SLOTS = 2
"""How far after the last decided slot a gradient may be: one Commit may still be on its way here."""

Part = tuple[Any, int]
"""(flat gradient: a tensor or the message that carries it, its target tokens)."""


@dataclass(frozen=True, slots=True)
class Early:
    """A gradient and which sum it is for. closing: (slot, term, round attempt), as of its Close."""

    cell: str
    closing: tuple[int, int, int]
    part: Part


@dataclass(frozen=True, slots=True)
class Reduce(Effect):
    """Add the parts of a stage in this order and answer with `reduced`. close: what for."""

    close: Close
    stage: int
    parts: tuple[tuple[NodeId, Any, int], ...]


@dataclass(frozen=True, slots=True)
class Hold(Effect):
    """Keep what a slot will apply to a stage until its record decides.

    reducer: who made it. attempt: (term, round attempt) of the Close that it was made for.
    """

    slot: int
    stage: int
    total: StageSum
    tensors: tuple[Any, ...]
    anchor: int
    reducer: NodeId
    attempt: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Settled:
    """What the round of one slot made of a stage."""

    slot: int
    total: StageSum
    tensors: tuple[Any, ...]
    anchor: int
    reason: str


@dataclass(slots=True)
class Row:
    """One stage of this node in the slot being closed."""

    holders: tuple[NodeId, ...]
    parts: dict[NodeId, Part] = field(default_factory=dict)
    until: float = 0.0
    reducing: bool = False


class Averaging:
    """This node's part in averaging the stages it holds."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self._close: Close | None = None
        self._leader = me
        self._rows: dict[int, Row] = {}
        self._early: dict[tuple[int, NodeId], Early] = {}
        self._settled: dict[int, Settled] = {}
        self._durations = Patience(initial_s=20.0, floor_s=2.0)
        self._begun = 0.0
        self._tokens_max = 0

    @property
    def early(self) -> int:
        """Gradients kept for slots that are not closed here."""
        return len(self._early)

    def close(
        self, close: Close, leader: NodeId, own: Mapping[int, Part], now: float, *, tokens_max: int
    ) -> Sequence[Effect]:
        """The leader closed a slot. `own` has this node's gradients by stage (none for a round).

        tokens_max: target tokens that can have reached a stage, at all its holders together.
        """
        self._close, self._leader, self._begun, self._tokens_max = close, leader, now, tokens_max
        self._early = {key: early for key, early in self._early.items() if self._is_due(early, close)}
        self._rows = {
            stage: Row(tuple(NodeId(n) for n in row), until=now + self._durations.limit_s())
            for stage, row in enumerate(close.roster)
            if self.me in row and (stage in own or close.act == "round")
        }
        self._settled = {s: done for s, done in self._settled.items() if done.slot == close.slot}
        if close.act == "round":
            return []
        effects: list[Effect] = []
        for stage, row in self._rows.items():
            effects += self._contribute(stage, row, own[stage])
        return effects

    def _contribute(self, stage: int, row: Row, own: Part) -> Sequence[Effect]:
        close = self._close
        assert close is not None
        if row.holders[0] != self.me:
            gradient = Gradient(**_about(close, stage), target_tokens=own[1])
            return [ShipFlat(row.holders[0], gradient, (own[0],))]
        row.parts[self.me] = own
        for holder in row.holders:
            early = self._early.get((stage, holder))
            if early is not None and early.closing == _closing(close):
                row.parts[holder] = self._early.pop((stage, holder)).part
        return self._reduce_if_complete(stage, row)

    def handle(
        self, peer: NodeId, body: Gradient, payload: Any, last: CellRecord, planned: Roster = ()
    ) -> Sequence[Effect]:
        """Another holder's gradient, perhaps before our own Close.

        last: the newest decided record. planned: holders by stage in the plan at hand, if any.
        """
        close, row = self._close, self._rows.get(body.stage)
        if close is None or (body.cell, _closing(body)) != (close.cell, _closing(close)):
            rows = [roster[body.stage] for roster in (last.roster, planned) if body.stage < len(roster)]
            if not any(peer in holders and self.me in holders for holders in rows):
                return [Ignored(peer, body.kind, "of no other holder of the stage")]
            early = Early(body.cell, _closing(body), (payload, body.target_tokens))
            return self._keep_early(peer, body, early, last)
        if row is None or row.reducing or row.holders[0] != self.me or peer not in row.holders:
            return []
        row.parts[peer] = (payload, body.target_tokens)
        return self._reduce_if_complete(body.stage, row)

    def _keep_early(self, peer: NodeId, body: Gradient, early: Early, last: CellRecord) -> Sequence[Effect]:
        """Keep the newest of each other holder until our own Close: no more than the sum will take."""
        soon = body.cell == last.cell and last.slot < body.slot <= last.slot + EARLY_SLOTS
        if not soon or (self._close is not None and not self._is_due(early, self._close)):
            return [Ignored(peer, body.kind, "of no slot to come")]
        key = (body.stage, peer)
        older = self._early.get(key)
        if older is None or older.closing <= early.closing:
            self._early[key] = early
        return []

    @staticmethod
    def _is_due(early: Early, close: Close) -> bool:
        """Whether a gradient is for this close or a later one; nothing else is worth its place."""
        return early.cell == close.cell and early.closing >= _closing(close)

    def forget(self, stage: int) -> None:
        """A stage is held no longer: what came early for its next sum has no place here."""
        self._early = {key: early for key, early in self._early.items() if key[0] != stage}

    def observe(self, avoid: frozenset[NodeId]) -> Sequence[Effect]:
        """Do not wait for holders that are gone."""
        effects: list[Effect] = []
        for stage, row in self._rows.items():
            if row.parts and not row.reducing and not set(row.holders) - set(row.parts) - avoid:
                effects += self._reduce(stage, row)
        return effects

    def tick(self, now: float) -> Sequence[Effect]:
        """Go on without holders that are too slow."""
        late = [(s, r) for s, r in self._rows.items() if r.parts and not r.reducing and now >= r.until]
        return [effect for stage, row in late for effect in self._reduce(stage, row)]

    def deadline(self) -> float | None:
        """When to go on without the missing."""
        return min((r.until for r in self._rows.values() if r.parts and not r.reducing), default=None)

    def _reduce_if_complete(self, stage: int, row: Row) -> Sequence[Effect]:
        return self._reduce(stage, row) if len(row.parts) == len(row.holders) else []

    def _reduce(self, stage: int, row: Row) -> Sequence[Effect]:
        row.reducing = True
        assert self._close is not None
        parts: list[tuple[NodeId, Any, int]] = []
        effects: list[Effect] = []
        left = self._tokens_max
        for node in row.holders:
            payload, tokens = row.parts.get(node, (None, 0))
            if tokens > left:
                effects.append(Ignored(node, Gradient.kind, "more tokens than were planned"))
            elif node in row.parts:
                parts.append((node, payload, tokens))
                left -= tokens
        return [*effects, Reduce(self._close, stage, tuple(parts))]

    def reduced(self, work: Reduce, tensor: Any, squares: float, digest: str, now: float) -> Sequence[Effect]:
        """The sum of a stage is there. A digest of "" says that it was not finite: refused."""
        if work.close is not self._close:
            return []  # it took so long that the slot was closed anew, or is over
        self._durations.add(now - self._begun)
        contributors = tuple(node for node, _, _ in work.parts) if digest else ()
        tokens = sum(count for _, _, count in work.parts) if digest else 0
        total = StageSum(contributors=contributors, tokens=tokens, digest=digest)
        reason = self._left_out(work.stage, contributors)
        return self._tell(work.stage, total, (tensor,), squares=squares, reason=reason)

    def _left_out(self, stage: int, contributors: tuple[NodeId, ...]) -> str:
        """Why a stage's sum is not over all its holders, or an empty text."""
        if not contributors:
            return f"stage {stage} is not averaged: no holder's gradient could be used"
        missing = [node[:8] for node in self._rows[stage].holders if node not in contributors]
        return f"stage {stage} without {', '.join(missing)}: late, or not to be used" if missing else ""

    def settled(
        self, stage: int, total: StageSum, tensors: tuple[Any, ...], *, anchor: int = 0, reason: str = ""
    ) -> Sequence[Effect]:
        """What a round makes of a stage is there. Too late, if a step is being closed by now.

        The first result of a slot stands: a round that was closed again meanwhile meets nobody any more.
        """
        if self._close is None or self._close.act != "round":
            return []
        before = self._settled.get(stage)
        if before is not None and before.slot == self._close.slot and before.total.digest:
            return []
        self._settled[stage] = Settled(self._close.slot, total, tensors, anchor, reason)
        return self._tell(stage, total, tensors, anchor=anchor, reason=reason)

    def settled_before(self, stage: int) -> Sequence[Effect]:
        """What an earlier attempt at this slot's round made of a stage, told again; nothing if nothing.

        A member died meanwhile, and the leader closed the round once more. The other cells have
        had their round: nobody would come to another meeting.
        """
        done = self._settled.get(stage)
        return (
            self._tell(stage, done.total, done.tensors, anchor=done.anchor, reason=done.reason)
            if done
            else []
        )

    def _tell(
        self,
        stage: int,
        total: StageSum,
        tensors: tuple[Any, ...],
        *,
        squares: float = 0.0,
        anchor: int = 0,
        reason: str = "",
    ) -> Sequence[Effect]:
        """A stage's result for this slot: to the other holders, to ourselves, to the leader."""
        close, row = self._close, self._rows.get(stage)
        if close is None or row is None:
            return []
        effects: list[Effect] = []
        if total.digest:
            averaged = Averaged(**_about(close, stage), total=total, anchor=anchor)
            effects += [ShipFlat(n, averaged, tensors) for n in row.holders if n != self.me]
            attempt = (close.term, close.round_attempt)
            effects.append(Hold(close.slot, stage, total, tensors, anchor, self.me, attempt))
        summed = Summed(**_about(close, stage), total=total, squares=squares, reason=reason[:200])
        return [*effects, Send(self._leader, Message(summed))]


def _closing(body: Close | Gradient) -> tuple[int, int, int]:
    return (body.slot, body.term, body.round_attempt)


def _about(close: Close, stage: int) -> dict[str, Any]:
    return {
        "cell": close.cell,
        "slot": close.slot,
        "term": close.term,
        "stage": stage,
        "round_attempt": close.round_attempt,
    }
