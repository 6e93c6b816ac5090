"""A cell in virtual time: it learns what one machine would, whoever is killed and whenever."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cell_world import Cells, run_cells, small_job

from optim.outer import nesterov
from swarm.job import Job
from swarm.lab.plain_loop import plain_losses, plain_steps


def losses(cells: Cells) -> list[float]:
    return [fields["loss"] for fields in cells.of_kind("committed")]


@pytest.mark.parametrize("nodes", [1, 4, 6])
def test_a_cell_follows_a_plain_loop(tmp_path: Path, nodes: int) -> None:
    """With several holders of body stages too: the same windows, the same steps."""
    job = small_job(tmp_path, inner={"iterations": 20}, pipeline={"nodes": nodes})

    async def scenario(cells: Cells) -> None:
        await cells.finish()

    cells = run_cells(job, tmp_path, nodes, scenario)
    assert losses(cells) == pytest.approx(list(plain_losses(job)), abs=1e-4)


def diloco_losses(job: Job) -> dict[str, list[float]]:
    """Two plain loops that meet as DiLoCo says: the mean of both outer gradients, Nesterov."""
    loops = {cell: plain_steps(job, cell) for cell in ("c0", "c1")}
    losses: dict[str, list[float]] = {cell: [] for cell in loops}
    anchors = {name: each.detach().clone() for name, each in next(plain_steps(without_steps(job)))[1].items()}
    momenta = {name: torch.zeros_like(each) for name, each in anchors.items()}
    for iteration in range(1, job.inner.iterations + 1):
        stepped = {cell: next(loop) for cell, loop in loops.items()}
        for cell, (loss, _) in stepped.items():
            losses[cell].append(loss)
        for name, anchor in anchors.items() if iteration % job.outer.every == 0 else ():
            weights = [parameters[name] for _, parameters in stepped.values()]
            delta = torch.stack([anchor - each.detach() for each in weights]).mean(dim=0)
            moved = nesterov(anchor, momenta[name], delta, job.outer.lr, job.outer.momentum)
            anchors[name], momenta[name] = moved
            for each in weights:
                each.data.copy_(moved[0])
    return losses


def without_steps(job: Job) -> Job:
    """The same job, whose first iteration changes nothing: its parameters are the seed's."""
    inner = job.inner.model_copy(update={"lr": 1e-30, "weight_decay": 0.0})
    return job.model_copy(update={"inner": inner})


@pytest.mark.parametrize("compute_s", [0.0, 0.02], ids=["quick", "slow to step"])
def test_two_cells_follow_diloco_of_two_plain_loops(tmp_path: Path, compute_s: float) -> None:
    """Each outer gradient has every step before its round, however late a holder gets to it."""
    job = small_job(
        tmp_path,
        inner={"iterations": 11},
        pipeline={"nodes": 4, "cells": 2, "stages": 2},
        outer={"method": "diloco", "every": 3},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.stages for node in cells.nodes))
        for node in cells.nodes:
            if 0 not in node.stages:  # who leads has applied a step before it asks for a round
                node.half._compute = Late(node.half._compute, compute_s)
        await cells.finish()

    cells = run_cells(job, tmp_path, 4, scenario)
    for cell, expected in diloco_losses(job).items():
        told = [fields["loss"] for fields in cells.of_kind("committed") if fields["cell"] == cell]
        assert told == pytest.approx(expected, abs=2e-4)


class Late:
    """Computes as `compute` does, and takes longer."""

    def __init__(self, compute: Any, seconds: float) -> None:
        self.compute, self.seconds = compute, seconds

    async def run(self, work: Callable[[], Any], flops: float) -> Any:
        await asyncio.sleep(self.seconds)
        return await self.compute.run(work, flops)


@pytest.mark.parametrize("victim", [0, 1, 4])
@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.06])
def test_any_holder_may_die_in_any_phase(tmp_path: Path, victim: int, after_s: float) -> None:
    job = small_job(tmp_path, inner={"iterations": 5}, pipeline={"nodes": 5})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 2, step_s=0.001)
        await asyncio.sleep(after_s)
        await cells.nodes[victim].crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario)
    assert all(node.iteration == 5 for node in cells.alive if node.cell)
    recovered = [fields["stage"] for fields in cells.of_kind("recovered")]
    assert len(recovered) == len(set(recovered)) <= 1


@pytest.mark.parametrize("phase", ["running", "closing", "proposing"])
@pytest.mark.parametrize("victim", [0, 2, 4])
def test_nothing_committed_is_undone_while_every_stage_has_a_holder(
    tmp_path: Path, phase: str, victim: int
) -> None:
    """Two stages on six nodes: whoever dies in whichever phase, the losses never go back."""
    job = small_job(tmp_path, inner={"iterations": 5}, pipeline={"nodes": 6, "stages": 2})

    async def scenario(cells: Cells) -> None:
        def leader_is_there() -> bool:
            leaders = [n.half.trainer.leader for n in cells.nodes if n.half.trainer]
            return any(led.phase == phase and led.record.iteration == 3 for led in leaders)

        await cells.until(leader_is_there, step_s=0.0005)
        await cells.nodes[victim].crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 6, scenario)
    iterations = sorted({fields["iteration"] for fields in cells.of_kind("committed")})
    assert iterations == [1, 2, 3, 4, 5]
    assert not cells.of_kind("recovered")


def test_a_member_that_hears_of_the_founding_last_is_not_waited_for(tmp_path: Path) -> None:
    """The leader planned through it before: what it had not kept would be missed for a minute."""
    job = small_job(tmp_path, pipeline={"nodes": 4, "stages": 2, "microbatches": 4})

    async def scenario(cells: Cells) -> None:
        last = cells.nodes[-1]
        waiting = [last.inbox.get_nowait() for _ in range(last.inbox.qsize())]
        for body in waiting:
            if body is not cells.notice:
                last.inbox.put_nowait(body)
        await asyncio.sleep(0.5)
        assert cells.of_kind("planned")
        assert not cells.of_kind("committed")
        last.inbox.put_nowait(waiting[-1])
        await cells.until(lambda: all(node.iteration >= 1 for node in cells.nodes), limit_s=2.0)

    cells = run_cells(job, tmp_path, 4, scenario)
    assert not cells.of_kind("lost")
