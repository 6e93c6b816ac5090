"""Who may found a job: live workers that can hold what the founding would give them."""

from __future__ import annotations

from collections.abc import Sequence

from swarm.daemon.options import UserError
from swarm.gossip.view import View
from swarm.job import Job
from swarm.pipeline.computing import stage_size
from swarm.pipeline.model import preset
from swarm.pipeline.records import stages_of
from swarm.pipeline.room import FLOAT_BYTES, STATE_FLATS
from swarm.planning.cells import Founder, genesis
from transport.machine import NodeId


def stage_sizes(job: Job, vocab: int) -> tuple[int, ...]:
    """Parameters of each stage of a job."""
    config = preset(job.model.preset, vocab)
    return tuple(stage_size(config, job.pipeline.stages, k) for k in range(job.pipeline.stages))


def state_bytes(parameters: int) -> int:
    """What holding so many parameters takes: weights, gradient and what the optimizers keep."""
    return FLOAT_BYTES * STATE_FLATS * parameters


def fit_to_found(view: View, job: Job, sizes: Sequence[int]) -> tuple[View, str]:
    """The live workers without those whose share would not fit, and what the first of these lacks.

    sizes: parameters of each stage. Whoever is left out leaves more to the others, so they are
    asked again. Who does not know what it may hold, 0, is not.
    """
    here, why = {member.node: member for member in view.live()}, ""
    while here:
        founders = [Founder(member.node, member.facts.speed_flops) for member in here.values()]
        short = []
        for founding in genesis(founders, job):
            for node in sorted({NodeId(node) for row in founding.roster for node in row}):
                needed = sum(state_bytes(sizes[stage]) for stage in stages_of(founding.roster, node))
                limit = here[node].facts.memory_bytes
                short += [(node, limit, needed)] if 0 < limit < needed else []
        if not short:
            break
        node, limit, needed = min(short)
        why = (
            why
            or f"node {node[:8]} may hold {size_text(limit)} of the {size_text(needed)} that its stages need"
        )
        for node, _, _ in short:
            del here[node]
    return View(here), why


def check_memory(limit: int, sizes: Sequence[int]) -> None:
    """Raise UserError if a node that may hold `limit` bytes is of no use to a job of such stages."""
    least = min(map(state_bytes, sizes))
    if limit < least:
        raise UserError(
            f"this node may hold {size_text(limit)}, and the smallest stage of the job needs "
            f"{size_text(least)}: give it more with --memory"
        )


def size_text(count: int) -> str:
    """Bytes as people write them after --memory."""
    return f"{count / (1 << 20):,.1f} MiB" if count >= 1 << 20 else f"{count / 1024:,.1f} KiB"
