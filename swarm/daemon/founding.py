"""How a node founds a cell or takes part in a founding: with fresh stages, or with fetched ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from swarm.daemon.bridge import NoticeLearned
from swarm.daemon.donating import disk_states
from swarm.daemon.genesis import TOPIC, founded_as, founding_of, read_genesis, solo_founding
from swarm.daemon.restore import Restored
from swarm.messages import CellBody, CellRecord, Ready, Restore
from swarm.pipeline.records import read_record, stages_of
from swarm.pipeline.stage import Stage
from swarm.planning.cells import cell_to_copy, choose_cell, usual
from transport.files import write_private
from transport.machine import NodeId
from transport.wire import Body, Message, Signed, WireError

if TYPE_CHECKING:
    from swarm.daemon.training_half import TrainingHalf

MARK = "entered"
"""A file in the data directory with the version of the last genesis that this node took part in,
or knew when it entered a cell: that one, and older ones, are not for it. A resume brings a newer."""
RETRY_S = 3.0
EARLY_MAX = 32
"""Messages of cells that are kept until this node is in one, the newest: in a founding who hears of it
first begins at once, and what it plans through others is on its way before they have heard."""


class Founding:
    """The genesis that a node knows, and the founding record whose stages it collects."""

    def __init__(self, half: TrainingHalf) -> None:
        self._half = half
        self._mark = half.setup.data_dir / MARK
        self._genesis: NoticeLearned | None = None
        self._founding: Signed | None = None
        self._collected: tuple[Signed | None, dict[int, Stage]] = (None, {})
        self._early: deque[tuple[NodeId, Message]] = deque(maxlen=EARLY_MAX)
        self._retry_at = 0.0
        self.why = "the job has not begun: the coordinator waits for more nodes"
        """Why this node founds nothing now, or what it fetches."""

    @property
    def busy(self) -> bool:
        """Whether this node is fetching what its founding record gives it."""
        return self._founding is not None

    @property
    def told(self) -> bool:
        """Whether this node has heard how the job began: before, it cannot say that it is in no cell."""
        return self._genesis is not None

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
        self._half.standing.look(now)

    def look(self, now: float) -> None:
        """Take part in the genesis if it is for us; else see whether a cell is to be founded."""
        half = self._half
        if half.trainer is not None or self.busy or half.restoring.busy or now < self._retry_at:
            return
        if self._genesis is not None and self._genesis.version > self._entered():
            self._enter_genesis(self._genesis, now)
        if half.trainer is None and not self.busy and self._genesis is not None:
            self._maybe_found(now)
        if not self.busy:  # the rest was for no founding of ours
            kept = [(peer, message) for peer, message in self._early if self.may_enter(message.body)]
            self._early = deque(kept, maxlen=EARLY_MAX)

    def may_enter(self, body: Body) -> bool:
        """Whether what another node says is of a cell that this one may be in a moment later.

        It fetches what it needs for it, or that cell's founding has not come here yet.
        """
        if self.busy or self._genesis is None:
            return True
        return isinstance(body, CellBody) and founded_as(body.cell) > self._genesis.version

    def keep(self, peer: NodeId, message: Message) -> None:
        """Keep what another node says of a cell that this one may be about to enter."""
        self._early.append((peer, message))

    def _deliver_early(self, now: float) -> None:
        """What came before the founding did, in order: a plan that was not kept would be waited for."""
        half, trainer = self._half, self._half.trainer
        early, self._early = tuple(self._early), deque(maxlen=EARLY_MAX)
        for peer, message in early:
            if trainer is not None and half.trainer is trainer:
                with half.guard.against(peer, message.body.kind):
                    trainer.deliver(peer, message, now)

    def _entered(self) -> int:
        """The version of the last genesis that was for this node, -1 if none was."""
        try:
            return int(self._mark.read_text(encoding="ascii") or 0)
        except (OSError, ValueError):
            return -1

    def remember_entering(self) -> bool:
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
        if founding is None:
            return
        record = read_record(founding)
        mine = stages_of(record.roster, half.setup.me)
        if genesis.resumed:
            directory, job = half.setup.data_dir / "checkpoints", half.setup.job.digest
            lacking = tuple(stage for stage in mine if stage not in self._brought(founding))
            local = disk_states(
                directory, lacking, (record.iteration, record.round), genesis.resumed_cell, job
            )
            donor = NodeId(notice.notice.signer)
            half.say(half.facts.model_copy(update={"state": "restoring"}))  # while it is, nobody founds again
            self._collect(founding, record, mine, "checkpoint", lambda _: (donor,), now, local)
            return
        self._enter(founding, half.setup.build_stages(mine), "the job begins", now)

    def _enter(self, founding: Signed, stages: dict[int, Stage], reason: str, now: float) -> None:
        """Become a member, once it is on disk: a life that came less far begins anew after a restart."""
        self._founding = None
        record = read_record(founding)
        if not self.remember_entering():
            self._put_off(f"cell {record.cell} is not entered: it cannot be written down here", now)
            return
        self._collected = (None, {})
        self._half.note("placed", cell=record.cell, stages=sorted(stages), reason=reason)
        self._half.enter(founding, stages, now)
        self._deliver_early(now)

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
        """Get the states of a founding that does not begin at the seed: `local` ones, or fetched.

        What an earlier try for the same founding brought is here already.
        """
        brought = self._brought(founding)
        self._founding, self._collected = founding, (founding, brought)
        orders = [
            Restore(
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
            for stage in stages
            if stage not in brought
        ]
        self._go_on(f"to enter cell {record.cell}", now)
        for order in orders:
            if self._founding == founding:  # else the one before ended it
                half = self._half
                begun = half.restoring.begin(half.setup.me, order, half.view, local.get, now)
                half.perform_all(begun)

    def _brought(self, founding: Signed) -> dict[int, Stage]:
        """The stages that were got for this founding."""
        return self._collected[1] if self._collected[0] == founding else {}

    def _go_on(self, reason: str, now: float) -> None:
        """Tell how far it is, or enter the cell with the last stage."""
        half, founding = self._half, self._founding
        if founding is None:
            return
        record, stages = read_record(founding), self._collected[1]
        mine = stages_of(record.roster, half.setup.me)
        self.why = f"fetching stages to enter cell {record.cell}: {len(stages)} of {len(mine)} are here"
        if set(stages) == set(mine):
            self._enter(founding, stages, reason, now)

    def failed(self, answer: Ready, now: float) -> None:
        """A state of the founding could not be had: try again a little later, for what is missing."""
        founding = self._founding
        if founding is None or read_record(founding).cell != answer.cell:
            return
        self._half.note("dropped", what=f"founding of cell {answer.cell}", why=answer.reason)
        self._put_off(f"stage {answer.stage} of cell {answer.cell} could not be had: {answer.reason}", now)

    def _put_off(self, why: str, now: float) -> None:
        self._stop()
        self.why = f"{why}; tried again every {RETRY_S:.0f} s"
        self._retry_at = now + RETRY_S

    def _stop(self) -> None:
        """Nothing of a founding is fetched any more."""
        founding, self._founding = self._founding, None
        if founding is not None:
            self._half.restoring.cancel(founding)

    def set_aside(self) -> None:
        """A leader has use for this node: what it collects for a founding is not wanted any more."""
        self._stop()
        self._collected = (None, {})

    def _maybe_found(self, now: float) -> None:
        """With fewer cells than the job wants, the lowest standby founds one; others wait."""
        half = self._half
        self._collected = (None, {})
        choice = choose_cell(half.view, half.setup.job, half.setup.me)
        self.why = choice.reason
        cells = half.view.cells()
        if not cells:
            self.why = "nobody trains this job now: its coordinator begins it again once most nodes stand by"
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

    def collected(self, effect: Restored, now: float) -> bool:
        """Whether a state that arrived was for a founding; with the last of them the cell is entered.

        Only a node that trains leads, so without a trainer an order of its own is a founding's; of
        one that is given up nothing counts.
        """
        half, order = self._half, effect.order
        if effect.leader != half.setup.me or half.trainer is not None:
            return False
        if order.decided == self._founding:
            self._collected[1][order.stage] = effect.stage
            self._go_on(order.reason, now)
        return True
