"""Where a node stands in its cell: takes what it is ordered to hold, catches up, resyncs, gives up."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from swarm.daemon.donating import local_state
from swarm.daemon.founders import fit_to_found
from swarm.daemon.likeness import Likeness
from swarm.daemon.restore import Restored, ready
from swarm.gossip.view import Member
from swarm.messages import CellRecord, Restore, Stale
from swarm.pipeline.checks import wrong_with_place
from swarm.pipeline.records import is_finished, stages_of
from swarm.pipeline.trainer import Trainer
from swarm.planning.cells import usual, went_on_as
from transport.machine import NodeId, Send
from transport.wire import Message

if TYPE_CHECKING:
    from swarm.daemon.training_half import TrainingHalf

BEHIND_ITERATIONS = 3
"""How far ahead a node must see its cell before it asks what it missed."""
ASK_EVERY_S = 1.0
LEFT_BEHIND_S = 5.0
"""How long members must have gone on under another name: a record that names this node may be on its way."""
REASON_CHARS = 200
"""Of what a node waits for: as many as the other half takes."""
UNPLACED_ITERATIONS = 3
"""Iterations of a cell after which a taker that no roster names is nobody's any more."""


class Standing:
    """Where a node stands: in a cell, on the way into one, or standby."""

    def __init__(self, half: TrainingHalf) -> None:
        self._half = half
        self.likeness = Likeness(half.setup.me)
        self._unplaced_at: int | None = None
        self._later: dict[int, tuple[NodeId, Restore]] = {}
        self._ask_at = 0.0
        self._left_behind_at: float | None = None
        self._alone_at: float | None = None
        self._asked = 0

    def waiting_for(self) -> str:
        """One sentence for the status of a node that does not train, else empty."""
        half = self._half
        if half.trainer is not None:
            return ""
        short = ""
        if half.setup.memory_bytes and not half.founding.told:
            _, short = fit_to_found(half.view, half.setup.job, half.setup.stage_sizes())
        return f"{half.founding.why}; {short}"[:REASON_CHARS] if short else half.founding.why

    def look(self, now: float) -> None:
        """What may have come due: a kept order, a cell that went on without this node, a founding."""
        half = self._half
        later, self._later = self._later, {}
        for leader, order in later.values():
            self.ordered(leader, order, now)
        if (trainer := half.trainer) is None:
            self._unplaced_at = self._alone_at = self._left_behind_at = None
            if half.facts.state == "restoring" and not half.restoring.busy:
                half.leave_cell()  # the order came to nothing: a standby again
        else:
            self._ask_if_behind(trainer, now)
            self._leave_if_unplaced(trainer, now)
            self._leave_if_left_behind(trainer, now)
        half.founding.look(now)

    # -- orders, and states that arrived ----------------------------------------------------

    def ordered(self, leader: NodeId, order: Restore, now: float) -> None:
        """A leader wants a stage held here; this node's own trainer may be that leader."""
        half, me = self._half, self._half.setup.me
        wrong = half.setup.wrong_with_order(half.view, leader, order) if leader != me else ""
        if wrong:
            half.note("dropped", what="order to hold a stage", peer=leader[:12], why=wrong)
        elif half.trainer is not None:
            wrong = wrong_with_place(order, half.trainer.record, me, half.trainer.computing.stages)
        if not wrong and order.rehearsal and half.restoring.busy:
            wrong = "this node fetches another state already"
        if wrong:
            half.perform(Send(leader, Message(ready(order, ok=False, reason=wrong))))
            return
        if half.trainer is not None and not half.trainer.applied:
            self._later[order.stage] = (leader, order)  # what it may need of ours is half a step old
            return
        if half.trainer is None and not order.rehearsal:
            half.founding.set_aside()
            half.say(half.facts.model_copy(update={"state": "restoring"}))
        at_hand = partial(local_state, half.trainer)
        half.perform_all(half.restoring.begin(leader, order, half.view, at_hand, now))

    def restored(self, effect: Restored, now: float) -> None:
        """A stage is here: part of a founding, or by order of a leader."""
        half, order = self._half, effect.order
        if half.founding.collected(effect, now):
            return
        if half.trainer is None:
            # A newcomer is named in no genesis: what is not written down cannot be entered twice.
            half.founding.remember_entering()
            self._unplaced_at = self._alone_at = None
            self.likeness.forget()
            trainer = half.enter(order.decided, {}, now, newcomer=True)
            trainer.follower.adopt_term(order.term)
        assert half.trainer is not None
        half.trainer.adopt(effect.stage)
        half.note("placed", cell=order.cell, stages=[order.stage], how=order.how, reason=order.reason)
        half.perform(Send(effect.leader, Message(ready(order, ok=True))))

    def _ask_if_behind(self, trainer: Trainer, now: float) -> None:
        """Whoever was dropped from the roster while it was cut off is told nothing: it asks.

        Term 0, because this is no claim that anybody else's leadership has ended.
        """
        half, record = self._half, trainer.record
        ahead = record.iteration + BEHIND_ITERATIONS
        others = [
            member
            for member in half.view.cell(trainer.cell)
            if member.facts.stages and (member.facts.iteration >= ahead or self._has_ended(member, record))
        ]
        if not others or now < self._ask_at:
            return
        self._ask_at = now + ASK_EVERY_S
        stale = Stale(cell=trainer.cell, slot=record.slot, term=0, decided=trainer.follower.signed)
        self._asked += 1  # one after another: who says that it is furthest may know nothing
        trainer.act([Send(others[self._asked % len(others)].node, Message(stale))], now)

    def _has_ended(self, member: Member, record: CellRecord) -> bool:
        """Whether a member has finished the cell beyond this record, if only by the last round.

        It will never be further ahead.
        """
        return member.facts.state == "finished" and not is_finished(record, self._half.setup.job)

    def _leave_if_unplaced(self, trainer: Trainer, now: float) -> None:
        """Whoever ordered a stage here may have ceased to lead, and others know nothing of it.

        The cell's iterations are the clock: it has gone on, and no row names this node. Where nobody
        says that it is in the cell, all may have died before this node came.
        """
        half = self._half
        if stages_of(trainer.record.roster, half.setup.me):
            self._unplaced_at = self._alone_at = None
            return
        named = {n for row in trainer.record.roster for n in row}
        others = [m.facts.iteration for m in half.view.cell(trainer.cell) if m.node in named]
        newest = usual(others) if others else None
        if self._unplaced_at is not None:
            if newest is None or newest >= self._unplaced_at + UNPLACED_ITERATIONS:
                self.give_up_cell(f"cell {trainer.cell} went on without naming this node")
        elif newest is not None:
            # Facts come after the records: where iterations are quick they are some of them behind.
            self._unplaced_at = max(newest, trainer.record.iteration)
        else:
            self._alone_at = now if self._alone_at is None else self._alone_at
            if now >= self._alone_at + LEFT_BEHIND_S:
                self.give_up_cell(f"nobody is in cell {trainer.cell} any more")

    def _leave_if_left_behind(self, trainer: Trainer, now: float) -> None:
        """Whoever slept while the others founded a cell without it waits for them in vain."""
        name = went_on_as(self._half.view, trainer.record, self._half.setup.me)
        if not name or self._left_behind_at is None:
            self._left_behind_at = now if name else None
        elif now >= self._left_behind_at + LEFT_BEHIND_S:
            self.give_up_cell(f"cell {trainer.cell} went on as {name} without this node")

    def give_up_cell(self, reason: str) -> None:
        """Hold nothing any more; as a standby this node may be of use."""
        self._unplaced_at = None
        self._half.note("placed", stages=[], holds=False, reason=reason)
        self._half.leave_cell()

    # -- staying identical ------------------------------------------------------------------

    def compare_hashes(self, member: Member, now: float) -> None:
        """A holder that differs from the others of its platform takes the state again."""
        trainer = self._half.trainer
        if trainer is None or member.facts.cell != trainer.cell or not member.live:
            return
        for stage, reason in self.likeness.differs(member.node, member.facts, self._alike(trainer)):
            trainer.act(trainer.give_up([stage], reason), now)

    def _alike(self, trainer: Trainer) -> dict[int, list[NodeId]]:
        """Other holders of this node's stages, by the roster, whose bits must be the same."""
        half, roster = self._half, trainer.record.roster
        fit = {m.node for m in half.view.live() if m.facts.platform == half.setup.platform}
        fit.discard(half.setup.me)
        stages = (stage for stage in trainer.computing.stages if half.setup.me in roster[stage])
        return {stage: [NodeId(n) for n in roster[stage] if n in fit] for stage in stages}

    def applied(self, record: CellRecord) -> None:
        """A member that holds nothing and is in no row any more is a standby."""
        half = self._half
        holds = half.trainer is not None and half.trainer.computing.stages
        if not holds and not stages_of(record.roster, half.setup.me):
            half.leave_cell()
