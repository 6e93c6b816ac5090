"""What is left of a job when its world ends unfinished: was there anybody who could have gone on?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarm.job import Job
from swarm.pipeline.trainer import Trainer

if TYPE_CHECKING:
    from swarm.lab.sim_node import SimNode
    from swarm.lab.world import World


def hopeless(world: World) -> str:
    """Why nobody could go on with the job, and nothing promised that; empty if somebody could.

    Whoever holds the ends, or a copy of them, and a stage of the body can have the others rebuilt.
    All else comes from the coordinator, or from the seed by its word, which needs most of the nodes.
    """
    running = [node for node in world.nodes if node.running]
    if not running:
        return "no node runs any more"
    lacking = _lacking([node.trainer for node in running if node.trainer], world.job)
    if not lacking:
        return ""
    if not world.coordinator.running:
        checkpoints = _with_checkpoints(running)
        kept = f"; {checkpoints} of the nodes that run have checkpoints, and nobody gathers them"
        return f"no node that runs holds {lacking}, and the coordinator is gone{kept if checkpoints else ''}"
    if 2 * len(running) <= len(world.nodes):
        return f"no node that runs holds {lacking}, and only {len(running)} of {len(world.nodes)} run"
    return ""


def stuck(world: World) -> tuple[str, ...]:
    """Sentences: cells that could train to the end and have not."""
    cells: dict[str, list[Trainer]] = {}
    for node in world.nodes:
        if node.trainer is not None:
            cells.setdefault(node.trainer.cell, []).append(node.trainer)
    return tuple(
        f"cell {cell} has {len(here)} members of its roster and every stage, and is at iteration {at}"
        for cell, here in cells.items()
        if can_go_on(here, world.job)
        and (at := max(trainer.record.iteration for trainer in here)) < world.job.inner.iterations
    )


def can_go_on(here: Sequence[Trainer], job: Job) -> bool:
    """Whether these members of a cell are a majority of its last roster and hold every stage."""
    newest = max((trainer.record for trainer in here), key=lambda record: record.slot)
    roster = {node for row in newest.roster for node in row}
    held = {stage for trainer in here for stage in trainer.computing.stages}
    return (
        2 * len(roster & {trainer.me for trainer in here}) > len(roster) and len(held) == job.pipeline.stages
    )


def _lacking(trainers: Sequence[Trainer], job: Job) -> str:
    """What none of these can give: the ends, or the whole body."""
    held = {stage for trainer in trainers for stage in trainer.computing.stages}
    copied = any(trainer.computing.ends_copy is not None for trainer in trainers)
    body = job.pipeline.stages == 1 or any(stage > 0 for stage in held)
    there = {"the ends": 0 in held or copied, "any body stage": body}
    return " or ".join(what for what, kept in there.items() if not kept)


def _with_checkpoints(nodes: Sequence[SimNode]) -> int:
    return sum(any((node.directory / "checkpoints").glob("stage-*/iter-*")) for node in nodes)
