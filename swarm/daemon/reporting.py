"""What a training half says of itself: facts for the others, numbers for people."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from recovery.transfer import Transfer
from swarm.daemon.bridge import Progress
from swarm.daemon.guarding import Guard
from swarm.gossip.view import Facts
from swarm.job import Job
from swarm.messages import CellRecord
from swarm.pipeline.records import is_finished
from swarm.pipeline.trainer import Trainer
from transport.link import LinkStats
from transport.machine import NodeId

DROPPED_MAX = 64
"""Reasons told apart; the rest is "other". Reasons are this program's own words, so there are few."""


class Speed:
    """Tokens per second over the last iterations: a second is shorter than most of them."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=30)

    def tokens_per_s(self, tokens: int, now: float) -> float:
        """The speed, given how many tokens are committed by now; asked once a second."""
        self._seen.append((now, tokens))
        since, before = self._seen[0]
        return (tokens - before) / (now - since) if now > since else 0.0


def facts_of(trainer: Trainer, me: NodeId, job: Job, facts: Facts) -> Facts:
    """What a member of a cell advertises after a record: what it holds, with proof."""
    record, stages = trainer.reached, trainer.computing.stages
    held = tuple(sorted(s for s in stages if me in record.roster[s]))
    changes = {
        "cell": record.cell,
        "stages": held,
        "iteration": record.iteration,
        "round": record.round,
        "loss": round(min(record.loss, 1e6), 5) if known_loss(record) else None,
        "hashes": {str(index): stages[index].digest() for index in held},
        "state": "finished" if is_finished(record, job) else "training",
    }
    return facts.model_copy(update=changes)


def stuck(trainer: Trainer | None) -> str:
    """Why a member of a cell does not train, empty if it does. One sentence."""
    if trainer is None or trainer.leader.phase == "done":
        return ""
    if trainer.leader.phase == "querying":
        return f"no majority of cell {trainer.cell} answers, and without them it lacks stages: it asks again"
    ends, *body = ([n for n in row if n not in trainer.flow.avoid] for row in trainer.record.roster)
    if ends and (not body or any(body)):
        return ""
    lost = "any stage of the body" if ends else "the ends"
    return f"nobody in cell {trainer.cell} holds {lost}: it waits for a holder, a copy or a checkpoint"


def known_loss(record: CellRecord) -> bool:
    """Whether this record says what the loss is: a founding from checkpoints does not."""
    return record.loss > 0


def progress_of(
    trainer: Trainer | None,
    transfer: Transfer,
    guard: Guard,
    stats: LinkStats,
    *,
    tokens: int,
    tokens_per_s: float,
    recoveries: int,
    memory_bytes: int,
    waiting_for: str,
) -> Progress:
    """The numbers of now. tokens_per_s: over the last iterations, as leader."""
    record = trainer.record if trainer else None
    return Progress(
        cell=record.cell if record else "",
        iteration=record.iteration if record else 0,
        round=record.round if record else 0,
        loss=record.loss if record and known_loss(record) else None,
        tokens=tokens,
        tokens_per_s=tokens_per_s,
        bytes_sent=sum(stats.bytes_sent.values()),
        bytes_received=sum(stats.bytes_received.values()),
        dropped=capped(_dropped(trainer, transfer, guard)),
        memory_bytes=memory_bytes,
        recoveries=recoveries,
        leader=record.leader if record else "",
        stages=tuple(sorted(trainer.computing.stages)) if trainer else (),
        waiting_for=waiting_for or stuck(trainer),
    )


def capped(dropped: Mapping[str, int]) -> dict[str, int]:
    """Counts by reason, the most frequent told apart, none left out, in the order of the reasons."""
    ranked = sorted(dropped.items(), key=lambda pair: (-pair[1], pair[0]))
    told = Counter({"other": sum(count for _, count in ranked[DROPPED_MAX:])})
    for what, count in ranked[:DROPPED_MAX]:
        told[what[:120]] += count
    return {what: told[what] for what in sorted(told) if told[what]}


def _dropped(trainer: Trainer | None, transfer: Transfer, guard: Guard) -> Counter[str]:
    dropped = Counter(transfer.dropped)
    dropped.update(guard.dropped)
    if trainer is not None:
        flow = trainer.flow
        for part in (trainer, trainer.computing, flow, flow.hops, flow.feeding):
            dropped.update(part.dropped)
    return dropped
