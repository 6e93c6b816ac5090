"""Machine: the leader of a cell: plan, close, propose, commit, slot after slot, and fail over.

One slot of a healthy cell: Plan -> microbatches -> Report -> Close -> holders average -> Summed
-> Propose -> Accept from a majority of the last roster -> Commit. A leader that was not there
from the start first asks a majority what it has (Query, Promise): a record that somebody
accepted is proposed again, anything less is abandoned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from swarm.events import Noted
from swarm.job import Job
from swarm.messages import (
    Absent,
    Accept,
    CellBody,
    Close,
    Leave,
    Plan,
    Promise,
    Propose,
    Ready,
    Report,
    Roster,
    Stale,
    Summed,
)
from swarm.pipeline.follower import Ignored
from swarm.pipeline.ledger import tokens_max
from swarm.pipeline.meeting import leader_wait_s
from swarm.pipeline.office import Office, to
from swarm.pipeline.records import (
    CheckRecord,
    Sign,
    is_finished,
    is_majority,
    read_record,
    record_digest,
    roster_nodes,
    round_due,
    sign_record,
    stages_of,
)
from swarm.pipeline.slots import averaged_roster, can_train, pass_over, plan_slot, rest_s
from swarm.planning.placement import Place
from transport.machine import Effect, NodeId, Send
from transport.wire import Message, Signed

FRUITLESS_MAX = 5
"""So many of them in a row are no accident: a person should hear of it."""
SHORT_ITERATION_S = 3.0
"""An iteration longer than this is abandoned when a member leaves, because owners do not wait."""


class Leader(Office):
    """Every node runs one; only the cell's leader is in another phase than "following"."""

    def __init__(
        self, me: NodeId, job: Job, decided: Signed, *, sign: Sign, check: CheckRecord, place: Place
    ) -> None:
        super().__init__(me, job, decided, sign=sign, check=check, place=place)
        self._reports: dict[NodeId, Report] = {}
        self._accepts: set[NodeId] = set()
        self._closed_at = 0.0
        self._fruitless = 0
        self._asked: Plan | Close | Propose | None = None
        self._base: Roster = ((),)
        self._rows: Roster = ((),)
        self._proposal: Signed | None = None

    # -- the machine ------------------------------------------------------------------------

    def handle(self, peer: NodeId, message: Message, now: float) -> Sequence[Effect]:
        """Take in what members answer a leader."""
        body = message.body
        assert isinstance(body, CellBody)
        if body.cell != self.record.cell:
            return []
        match body:
            case Stale():
                return self._stale(peer, body, now)
            case Ready():
                return self._answered(peer, body, now)
            case Absent():
                return self._absent(peer, body, now)
            case Leave():
                return self._leave(peer, now)
        if body.term != self.term:
            return []
        match self.phase, body:
            case "querying", Promise():
                if self.election.promised(peer, body, self.record, self.digest, self._check):
                    return self._promised(now)
                return [Ignored(peer, body.kind, "of no member, or of a forged record")]
            case "running", Report() if body.slot == self.record.slot + 1:
                return self._report(peer, body, now)
            case "closing", Summed() if body.slot == self.record.slot + 1:
                return self._sum(peer, body, now)
            case "proposing", Accept() if self._proposal is not None:
                if body.digest == record_digest(self._proposal):
                    self._accepts.add(peer)
                return self._accepted(now)
        return []

    def tick(self, now: float) -> Sequence[Effect]:
        """Act on a passed deadline."""
        if self._until is None or now < self._until:
            return []
        self._until = None
        match self.phase:
            case "following":
                return self._candidacy(now, silent=True)
            case "querying":
                return self._no_majority(now)
            case "pausing":
                return self._boundary(now)
            case "running":
                return self._close("step", now)
            case "closing":
                return self._close(self.ledger.act, now, without_silent=True)
            case "resting":
                return self._query(now, "no microbatch came through")
            case "proposing":
                return self._query(now, "accepts are missing")
        return []

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return self._until

    # -- one slot ---------------------------------------------------------------------------

    def _boundary(self, now: float) -> Sequence[Effect]:
        """Between slots: meet other cells, finish, place stages, or plan the next iteration."""
        self.ledger.clear()
        self._base = self.record.roster
        if round_due(self.record, self.job):
            self._rows = self._base
            return [*self._close("round", now), *self._order_lost(now)]
        if is_finished(self.record, self.job):
            self.phase, self._until = "done", None
            return []
        self._base = self.appointments.next_roster(self.record.roster)
        self._rows = self.appointments.fit_rows(self._base)
        effects = self.appointments.order(self.record, self.signed, self.term, self._base, now)
        pause_until = self.appointments.waits_until()
        if pause_until is None and not can_train(self._rows):
            if not any(self._base) and self._deserted(now):
                return self._give_up()
            pause_until = now + self._close_limit_s()
        if pause_until is not None:
            self.phase, self._until = "pausing", pause_until
            return effects
        return [*effects, *(self._let_go(now) or self._plan(now))]

    def _order_lost(self, now: float) -> Sequence[Effect]:
        """In the middle of a round: orders for what nobody of the cell holds any more."""
        roster = self.appointments.next_roster(self.record.roster)
        if self.ledger.act != "round" or all(roster):
            return []
        return self.appointments.order(self.record, self.signed, self.term, roster, now)

    def _let_go(self, now: float) -> Sequence[Effect]:
        """When what leavers held is handed over: a slot that only changes the roster."""
        members = roster_nodes(self._base)
        if not any(n in self.appointments.leaving and n not in members for n in self._members()):
            return []
        self._begun = now
        record = self.ledger.roster_change(self.record, self.digest, self.term, self.me, self._base)
        newcomers = to(self.appointments.newcomers, self._commit_of(self.signed))
        return [*newcomers, *self._propose(sign_record(record, self._sign), now)]

    def _members(self) -> tuple[NodeId, ...]:
        return roster_nodes(self.record.roster)

    def _plan(self, now: float) -> Sequence[Effect]:
        plan = plan_slot(self.record, self.digest, self.term, self._rows, self.job)
        self.phase, self._reports, self._asked = "running", {}, plan
        # Up to four times, within the followers' patience: perhaps nothing came through for want of time.
        self._begun, self._until = now, now + self._slot_limit_s() * 2.0 ** min(self._fruitless, 2)
        skipped = [stage for stage, holders in enumerate(self._rows) if not holders]
        told = {"cell": plan.cell, "slot": plan.slot, "term": plan.term, "iteration": plan.iteration}
        noted = Noted("planned", told | {"microbatches": len(plan.microbatches), "skipped": skipped})
        newcomers = to(self.appointments.newcomers, self._commit_of(self.signed))
        return [noted, *newcomers, *to(roster_nodes(self._rows), plan)]

    def _report(self, peer: NodeId, report: Report, now: float) -> Sequence[Effect]:
        """What a data node of the running plan has done."""
        wrong = self.ledger.wrong_with_report(report, self.job)
        if peer not in self._rows[0] or wrong:
            return [Ignored(peer, report.kind, wrong or "of no data node of the plan")]
        self._reports[peer] = report
        return self._reported(now)

    def _reported(self, now: float) -> Sequence[Effect]:
        waiting = [n for n in self._rows[0] if self.appointments.fit(n, 0) and n not in self._reports]
        return [] if waiting else self._close("step", now)

    def _close(
        self, act: Literal["step", "round"], now: float, *, without_silent: bool = False
    ) -> Sequence[Effect]:
        """Ask the holders to average. A reducer that stayed silent is passed over."""
        if self.phase == "running" and isinstance(self._asked, Plan):
            feeders = (NodeId(microbatch.path[0][0]) for microbatch in self._asked.microbatches)
            silent = Counter(node for node in feeders if node not in self._reports)
            self.ledger.report(self._reports.values(), silent=silent)
        rows = self.appointments.fit_rows(self._rows)
        if without_silent:
            rows = pass_over(rows, self.ledger.sums)
        self._rows = rows
        self.ledger.open(act)
        if not any(rows):
            return self._query(now, "nobody is left to average")
        self.phase, self._closed_at = "closing", now
        self._until = now + self._close_limit_s() + self._round_wait_s()
        close = Close(
            cell=self.record.cell,
            slot=self.record.slot + 1,
            term=self.term,
            act=act,
            round_attempt=self.ledger.attempt,
            roster=rows,
        )
        self._asked = close
        return to(roster_nodes(rows), close)

    def _sum(self, peer: NodeId, summed: Summed, now: float) -> Sequence[Effect]:
        """What the reducer of a stage, the first of its row, has averaged."""
        row = self._rows[summed.stage] if summed.stage < len(self._rows) else ()
        tokens = len(self._base[0]) * tokens_max(self.job)
        wrong = self.ledger.wrong_with_sum(summed, row, tokens, len(self._rows))
        if peer not in row[:1] or wrong:
            return [Ignored(peer, summed.kind, wrong or "not of the stage's reducer")]
        self.ledger.sums[summed.stage] = summed
        return self._summed(now)

    def _summed(self, now: float) -> Sequence[Effect]:
        if any(holders and stage not in self.ledger.sums for stage, holders in enumerate(self._rows)):
            return []
        if self.ledger.act == "step":
            self._close_time.add(now - self._closed_at)
            if not self.ledger.tokens_averaged():
                return self._rest(now)
            self._fruitless = 0
        roster = averaged_roster(self._rows, self._base, self.appointments.gone)
        record = self.ledger.record(
            self.record, self.digest, self.term, self.me, roster, self.job.inner.clip_norm
        )
        return self._propose(sign_record(record, self._sign), now)

    def _rest(self, now: float) -> Sequence[Effect]:
        """The iteration taught nothing: try again, ever later, because the cause may stay."""
        self._fruitless += 1
        self.phase, self._until = "resting", now + rest_s(self._fruitless)
        if self._fruitless != FRUITLESS_MAX:
            return []
        reason = f"{FRUITLESS_MAX} iterations in a row brought no microbatch through; still trying"
        return [Noted("error", {"cell": self.record.cell, "reason": reason})]

    def _propose(self, signed: Signed, now: float) -> Sequence[Effect]:
        self._proposal, self._accepts, self.phase = signed, set(), "proposing"
        self._until = now + self._close_limit_s()
        record = read_record(signed)
        propose = Propose(cell=self.record.cell, slot=self.record.slot + 1, term=self.term, record=signed)
        self._asked = propose
        return to(sorted({*self._members(), *roster_nodes(record.roster)}), propose)

    def _accepted(self, now: float) -> Sequence[Effect]:
        if self._proposal is None:
            return []
        if not is_majority(self._accepts, self.record.roster):
            silent = [node for node in self._members() if node not in self._accepts]
            return [] if self._may_answer(silent) else self._query(now, "no majority is left to accept")
        signed, self._proposal, self._until = self._proposal, None, None
        record = read_record(signed)
        if record.act == "step":
            self._slot_time.add(now - self._begun)
        everyone = sorted({*self._members(), *roster_nodes(record.roster)})
        noted = Noted(*self.ledger.committed(record, now - self._begun))
        recoveries = self.appointments.recoveries(record, now)
        return [*to(everyone, self._commit_of(signed)), *recoveries, noted]

    def _round_wait_s(self) -> float:
        """What the next slot takes longer than a step because delegates wait for those of other cells."""
        if not round_due(self.record, self.job):
            return 0.0
        return leader_wait_s(self.job.outer.every, self._steps.typical_s())

    def _patience(self) -> float:
        return super()._patience() + self._round_wait_s()

    # -- members that come, go, or fall behind ------------------------------------------------

    def _answered(self, peer: NodeId, body: Ready, now: float) -> Sequence[Effect]:
        effects = self.appointments.answered(peer, body, self.record, now)
        return [*effects, *self._boundary(now)] if self.phase == "pausing" else effects

    def _absent(self, peer: NodeId, body: Absent, now: float) -> Sequence[Effect]:
        if self.phase == "querying" and not body.stages:
            if body.term != self.term:
                return []  # an answer to an earlier candidacy; it may have a voice by now
            self.election.strangers.add(peer)
            return self._alone(now)
        asked = {
            s for roster in (self.record.roster, self._base, self._rows) for s in stages_of(roster, peer)
        }
        if not asked.issuperset(body.stages) or not asked:
            return [Ignored(peer, body.kind, "of stages that it was not to hold")]
        self.appointments.absent(peer, body.stages, self.record, now)
        return self._somebody_missing(now)

    def _leave(self, peer: NodeId, now: float) -> Sequence[Effect]:
        if peer in self.appointments.leaving or peer not in self._members():
            return []
        self.appointments.leaving.add(peer)
        if self.phase == "pausing":
            return self._boundary(now)
        if self.phase == "running" and self._slot_time.typical_s() > SHORT_ITERATION_S:
            return self._query(now, f"{peer[:8]} leaves, the iteration starts again without it")
        return []

    def _repeat(self, peer: NodeId) -> Sequence[Effect]:
        """A member that was behind could not begin the slot, end it, or accept: ask once more."""
        asked = self._asked if self.phase in ("running", "closing", "proposing") else None
        if asked is None:
            return []
        roster = self.record.roster if isinstance(asked, Propose) else asked.roster
        return [Send(peer, Message(asked))] if stages_of(roster, peer) else []

    def _somebody_missing(self, now: float) -> Sequence[Effect]:
        """Somebody is dead, suspect or absent: do not wait for them."""
        if self.phase == "querying":
            return self._alone(now)
        if self.phase == "running":
            return self._reported(now)
        if self.phase == "proposing":
            return self._accepted(now)
        if self.phase == "closing":
            rows = [row for stage, row in enumerate(self._rows) if row and stage not in self.ledger.sums]
            firsts = [(row[0], stage) for stage, row in enumerate(self._rows) if row in rows]
            if any(not self.appointments.fit(node, stage) for node, stage in firsts):
                # A round takes long: what is lost is fetched meanwhile.
                return [*self._close(self.ledger.act, now), *self._order_lost(now)]
        if self.phase == "pausing" and self.appointments.waits_until() is None:
            return self._boundary(now)
        return []
