"""A node's part in training its cell: routes messages to the machines, runs what they ask.

One iteration, top to bottom: `deliver` a Plan -> the follower begins the slot -> `_begin` starts
this data node's microbatches -> Forward and Backward go through `flow.py` -> `_close`, holders
average -> Commit, and `_apply` steps the stages. No socket, no clock: `deliver`, `observe`,
`tick` and the tasks take `now`; what leaves goes through `send`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from swarm.events import Noted
from swarm.gossip.view import View
from swarm.job import Job
from swarm.meetings import EndsCopy, OuterAnchor, OuterDelta, OuterMean
from swarm.messages import (
    Absent,
    Averaged,
    Backward,
    CellBody,
    CellRecord,
    Close,
    Commit,
    Forward,
    Gradient,
    Lost,
    Plan,
    Propose,
    Query,
    Restore,
)
from swarm.pipeline.applying import Applying, Missing
from swarm.pipeline.averaging import Averaging, Hold, Reduce
from swarm.pipeline.checks import wrong_with_tensors
from swarm.pipeline.computing import Computing
from swarm.pipeline.flow import Flow
from swarm.pipeline.follower import Apply, BeginSlot, CloseSlot, Follower, Ignored
from swarm.pipeline.leader import Leader
from swarm.pipeline.office import Learn
from swarm.pipeline.outer_round import OuterRound
from swarm.pipeline.records import CheckRecord, Sign, stages_of
from swarm.pipeline.stage import Stage
from swarm.pipeline.work import Applied, Average, Dropped, FlowEffect, Ordered, Settle, ShipAnchor
from swarm.planning.placement import Place
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed


class Trainer:
    """Everything a node does as a member of one cell."""

    def __init__(
        self,
        *,
        me: NodeId,
        job: Job,
        computing: Computing,
        decided: Signed,
        sign: Sign,
        check: CheckRecord,
        place: Place,
        send: Callable[[NodeId, Message], bool],
        perform: Callable[[Effect], None],
        newcomer: bool = False,
    ) -> None:
        """send: the link's. perform: takes every effect that is not the trainer's own.

        newcomer: this node was placed by a leader, not by the cell's founding.
        """
        self.me, self.job = me, job
        self.computing = computing
        self.tasks = computing.tasks
        self._send, self._perform = send, perform
        self.follower = Follower(me, decided, check, newcomer=newcomer)
        self.leader = Leader(me, job, decided, sign=sign, check=check, place=place)
        self.reached = self.follower.record
        self.flow = Flow(me, job, computing, send)
        self.averaging = Averaging(me)
        self.outer = OuterRound(me, computing.stages)
        self.dropped: dict[str, int] = {}
        self.applying = Applying(me)
        self._view = View()
        self._stepping = False
        self._begin_next: BeginSlot | None = None
        self._close_next: CloseSlot | None = None

    @property
    def record(self) -> CellRecord:
        """The last decided record this node knows; what its stages are at is `reached`."""
        return self.follower.record

    @property
    def cell(self) -> str:
        """Name of the cell."""
        return self.follower.cell

    @property
    def applied(self) -> bool:
        """Whether the stages are at `record`; a donor serves only then."""
        return self.applying.idle and not self._stepping

    # -- what the node tells it -------------------------------------------------------------

    def deliver(self, peer: NodeId, message: Message, now: float) -> None:
        """A message of the work link that is about training."""
        wrong = wrong_with_tensors(
            message.body, self.job, self.computing.config.width, self.computing.stage_sizes
        )
        if wrong:
            self._drop(f"{message.body.kind}: {wrong}")
            return
        self.act(self._route(peer, message, now), now)

    def _route(self, peer: NodeId, message: Message, now: float) -> Sequence[Effect]:
        match message.body:
            case Forward() | Backward() as body:
                return self.flow.arrived(peer, body, message, self.record)
            case Lost() as body:
                return self.flow.lost(peer, body, now)
            case Gradient() as body:
                return self.averaging.handle(peer, body, message, self.record, self.flow.hops.roster)
            case Averaged() as body:
                return self.applying.averaged(peer, body, message, self.record)
            case OuterDelta() as body:
                return self.outer.delta(peer, body, message)
            case OuterMean() as body:
                return self.outer.mean(peer, body, message)
            case OuterAnchor() as body:
                return self.outer.anchor(peer, body, message)
            case EndsCopy():
                self.computing.keep_ends_copy(peer, message, self.record)
                return []
            case Plan() | Close() | Propose() | Commit() | Query() as body:
                effects = self.follower.handle(peer, message)
                leads = not isinstance(body, Query) and self.follower.follows(peer, body.term)
                if leads and body.cell == self.cell:
                    self.leader.heard(peer, body.term, now)
                return effects
            case CellBody():
                return self.leader.handle(peer, message, now)
        self._drop(f"unexpected {message.body.kind}")
        return []

    def observe(self, view: View, now: float) -> None:
        """The view of the swarm changed."""
        self._view = view
        known = {NodeId(n) for row in self.record.roster for n in row}
        avoid = frozenset(n for n in known if view.status(n) not in ("alive", None))
        self.act(self.flow.observe(view, avoid, now), now)
        self.act(self.averaging.observe(avoid), now)
        self.act(self.outer.observe(view, now), now)
        self.act(self.leader.observe(view, now), now)

    def tick(self, now: float) -> None:
        """Everything that is due."""
        for machine in (self.flow.feeding, self.averaging, self.outer, self.leader):
            self.act(machine.tick(now), now)
        missing = self.applying.overdue(self.computing.stages, self._view, now)
        if missing is not None:
            self.act(self._go_on_without(missing, now), now)

    def deadline(self) -> float | None:
        """When `tick` has something to do."""
        machines = (self.flow.feeding, self.averaging, self.outer, self.leader)
        due = [self.applying.until, *(machine.deadline() for machine in machines)]
        return min((d for d in due if d is not None), default=None)

    # -- effects ----------------------------------------------------------------------------

    def act(self, effects: Sequence[Effect], now: float) -> None:
        """Carry out effects, and those that follow from them, in order."""
        queue = deque([*effects, *self.computing.blame()])
        while queue:
            queue.extend(self._carry_out(queue.popleft(), now))

    def _carry_out(self, effect: Effect, now: float) -> Sequence[Effect]:
        match effect:
            case Send(peer, message) if peer == self.me:
                if isinstance(message.body, Restore):
                    self._perform(Ordered(message.body))
                    return []
                return self._route(self.me, message, now)
            case Send(peer, message):
                if not self._send(peer, message):
                    self._drop(f"{message.body.kind}: the queue to its receiver is full or gone")
                return []
            case FlowEffect():
                return self.flow.carry_out(effect, now)
            case BeginSlot():
                self._begin_next, self._close_next = effect, None
                return self._begin(now)
            case CloseSlot():
                self._begin_next, self._close_next = None, effect
                return self._close(now)
            case Hold():
                self.applying.hold(effect)
                return self._apply(now)
            case Apply():
                return self._decided(effect, now)
            case Learn(peer, commit):
                return self.follower.handle(peer, Message(commit))
            case Reduce():
                self.computing.reduce(effect, self.averaging.reduced)
                return []
            case Average():
                self.computing.average(effect, self.outer.averaged)
                return []
            case Settle():
                self.computing.settle(effect, self.cell, self.averaging.settled)
                return []
            case ShipAnchor():
                return self.computing.ship_anchor(effect, self.cell)
            case Ignored(_, kind, reason):
                self._drop(f"{kind}: {reason}")
                return []
        self._perform(effect)
        return []

    def _drop(self, what: str) -> None:
        self.dropped[what] = self.dropped.get(what, 0) + 1

    # -- slots ------------------------------------------------------------------------------

    def _begin(self, now: float) -> Sequence[Effect]:
        """Start the planned slot, once every decided record is applied."""
        begin = self._begin_next
        if begin is None or not self.applied:
            return []
        self._begin_next = None
        self.applying.begin(begin.plan.slot)
        without = self._without_stages(begin.plan, begin.leader)
        return [*without, *self.flow.begin(begin.plan, begin.leader, now)]

    def _without_stages(self, body: Plan | Close, leader: NodeId) -> Sequence[Effect]:
        """A roster may name this node for a stage that it does not hold: say so at once."""
        missing = [s for s in stages_of(body.roster, self.me) if s not in self.computing.stages]
        return [self._absent(leader, missing, "does not hold what the roster says")] if missing else []

    def _absent(self, leader: NodeId, stages: Sequence[int], reason: str) -> Effect:
        about: dict[str, Any] = {"cell": self.cell, "slot": self.record.slot, "term": self.follower.term}
        return Send(leader, Message(Absent(**about, reason=reason[:200], stages=tuple(stages))))

    def give_up(self, stages: Sequence[int], reason: str) -> Sequence[Effect]:
        """Hold these stages no longer: their state is not the others', who can give it again."""
        if not stages:
            return []
        self.note("resynced", stages=list(stages), reason=reason)
        for stage in stages:
            self.computing.drop_stage(stage)
            self.averaging.forget(stage)
        leader = self.follower.leader or NodeId(self.record.leader)
        return [self._absent(leader, stages, reason)]

    def _close(self, now: float) -> Sequence[Effect]:
        """Stop microbatch work and average what there is; or meet the other cells.

        Not before every decided record is applied: weights that lack the last step would give an
        outer gradient without it, and the gradients of a slot that never began here are the last one's.
        """
        effect = self._close_next
        if effect is None or not self.applied:
            return []
        self._close_next, close = None, effect.close
        if close.slot <= self.record.slot:
            return []
        self.flow.close()
        self.applying.closed(close)
        if close.act == "step" and not self.flow.has_begun(close.slot, close.term):
            self.computing.clear()
        mine = [s for s in stages_of(close.roster, self.me) if s in self.computing.stages]
        own = self.computing.gradients(mine, close.roster, self.me) if close.act == "step" else {}
        effects = [*self._without_stages(close, effect.leader)]
        most = self.flow.tokens_max(close.roster, self.record.roster)
        effects += self.averaging.close(close, effect.leader, own, now, tokens_max=most)
        for stage in mine if close.act == "round" else ():
            if close.roster[stage][0] == self.me:
                effects += self.averaging.settled_before(stage) or self._meet(stage, now)
        return effects

    def _meet(self, stage: int, now: float) -> Sequence[Effect]:
        held = self.computing.stages[stage]
        anchor_digest, delta = self.computing.outer_gradient(stage)
        return self.outer.start(
            stage,
            cell=self.cell,
            iteration=self.record.iteration,
            anchor=held.anchor_count,
            digest=anchor_digest,
            delta=delta,
            every=self.job.outer.every,
            step_s=self.computing.step_s(),
            now=now,
        )

    def _decided(self, apply: Apply, now: float) -> Sequence[Effect]:
        held = sorted(set(stages_of(apply.record.roster, self.me)) & set(self.computing.stages))
        effects = self.give_up(held if apply.skipped else (), "too many records were missed")
        self.applying.decided(apply, now)
        return [*effects, *self._apply(now)]

    def _apply(self, now: float) -> Sequence[Effect]:
        """Apply the oldest decided record once everything it averaged is here."""
        if self._stepping or self.applying.idle:
            return []
        chosen = self.applying.choose(self.computing.stages, now)
        if chosen is None:
            return []
        self._stepping = True
        self.computing.apply(self.applying.first.record, chosen, self._stepped)
        return []

    def _go_on_without(self, missing: Missing, now: float) -> Sequence[Effect]:
        """An averaged gradient never came."""
        slot = missing.record.slot
        for stage in missing.behind:
            self.note("dropped", what=f"step of stage {stage}, slot {slot}", why="no holder has it")
        reason = f"what slot {slot} averaged never came, and others have it"
        return [*self.give_up(missing.given_up, reason), *self._apply(now)]

    def _stepped(self, record: CellRecord, bad: Sequence[Hold], now: float) -> Sequence[Effect]:
        """The stages are at this record, or some of what it needs was not what it said it was."""
        self._stepping = False
        if bad:
            self.applying.discard(bad)
            self._drop("averaged: tensors without the digest they came with")
            return self._apply(now)
        applied = self.applying.finished(now)
        self.reached = record
        unnamed = self.applying.unnamed(record, self.computing.stages)
        for stage in unnamed:
            self.computing.drop_stage(stage)
        effects: list[Effect] = [*map(Dropped, unnamed), Applied(record, applied.signed)]
        ends = record.roster[0]
        if self.job.recovery.plus_copies and record.act == "step" and ends and ends[0] == self.me:
            effects += self.computing.ends_copies(record)
        effects += self.leader.advance(applied.signed, record, now)
        return [*effects, *self._apply(now), *self._close(now), *self._begin(now)]

    def adopt(self, stage: Stage) -> None:
        """A stage was restored here; one of the next rosters will name this node."""
        self.computing.stages[stage.index] = stage
        self.applying.adopt(stage.index, self.record.slot)

    def note(self, kind: Any, **fields: Any) -> None:
        """Record a fact of this node."""
        self._perform(Noted(kind, fields))
