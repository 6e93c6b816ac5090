"""Is a tensor message what this job's messages look like, and of whom? Asked before it is decoded."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from swarm.job import Job
from swarm.meetings import EndsCopy, OuterAnchor, OuterDelta, OuterMean
from swarm.messages import Averaged, Backward, CellRecord, Forward, Gradient, Restore, Roster
from swarm.pipeline.records import stages_of
from transport.machine import NodeId
from transport.wire import Body, TensorSpec

ANCHORS_MAX = 1 << 40
"""Outer rounds that may have made an anchor: more than any job has, and one more is still a number."""
FLAT_COUNT = {Gradient: 1, OuterDelta: 1, OuterMean: 1, EndsCopy: 1, OuterAnchor: 2}


def wrong_with_tensors(body: Body, job: Job, width: int, stage_sizes: tuple[int, ...]) -> str:
    """Why the declared tensors of a message are refused, or an empty text.

    width: of the residual stream. stage_sizes: parameters of each stage.
    """
    if isinstance(body, Forward | Backward):
        rows, tokens = job.pipeline.microbatch, job.data.sequence
        if isinstance(body, Backward) and body.target_tokens != rows * tokens:
            return f"not of the {rows * tokens} target tokens of a microbatch"
        return _wrong(body.tensors, 1, (rows, tokens, width), codec=job.pipeline.hop_codec)
    if isinstance(body, Averaged | OuterAnchor | OuterDelta) and body.anchor > ANCHORS_MAX:
        return "an anchor of more rounds than there can be"
    if isinstance(body, Averaged):
        # One for a step, two for a round: which of them it was, the record will say.
        count = 2 if len(body.tensors) > 1 else 1
        return _wrong(body.tensors, count, _size(stage_sizes, body.stage))
    if type(body) in FLAT_COUNT:
        stage = getattr(body, "stage", 0)
        return _wrong(body.tensors, FLAT_COUNT[type(body)], _size(stage_sizes, stage))
    return "tensors where none belong" if body.tensors else ""


def wrong_with_place(order: Restore, record: CellRecord, me: NodeId, held: Collection[int]) -> str:
    """Why a member of a cell does not do as it is ordered, or an empty text.

    An order that comes late must not replace the state with which its cell goes on already.
    """
    if order.cell != record.cell:
        return f"this node is in cell {record.cell}"
    if not order.rehearsal and order.stage in held and order.stage in stages_of(record.roster, me):
        return f"this node is named for stage {order.stage} and holds it"
    return ""


def _size(stage_sizes: tuple[int, ...], stage: int) -> tuple[int, ...]:
    return (stage_sizes[stage],) if stage < len(stage_sizes) else (-1,)


def _wrong(tensors: tuple[TensorSpec, ...], count: int, shape: tuple[int, ...], codec: str = "raw") -> str:
    if len(tensors) != count:
        return f"not {count} tensors"
    for spec in tensors:
        if spec.shape != shape or spec.dtype != "float32":
            return f"tensor not float32 {shape}"
        if spec.codec != codec:
            return f"codec not {codec}"
    return ""


def neighbour(body: Forward | Backward) -> str:
    """Which node of its path a microbatch must come from; no node, if it is at no place of its path."""
    path, position = body.path, body.position
    if isinstance(body, Forward):
        return path[position - 1][0] if 0 < position <= len(path) else ""
    if position >= len(path):
        return ""
    return path[position + 1][0] if position + 1 < len(path) else path[0][0]


def wrong_with_path(peer: NodeId, body: Forward | Backward, roster: Roster) -> str:
    """Why a microbatch cannot have come this way, or an empty text. roster: the plan's.

    A hop may have re-routed what follows it, so the path need not be the planned one.
    """
    if peer != neighbour(body):
        return "not of its neighbour on the path"
    stages = [stage for _, stage in body.path]
    if stages[0] != 0 or any(after <= before for before, after in pairwise(stages)):
        return "a path out of order"
    if any(stage >= len(roster) or node not in roster[stage] for node, stage in body.path):
        return "a path beyond the roster"
    return ""
