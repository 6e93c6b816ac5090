"""What a leader adds up in one slot, and the records it makes of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from swarm.events import EventKind
from swarm.job import Job
from swarm.messages import CellRecord, Report, Roster, StageSum, Summed
from swarm.pipeline.records import committed
from transport.machine import NodeId
from transport.wire import Signed

HISTORY = 8
"""Decided records kept for members that missed a Commit."""
NAMES_CHARS_MAX = 1 << 16
"""Of the contributors of all stages together, so that their record fits into a message."""
SQUARES_MAX = 1e60
"""Sum of squares of a summed gradient: floats of 1e24 each, and sums up to it stay finite."""
LOSS_MAX = 1e4
"""Nats per target token: no model's mean loss is near it, and sums up to it stay finite."""
CLOSED_BEFORE = "an earlier leader closed this slot, and only it was told why"
"""Of a commit whose microbatches another has counted: this one tells of none that is partial or lost."""


class Ledger:
    """Sums of the slot being closed, reports of its data nodes, and the last decided records."""

    def __init__(self) -> None:
        self.act: Literal["step", "round"] = "step"
        self.attempt = 0
        self.sums: dict[int, Summed] = {}
        self._loss, self._tokens, self._partial, self._lost = 0.0, 0, 0, 0
        self._silent: tuple[NodeId, ...] = ()
        self._history: dict[int, Signed] = {}

    # -- the slot ---------------------------------------------------------------------------

    def clear(self) -> None:
        """Begin a slot."""
        self.attempt, self.sums, self._silent = 0, {}, ()
        self._loss, self._tokens, self._partial, self._lost = 0.0, 0, 0, 0

    def report(self, reports: Iterable[Report], *, silent: Mapping[NodeId, int]) -> None:
        """The data nodes' losses and tokens, counted once, when the slot is closed.

        silent: data nodes that have not reported, with their microbatches. Whatever became of these,
        their loss is in no sum: they are lost.
        """
        told = list(reports)
        self._loss = sum(report.loss_sum for report in told)
        self._tokens = sum(report.tokens for report in told)
        self._partial = sum(report.partial for report in told)
        self._lost = sum(silent.values()) + sum(report.lost for report in told)
        self._silent = tuple(sorted(silent))

    def open(self, act: Literal["step", "round"]) -> None:
        """Begin to average, perhaps once more because a reducer vanished."""
        self.act, self.attempt, self.sums = act, self.attempt + 1, {}

    @staticmethod
    def wrong_with_report(report: Report, job: Job) -> str:
        """Why one data node's report cannot be true of a plan of this job, or an empty text."""
        if report.tokens > tokens_max(job):
            return "more tokens than were planned"
        if report.done + report.partial + report.lost > job.pipeline.microbatches:
            return "more microbatches than were planned"
        if not 0 <= report.loss_sum <= report.tokens * LOSS_MAX:
            return "a loss that no model has"
        return ""

    def wrong_with_sum(self, summed: Summed, row: Sequence[str], tokens: int, stages: int) -> str:
        """Why a stage's sum cannot be true, or an empty text.

        row: holders asked to average the stage. tokens: the most that were planned.
        """
        total = summed.total
        if summed.round_attempt != self.attempt:
            return "of another attempt"
        if not 0 <= summed.squares <= SQUARES_MAX:
            return "a norm that no gradient has"
        if len(set(total.contributors)) < len(total.contributors):
            return "one contributor more than once"
        if self.act == "step" and (total.tokens > tokens or not set(total.contributors) <= set(row)):
            return "more than its holders were asked for"
        if sum(map(len, total.contributors)) > NAMES_CHARS_MAX // stages:
            return "more names than a record can hold"
        return ""

    def tokens_averaged(self) -> int:
        """Target tokens over all stages: 0 means that nothing was learned."""
        return sum(summed.total.tokens for summed in self.sums.values())

    def reasons(self, record: CellRecord) -> list[str]:
        """What the stages' reducers had to say of what became this record."""
        told = {stage: summed.total for stage, summed in self.sums.items()}
        if not told or any(record.sums[stage : stage + 1] != (total,) for stage, total in told.items()):
            return [CLOSED_BEFORE]
        return sorted({summed.reason for summed in self.sums.values() if summed.reason})

    def clip_scale(self, clip_norm: float) -> float:
        """min(1, clip / norm) of the global norm of mean gradients, as torch's clip_grad_norm_."""
        averaged = [s for s in self.sums.values() if s.total.digest]
        squares = sum(s.squares / max(1, s.total.tokens) ** 2 for s in averaged)
        return min(1.0, clip_norm / (math.sqrt(squares) + 1e-6))

    # -- records ----------------------------------------------------------------------------

    def committed(self, record: CellRecord, seconds: float) -> tuple[EventKind, dict[str, object]]:
        """The event that a decided record is worth, with what its data nodes and reducers have said."""
        reasons = self.reasons(record)
        return committed(
            record,
            seconds=seconds,
            reasons=reasons,
            partial=self._partial,
            lost=self._lost,
            silent=self._silent,
        )

    def record(
        self, last: CellRecord, digest: str, term: int, leader: NodeId, roster: Roster, clip_norm: float
    ) -> CellRecord:
        """The record of a closed slot. digest: of the last record's signed bytes."""
        step = self.act == "step"
        sums = tuple(self.sums[s].total if s in self.sums else StageSum() for s in range(len(roster)))
        return CellRecord(
            cell=last.cell,
            slot=last.slot + 1,
            term=term,
            act=self.act,
            iteration=last.iteration + step,
            round=last.round + (not step and any(total.digest for total in sums)),
            previous=digest,
            roster=roster,
            sums=sums,
            clip_scale=self.clip_scale(clip_norm) if step else 1.0,
            loss=self._loss / max(1, self._tokens) if step else last.loss,
            tokens=self._tokens if step else 0,
            leader=leader,
        )

    @staticmethod
    def roster_change(last: CellRecord, digest: str, term: int, leader: NodeId, roster: Roster) -> CellRecord:
        """The record of a slot in which only holders change."""
        changes = {"slot": last.slot + 1, "term": term, "act": "roster", "previous": digest}
        changes |= {"roster": roster, "sums": (), "clip_scale": 1.0, "tokens": 0, "leader": leader}
        return last.model_copy(update=changes)

    def keep(self, slot: int, signed: Signed) -> None:
        """Keep a decided record for those that missed it."""
        self._history[slot] = signed
        self._history.pop(slot - HISTORY, None)

    def since(self, slot: int, newest: int) -> list[Signed]:
        """Decided records after a slot, oldest first; those too old to be kept are missing."""
        return [self._history[s] for s in range(slot + 1, newest + 1) if s in self._history]


def tokens_max(job: Job) -> int:
    """Target tokens of one data node's microbatches in one iteration, at most."""
    return job.pipeline.microbatches * job.pipeline.microbatch * job.data.sequence
