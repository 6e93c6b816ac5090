"""A cell in virtual time: it learns what one machine would, whoever is killed and whenever."""

import asyncio
from pathlib import Path

import pytest
from cell_world import Cells, run_cells, small_job

from swarm.lab.plain_loop import plain_losses


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
