"""What a leader orders between slots: takers for lost stages, places for newcomers."""

from __future__ import annotations

from recovery.policy import Candidate, Decision, Elsewhere, LossFacts, choose_taker, decide
from swarm.gossip.view import Member, View
from swarm.job import Job, row_max
from swarm.messages import CellRecord
from swarm.planning.cells import choose_cell, place_newcomer
from swarm.planning.placement import Asked, Placement
from transport.machine import NodeId


class Orders:
    """A job's placement rules, callable as `placement.Place`."""

    def __init__(self, job: Job, stage_bytes: tuple[int, ...]) -> None:
        """stage_bytes: memory that the state of each stage needs."""
        self._job = job
        self._stage_bytes = stage_bytes

    def __call__(self, view: View, record: CellRecord, asked: Asked) -> tuple[Placement, ...]:
        """Orders for lost stages and for those only leavers hold, or else for one joining standby."""
        orders: list[Placement] = []
        unfit = asked.busy | asked.leaving
        for stage, holders in enumerate(record.roster):
            taken = unfit | {order.taker for order in orders}
            order = None
            if not holders:
                # Each stage to another node, while there are others.
                facts = self._facts(view, record, stage, asked)
                order = self._restore(view, record, facts, taken)
                order = order or self._restore(view, record, facts, unfit)
            elif asked.leaving.issuperset(holders):
                order = self._handover(view, record, stage, taken)
            orders += [order] if order else []
        return tuple(orders) or self._newcomer(view, record, unfit, asked.passed_over)

    def _handover(
        self, view: View, record: CellRecord, stage: int, busy: frozenset[NodeId]
    ) -> Placement | None:
        """A planned leave: somebody takes exactly the leaver's state, which stays until then."""
        leaver = NodeId(record.roster[stage][0])
        taker = choose_taker(
            stage, self._candidates(view, record), stage_bytes=self._stage_bytes[stage], refused=busy
        )
        if taker.node is None:
            return None
        return Placement(
            taker=NodeId(taker.node),
            stage=stage,
            how="holder",
            donors=(leaver,),
            same_state=True,
            reason=f"{leaver[:8]} leaves. {taker.reason}",
            replaces=leaver,
            gives_up=taker.gives_up,
        )

    def _restore(
        self, view: View, record: CellRecord, facts: LossFacts, busy: frozenset[NodeId]
    ) -> Placement | None:
        stage, decision = facts.stage, decide(facts)
        if decision.how == "none":
            return None
        taker = choose_taker(
            stage, self._candidates(view, record), stage_bytes=self._stage_bytes[stage], refused=busy
        )
        if taker.node is None:
            return None
        return Placement(
            taker=NodeId(taker.node),
            stage=stage,
            how=decision.how,
            donors=self._donors(view, decision),
            same_state=False,
            reason=f"{decision.reason} {taker.reason}",
            gives_up=taker.gives_up,
            neighbours=decision.neighbours,
        )

    def _facts(self, view: View, record: CellRecord, stage: int, asked: Asked) -> LossFacts:
        stages = len(record.roster)
        elsewhere = [
            Elsewhere(m.node, m.facts.iteration)
            for m in view.live()
            if m.facts.cell != record.cell and m.facts.cell and stage in m.facts.stages
        ]
        beside = {n for k in (1, stages - 1) if k for n in record.roster[k]}
        archives = [m.facts for m in _coordinators(view) if m.facts.state != "standby"]
        archived = max((facts.iteration for facts in archives), default=0)
        return LossFacts(
            stage=stage,
            stages=stages,
            other_cells=tuple(elsewhere),
            plus_copies=tuple(sorted(beside)) if self._job.recovery.plus_copies else (),
            live={k: tuple(row) for k, row in enumerate(record.roster) if row},
            checkpoint_iteration=archived or None,
            no_archive=bool(archives) and not archived,
            lost_s=asked.lost_s.get(stage, 0.0),
            failed={how: count for (of, how), count in asked.failed.items() if of == stage},
            policy=self._job.recovery.policy,
        )

    @staticmethod
    def _donors(view: View, decision: Decision) -> tuple[NodeId, ...]:
        if decision.how == "checkpoint":
            return tuple(m.node for m in _coordinators(view))
        return tuple(NodeId(node) for node in decision.donors)

    def _candidates(self, view: View, record: CellRecord) -> list[Candidate]:
        held: dict[str, list[int]] = {}
        for stage, holders in enumerate(record.roster):
            for node in holders:
                held.setdefault(node, []).append(stage)
        known = {m.node: m for m in view.live()}
        nodes = {*held, *(m.node for m in view.standby())}
        return [self._candidate(node, tuple(held.get(node, ())), known) for node in sorted(nodes)]

    def _candidate(self, node: str, stages: tuple[int, ...], known: dict[NodeId, Member]) -> Candidate:
        member = known.get(NodeId(node))
        limit = member.facts.memory_bytes if member else 0
        used = sum(self._stage_bytes[stage] for stage in stages)
        return Candidate(node=node, stages=stages, free_bytes=limit - used if limit else None)

    def _newcomer(
        self, view: View, record: CellRecord, busy: frozenset[NodeId], passed_over: frozenset[NodeId]
    ) -> tuple[Placement, ...]:
        if record.slot == 0:
            return ()  # whom the genesis put elsewhere has hardly had the time to say so
        members = {n for row in record.roster for n in row}
        for member in view.standby():
            node = member.node
            choice = choose_cell(view, self._job, node)
            ours = choice.cell == record.cell or node in passed_over
            if node in busy or node in members or not ours:
                continue
            place = place_newcomer(record.roster, node)
            if len(record.roster[place.stage]) >= row_max(len(record.roster)) and not place.replaces:
                continue  # the record could not name it
            donors = tuple(NodeId(n) for n in record.roster[place.stage])
            why = choice.reason if choice.cell == record.cell else "No other cell has taken this standby."
            reason = f"{why} {place.reason}"
            replaces = NodeId(place.replaces) if place.replaces else None
            return (
                Placement(
                    taker=node,
                    stage=place.stage,
                    how="holder",
                    donors=donors,
                    same_state=True,
                    reason=reason,
                    replaces=replaces,
                    rehearse=True,
                ),
            )
        return ()


def _coordinators(view: View) -> list[Member]:
    return [m for m in view.members.values() if m.live and m.record.role == "coordinator"]
