"""What is lost comes back, in the way that the job says, and is told once."""

import asyncio
from pathlib import Path
from statistics import fmean

import pytest
from cell_world import Cells, run_cells, small_job

from recovery.checkpoint import newest_checkpoint, stage_directory


def committed_losses(cells: Cells, cell: str = "c0") -> list[float]:
    return [fields["loss"] for fields in cells.of_kind("committed") if fields["cell"] == cell]


@pytest.mark.parametrize(("victim", "how"), [(2, "plus_copy"), (0, "checkfree"), (3, "checkfree")])
def test_a_single_cell_learns_on_after_losing_any_stage(tmp_path: Path, victim: int, how: str) -> None:
    """Node 2 holds the ends; nobody else holds what the victim held."""
    job = small_job(tmp_path, inner={"iterations": 30, "lr": 3e-3}, pipeline={"nodes": 4})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[1].iteration >= 12)
        await cells.nodes[victim].crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 4, scenario)
    (recovered,) = cells.of_kind("recovered")
    assert recovered["how"] == how
    assert 0 <= recovered["seconds"] < 5
    losses = committed_losses(cells)
    assert fmean(losses[-5:]) < fmean(losses[:3]) - 0.3, losses


def test_checkfree_is_taken_first_where_the_job_says_so(tmp_path: Path) -> None:
    job = small_job(
        tmp_path,
        inner={"iterations": 16},
        pipeline={"nodes": 8, "cells": 2},
        recovery={"policy": "checkfree"},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 3 for node in cells.nodes))
        victim = next(node for node in cells.nodes if node.cell == "c0" and node.stages == (2,))
        await victim.crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 8, scenario)
    assert [fields["how"] for fields in cells.of_kind("recovered")] == ["checkfree"]


def test_a_lost_stage_comes_from_the_other_cell_and_they_meet_as_they_are(tmp_path: Path) -> None:
    job = small_job(
        tmp_path,
        inner={"iterations": 12},
        pipeline={"nodes": 8, "cells": 2},
        outer={"method": "diloco", "every": 4},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: all(node.iteration >= 5 for node in cells.nodes))
        victim = next(node for node in cells.nodes if node.cell == "c0" and node.stages == (2,))
        await victim.crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 8, scenario, latency_s=0.02)
    assert [fields["how"] for fields in cells.of_kind("recovered")] == ["other_cell"]
    check_rounds_agree(cells)


def check_rounds_agree(cells: Cells) -> None:
    """Who says that it averaged with another is told the same by the other."""
    told: dict[tuple[int, str], set[tuple[str, ...]]] = {}
    for fields in cells.of_kind("round"):
        for stage, members in fields["members"].items():
            if len(members) > 1 and fields["cell"] in members:
                told.setdefault((fields["iteration"], stage), set()).add(tuple(members))
    assert told
    assert all(len(versions) == 1 for versions in told.values()), told


def test_a_cell_that_finishes_first_does_not_unsay_the_last_round(tmp_path: Path) -> None:
    """The owner's cell was finished, and its mean on its way, when the other gave it up."""
    job = small_job(
        tmp_path,
        inner={"iterations": 8},
        pipeline={"nodes": 8, "cells": 2},
        outer={"method": "diloco", "every": 4},
    )

    async def scenario(cells: Cells) -> None:
        await cells.finish()

    cells = run_cells(job, tmp_path, 8, scenario, latency_s=0.05)
    rounds = cells.of_kind("round")
    assert len(rounds) == 4
    assert all(members == ["c0", "c1"] for fields in rounds for members in fields["members"].values()), rounds


def test_every_microbatch_is_counted_once_or_told_lost(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 10}, pipeline={"nodes": 5})

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[1].iteration >= 3)
        await cells.nodes[0].crash()
        await cells.finish()

    cells = run_cells(job, tmp_path, 5, scenario)
    full = job.pipeline.microbatches * job.pipeline.microbatch * job.data.sequence
    for fields in cells.of_kind("committed"):
        assert fields["tokens"] <= full
        assert fields["tokens"] % (job.pipeline.microbatch * job.data.sequence) == 0
    assert [fields["tokens"] for fields in cells.of_kind("committed")].count(full) >= 9


def test_a_standby_founds_the_second_cell(tmp_path: Path) -> None:
    job = small_job(
        tmp_path,
        inner={"iterations": 30},
        pipeline={"nodes": 1, "cells": 2, "stages": 2},
        outer={"method": "diloco", "every": 5},
    )

    async def scenario(cells: Cells) -> None:
        await cells.until(lambda: cells.nodes[0].iteration >= 6)
        cells.add()
        await cells.until(lambda: bool(cells.nodes[1].cell))
        assert cells.nodes[1].cell != cells.nodes[0].cell
        await cells.finish()

    cells = run_cells(job, tmp_path, 1, scenario, latency_s=0.02)
    assert any(len(fields["members"]["0"]) == 2 for fields in cells.of_kind("round")), cells.story()


def test_a_resumed_job_begins_with_what_is_on_each_own_disk(tmp_path: Path) -> None:
    job = small_job(
        tmp_path, inner={"iterations": 9}, pipeline={"nodes": 2}, recovery={"checkpoint_every": 3}
    )

    async def first(cells: Cells) -> None:
        await cells.finish()

    before = run_cells(job, tmp_path, 2, first, checkpoints=True)
    held = newest_checkpoint(
        stage_directory(tmp_path / "node0" / "checkpoints", before.nodes[0].stages[0]), 6
    )
    assert held.found is not None

    async def again(cells: Cells) -> None:
        await cells.finish()

    after = run_cells(job, tmp_path, 2, again, checkpoints=True, resumed=6)
    assert [fields["iteration"] for fields in after.of_kind("committed")] == [7, 8, 9]
    assert committed_losses(after)[0] == pytest.approx(committed_losses(before)[6], abs=0.5)


def test_a_node_with_another_checkpoint_waits_instead_of_mixing_iterations(tmp_path: Path) -> None:
    job = small_job(tmp_path, inner={"iterations": 6}, recovery={"checkpoint_every": 3})

    async def first(cells: Cells) -> None:
        await cells.finish()

    run_cells(job, tmp_path, 1, first, checkpoints=True)

    async def again(cells: Cells) -> None:
        await asyncio.sleep(40.0)

    after = run_cells(job, tmp_path, 1, again, checkpoints=True, resumed=5)
    assert after.nodes[0].half.trainer is None
    assert any("founding" in str(fields["what"]) for fields in after.of_kind("dropped"))
