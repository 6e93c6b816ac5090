"""What a node does between cells: wait for the genesis, take a place, found a cell, resync."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from swarm.daemon.bridge import NoticeLearned
from swarm.daemon.donating import disk_states, local_state
from swarm.daemon.genesis import TOPIC, founding_of, read_genesis, solo_founding
from swarm.daemon.likeness import Likeness
from swarm.daemon.restore import Restored, ready
from swarm.gossip.view import Member
from swarm.messages import CellRecord, Ready, Restore, Stale
from swarm.pipeline.records import read_record, stages_of
from swarm.pipeline.stage import Stage
from swarm.pipeline.trainer import Trainer
from swarm.planning.cells import cell_to_copy, choose_cell, usual, went_on_as
from transport.files import write_private
from transport.machine import NodeId, Send
from transport.wire import Message, Signed, WireError

if TYPE_CHECKING:
    from swarm.daemon.training_half import TrainingHalf

MARK = "entered"
"""A file in the data directory with the version of the last genesis that this node took part in,
or knew when it entered a cell: that one, and older ones, are not for it. A resume brings a newer."""
RETRY_S = 3.0
BEHIND_ITERATIONS = 3
"""How far ahead a node must see its cell before it asks what it missed."""
ASK_EVERY_S = 1.0
LEFT_BEHIND_S = 5.0
"""How long members must have gone on under another name: a record that names this node may be on its way."""
UNPLACED_ITERATIONS = 3
"""Iterations of a cell after which a taker that no roster names is nobody's any more."""


