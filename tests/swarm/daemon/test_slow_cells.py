"""Cells that are alive and make no progress: the others go on without them."""

import asyncio
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from cell_world import Cells, run_cells, small_job

from swarm.pipeline.model import stage_flops
from transport.sim_paths import LinkShape

ITERATION_S = 30.0


def test_a_live_cell_that_makes_no_progress_costs_another_a_round_and_no_more(tmp_path: Path) -> None:
    """With long iterations the wait for other cells is longer than any leader's limit of its own was."""
    outer = {"method": "diloco", "every": 12}
    pipeline = {"nodes": 4, "cells": 2, "stages": 2, "microbatches": 1}
    job = small_job(tmp_path, inner={"iterations": 400}, pipeline=pipeline, outer=outer)

    async def scenario(cells: Cells) -> None:
        config = cells.nodes[0].half.setup.config
        flops = sum(sum(stage_flops(config, 2, stage, 16, 16)) for stage in (0, 1))
        for node in cells.nodes:
            node.half._compute.flops_per_s = flops / ITERATION_S
        await cells.until(lambda: all(node.iteration >= 5 for node in cells.nodes), 2000.0, 1.0)
        for node in cells.nodes:
            if node.cell == "c1":
                node.half._compute.slowdown = 1000.0
        await asyncio.sleep(2000.0)

    cells = run_cells(job, tmp_path, 4, scenario)
    rounds = [e for e in cells.of_kind("round") if e["cell"] == "c0"]
    assert rounds[0]["iteration"] == 12
    assert any("not averaged: no answer from c1" in reason for reason in rounds[0]["reasons"])
    assert max(node.iteration for node in cells.nodes) >= 40
    assert [e["term"] for e in cells.of_kind("leading") if e["cell"] == "c0"] == [1]  # it never gave up


@pytest.mark.parametrize(
    ("bytes_per_s", "seconds", "joins", "most"),
    [(5e4, 350.0, False, 0), (1e6, 200.0, False, 1), (1e7, 80.0, True, 1)],
    ids=["cannot be waited for", "too slow to take part", "joins"],
)
def test_a_newcomer_behind_a_thin_link_costs_its_cell_one_pause_or_none(
    tmp_path: Path, bytes_per_s: float, seconds: float, joins: bool, most: int
) -> None:
    """One that took the state and was passed over in the next slot was asked again at once, for ever."""
    job = small_job(tmp_path, inner={"iterations": 4000}, pipeline={"nodes": 2, "stages": 2})

    async def scenario(cells: Cells) -> None:
        for node in cells.nodes:
            node.half._compute.flops_per_s /= 400.0
        await cells.until(lambda: cells.nodes[0].iteration >= 3)
        new = cells.add()
        shape = LinkShape(latency_s=0.05, bandwidth_bytes_per_s=bytes_per_s)
        for other in cells.nodes[:-1]:
            cells.network.set_shape(new.identity.node, other.identity.node, shape)
        await asyncio.sleep(seconds)
        assert bool(new.stages) is joins, cells.story()

    cells = run_cells(job, tmp_path, 2, scenario)
    times = sorted(e.time for node in cells.nodes for e in node.events if e.kind == "committed")
    typical = median(after - before for before, after in pairwise(times))
    pauses = [after - before for before, after in pairwise(times) if after - before > typical + 15.0]
    assert len(pauses) <= most, pauses
