"""A node that changes its cell while it computes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cell_world import Cells, run_cells, small_job

from swarm.pipeline.tasks import Task
from transport.machine import Effect


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
