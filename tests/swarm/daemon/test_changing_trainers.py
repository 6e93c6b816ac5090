"""A node that changes its cell while it computes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cell_world import Cells, run_cells, small_job

from swarm.messages import Close
from swarm.pipeline.follower import CloseSlot
from swarm.pipeline.tasks import Task
from transport.machine import Effect, NodeId


class Interrupted:
    """Computes as `compute` does, and does `meanwhile` once while it is at it."""

    def __init__(self, compute: Any, meanwhile: Callable[[], None]) -> None:
        self.compute, self.meanwhile, self.interrupted = compute, meanwhile, False

    async def run(self, work: Callable[[], Any], flops: float) -> Any:
        result = await self.compute.run(work, flops)
        if not self.interrupted:
            self.interrupted = True
            self.meanwhile()
        return result


def test_what_was_computed_for_a_cell_is_not_given_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job(tmp_path, inner={"iterations": 8})
    given: list[bool] = []

    async def scenario(cells: Cells) -> None:
        (node,) = cells.nodes
        half = node.half
        await cells.until(lambda: node.iteration >= 2)
        first = half.trainer
        assert first is not None

        def get(get: Callable[[], Task | None] = first.tasks.get) -> Task | None:
            task = get()
            return replace(task, done=partial(done, task)) if task else None

        def done(task: Task, result: Any, now: float) -> Sequence[Effect]:
            given.append(half.trainer is first)
            return task.done(result, now)

        def meanwhile() -> None:
            half.enter(first.follower.signed, dict(first.computing.stages), 0.0)

        monkeypatch.setattr(first.tasks, "get", get)
        await cells.until(lambda: node.iteration >= 4)
        half._compute = compute = Interrupted(half._compute, meanwhile)
        await cells.until(lambda: compute.interrupted, step_s=0.0001)
        assert half.trainer is not first
        half.leave_cell()

    run_cells(job, tmp_path, 1, scenario)
    assert given
    assert all(given), "the second cell was given what was computed for the first"


def test_a_slot_that_never_began_here_is_not_closed_with_the_gradients_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan was lost, or came while a step was applied: what it had summed was averaged already."""
    job = small_job(tmp_path, inner={"iterations": 8})
    tokens: list[int] = []

    async def scenario(cells: Cells) -> None:
        (node,) = cells.nodes
        await cells.until(lambda: node.iteration >= 2 and node.half.trainer.applied, step_s=0.001)
        trainer = node.half.trainer
        assert trainer is not None
        for stage in trainer.computing.stages.values():
            stage.target_tokens = 48

        def close(close: Close, leader: NodeId, own: dict[int, Any], now: float, **_: int) -> list[Effect]:
            tokens.extend(part[1] for part in own.values())
            return []

        monkeypatch.setattr(trainer.averaging, "close", close)
        about = {"cell": trainer.cell, "slot": trainer.record.slot + 1, "term": 99, "round_attempt": 1}
        asked = Close(**about, act="step", roster=trainer.record.roster)
        trainer.act([CloseSlot(asked, node.identity.node)], 0.0)
        node.half.leave_cell()

    run_cells(job, tmp_path, 1, scenario)
    assert tokens == [0, 0, 0, 0]
