"""What a leader asks for in a slot, as functions of what it knows: plans, rows, pauses."""

from __future__ import annotations

from collections.abc import Callable, Container

from swarm.job import PLAN_HOPS_MAX, Job
from swarm.messages import CellRecord, Plan, Roster
from swarm.planning.paths import plan_paths

REST_S, REST_MAX_S = 0.5, 15.0
"""Pause after an iteration that taught nothing, doubled each time; less than the others' patience."""


def plan_slot(record: CellRecord, digest: str, term: int, rows: Roster, job: Job) -> Plan:
    """The next iteration after a record, on the holders of `rows`.

    Holders of the ends whose microbatches do not fit into one message start nothing and report at once.
    """
    feeds = PLAN_HOPS_MAX // (job.pipeline.microbatches * len(rows))
    return Plan(
        cell=record.cell,
        slot=record.slot + 1,
        term=term,
        iteration=record.iteration + 1,
        base=digest,
        roster=rows,
        microbatches=plan_paths(rows, rows[0][:feeds], job.pipeline.microbatches),
    )


def can_train(rows: Roster) -> bool:
    """Not without a data node, nor without any body: a head trained on bare embeddings would be harm."""
    return bool(rows[0]) and (len(rows) == 1 or any(rows[1:]))


def rest_s(fruitless: int) -> float:
    """How long to wait after so many iterations in a row that taught nothing: the cause may stay."""
    return min(REST_MAX_S, REST_S * 2.0 ** min(fruitless - 1, 10))


def pass_over(rows: Roster, summed: Container[int]) -> Roster:
    """Rows in which the reducer of a stage that was not summed is passed over."""
    return tuple(row if stage in summed else row[1:] for stage, row in enumerate(rows))


def averaged_roster(rows: Roster, base: Roster, gone: Callable[[str, int], bool]) -> Roster:
    """Who averaged; a stage that nobody averaged keeps those that may still hold it."""
    left = (tuple(n for n in row if not gone(n, s)) for s, row in enumerate(base))
    return tuple(row or rest for row, rest in zip(rows, left, strict=True))