class Standing:
    """Where a node stands: in a cell, on the way into one, or standby."""

    def __init__(self, half: TrainingHalf) -> None:
        self._half = half
        self._mark = half.setup.data_dir / MARK
        self._genesis: NoticeLearned | None = None
        self._collecting: dict[int, Stage] | None = None
        self._founding: Signed | None = None
        self.likeness = Likeness(half.setup.me)
        self._unplaced_at: int | None = None
        self._later: dict[int, tuple[NodeId, Restore]] = {}
        self._retry_at = self._ask_at = 0.0
        self._left_behind_at: float | None = None
        self._asked = 0
        self._why = "the job has not begun: the coordinator waits for more nodes"

    @property
    def founding(self) -> bool:
        """Whether this node is fetching what its founding record gives it."""
        return self._founding is not None

    @property
    def told(self) -> bool:
        """Whether this node has heard how the job began: before, it cannot say that it is in no cell."""
        return self._genesis is not None

    def waiting_for(self) -> str:
        """One sentence for the status of a node that does not train, else empty."""
        return "" if self._half.trainer else self._why

    # -- founding ---------------------------------------------------------------------------

    def learn(self, notice: NoticeLearned, now: float) -> None:
        """A notice arrived by gossip."""
        if notice.topic != TOPIC:
            return
        try:
            genesis = read_genesis(notice.notice)
        except WireError as error:
            self._half.note("dropped", what="genesis", why=str(error))
            return
        wrong = self._half.setup.wrong_with_corpus(genesis.corpus)
        if wrong:
            self._half.fail(wrong)
        self._genesis = notice
        self.look(now)

    def look(self, now: float) -> None:
        """Take part in the genesis if it is for us; else see whether a cell is to be founded."""
        half = self._half
        later, self._later = self._later, {}
        for leader, order in later.values():
            self.ordered(leader, order, now)
        if (trainer := half.trainer) is None:
            self._unplaced_at = self._left_behind_at = None
        else:
            self._ask_if_behind(trainer, now)
            self._leave_if_unplaced(trainer)
            self._leave_if_left_behind(trainer, now)
        if half.trainer is not None or self._founding is not None or half.restoring.busy:
            return
        if now < self._retry_at:
            return
        if self._genesis is not None and self._genesis.version > self._entered():
            self._enter_genesis(self._genesis, now)
        if half.trainer is None and self._founding is None and self._genesis is not None:
            self._maybe_found(now)

    def _entered(self) -> int:
        """The version of the last genesis that was for this node, -1 if none was."""
        try:
            return int(self._mark.read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return -1

    def _remember_entering(self) -> bool:
        """Whether it is on this disk that a cell was entered: after a restart it is not entered anew."""
        known = self._genesis.version if self._genesis is not None else 0
        try:
            write_private(self._mark, str(max(known, self._entered())).encode("ascii"))
        except OSError as error:
            self._half.note("dropped", what="entering", why=f"it cannot be written down: {error.strerror}")
            return False
        return True

    def _enter_genesis(self, notice: NoticeLearned, now: float) -> None:
        half = self._half
        genesis = read_genesis(notice.notice)
        try:
            founding = founding_of(genesis, half.setup.me)
        except WireError as error:
            half.note("dropped", what="genesis", why=str(error))
            self._genesis = None
            return
        if founding is None or not self._remember_entering():
            return
        record = read_record(founding)
        mine = stages_of(record.roster, half.setup.me)
        if genesis.resumed:
            self._founding = founding
            directory, job = half.setup.data_dir / "checkpoints", half.setup.job.digest
            local = disk_states(directory, mine, genesis.resumed, genesis.resumed_cell, job)
            donor = NodeId(notice.notice.signer)
            self._collect(founding, record, mine, "checkpoint", lambda _: (donor,), now, local)
            return
        self._enter(founding, half.setup.build_stages(mine), "the job begins", now)

    def _enter(self, founding: Signed, stages: dict[int, Stage], reason: str, now: float) -> None:
        self._founding, self._collecting = None, None
        record = read_record(founding)
        self._half.note("placed", cell=record.cell, stages=sorted(stages), reason=reason)
        self._half.enter(founding, stages, now)

    def _collect(
        self,
        founding: Signed,
        record: CellRecord,
        stages: tuple[int, ...],
        how: Literal["checkpoint", "other_cell"],
        donors: Callable[[int], tuple[NodeId, ...]],
        now: float,
        local: Mapping[str, dict[str, Tensor]],
    ) -> None:
        """Get the states of a founding that does not begin at the seed: `local` ones, or fetched."""
        self._founding, self._collecting = founding, {}
        self._why = f"fetching {len(stages)} stages to enter cell {record.cell}"
        half = self._half
        for stage in stages:
            order = Restore(
                cell=record.cell,
                slot=record.slot,
                term=0,
                stage=stage,
                how=how,
                donors=donors(stage),
                same_state=how == "checkpoint",
                decided=founding,
                reason=f"to enter cell {record.cell}",
            )
            half.perform_all(half.restoring.begin(half.setup.me, order, half.view, local.get, now))

    def not_founded(self, answer: Ready, now: float) -> None:
        """A state of the founding could not be had: try again from the beginning, a little later."""
        self._half.note("dropped", what=f"founding of cell {answer.cell}", why=answer.reason)
        self._founding, self._collecting = None, None
        self._mark.unlink(missing_ok=True)
        self._retry_at = now + RETRY_S

    def _maybe_found(self, now: float) -> None:
        """With fewer cells than the job wants, the lowest standby founds one; others wait."""
        half = self._half
        choice = choose_cell(half.view, half.setup.job, half.setup.me)
        self._why = choice.reason
        cells = half.view.cells()
        if not cells:
            self._why = "nobody trains this job now: `farflung coordinator run DIR --resume` would go on"
        if choice.act != "found" or not cells:
            return
        members = cell_to_copy(half.view, half.setup.job)
        held = {stage for m in members for stage in m.facts.stages}
        if held != set(range(half.setup.job.pipeline.stages)):
            return
        founding = solo_founding(
            half.setup.job,
            half.setup.me,
            half.setup.sign,
            iteration=usual(m.facts.iteration for m in members),
            rounds=usual(m.facts.round for m in members),
            cells=cells,
            wall_s=half.setup.wall(),
        )
        record = read_record(founding)
        first = {m.node for m in members}
        ordered = sorted(half.view.live(), key=lambda m: m.node not in first)
        self._collect(
            founding,
            record,
            tuple(sorted(held)),
            "other_cell",
            lambda stage: tuple(m.node for m in ordered if stage in m.facts.stages),
            now,
            {},
        )

    # -- orders, and states that arrived ----------------------------------------------------

    def ordered(self, leader: NodeId, order: Restore, now: float) -> None:
        """A leader wants a stage held here; this node's own trainer may be that leader."""
        half, me = self._half, self._half.setup.me
        wrong = half.setup.wrong_with_order(half.view, leader, order) if leader != me else ""
        if wrong:
            half.note("dropped", what="order to hold a stage", peer=leader[:12], why=wrong)
        elif half.trainer is not None and half.trainer.cell != order.cell:
            wrong = f"this node is in cell {half.trainer.cell}"
        elif order.rehearsal and half.restoring.busy:
            wrong = "this node fetches another state already"
        if wrong:
            half.perform(Send(leader, Message(ready(order, ok=False, reason=wrong))))
            return
        if half.trainer is not None and not half.trainer.applied:
            self._later[order.stage] = (leader, order)  # what it may need of ours is half a step old
            return
        if half.trainer is None and not order.rehearsal:
            half.say(half.facts.model_copy(update={"state": "restoring"}))
        at_hand = partial(local_state, half.trainer)
        half.perform_all(half.restoring.begin(leader, order, half.view, at_hand, now))

    def restored(self, effect: Restored, now: float) -> None:
        """A stage is here: part of a founding, or by order of a leader."""
        half, order = self._half, effect.order
        if self._collecting is not None and self._founding is not None and effect.leader == half.setup.me:
            self._collecting[order.stage] = effect.stage
            record = read_record(self._founding)
            if set(self._collecting) == set(stages_of(record.roster, half.setup.me)):
                self._enter(self._founding, self._collecting, order.reason, now)
            return
        if half.trainer is None:
            # A newcomer is named in no genesis: what is not written down cannot be entered twice.
            self._remember_entering()
            self._unplaced_at = None
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
            if member.facts.stages and (member.facts.iteration >= ahead or _has_ended(member, record))
        ]
        if not others or now < self._ask_at:
            return
        self._ask_at = now + ASK_EVERY_S
        stale = Stale(cell=trainer.cell, slot=record.slot, term=0, decided=trainer.follower.signed)
        self._asked += 1  # one after another: who says that it is furthest may know nothing
        trainer.act([Send(others[self._asked % len(others)].node, Message(stale))], now)

    def _leave_if_unplaced(self, trainer: Trainer) -> None:
        """Whoever ordered a stage here may have ceased to lead, and others know nothing of it.

        The cell's iterations are the clock: it has gone on, and no row names this node.
        """
        half = self._half
        if stages_of(trainer.record.roster, half.setup.me):
            self._unplaced_at = None
            return
        named = {n for row in trainer.record.roster for n in row}
        others = [m.facts.iteration for m in half.view.cell(trainer.cell) if m.node in named]
        newest = usual(others) if others else None
        if self._unplaced_at is None:
            # Facts come after the records: where iterations are quick they are some of them behind.
            self._unplaced_at = None if newest is None else max(newest, trainer.record.iteration)
        elif newest is None or newest >= self._unplaced_at + UNPLACED_ITERATIONS:
            self.give_up_cell(f"cell {trainer.cell} went on without naming this node")

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


def _has_ended(member: Member, record: CellRecord) -> bool:
    """Whether a member has finished the cell beyond this record: it will never be further ahead."""
    return member.facts.state == "finished" and member.facts.iteration > record.iteration
