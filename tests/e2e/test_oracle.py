"""A swarm over real sockets learns exactly what one machine would."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from real_world import commits, reach, small_job, start

from swarm.job import Job
from swarm.lab.plain_loop import plain_losses
from swarm.lab.processes import RealSwarm

pytestmark = pytest.mark.e2e
ITERATIONS = 20


@pytest.fixture(scope="module")
def curve() -> Iterator[list[float]]:
    """Losses of a plain PyTorch loop on one thread: two wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield list(plain_losses(job_for(1)))
    torch.set_num_threads(threads)


def job_for(nodes: int) -> Job:
    return small_job(nodes=nodes, iterations=ITERATIONS)


@pytest.mark.parametrize("nodes", [1, 4], ids=["one holder of all stages", "one holder a stage"])
async def test_a_cell_follows_the_curve_of_a_plain_loop(
    tmp_path: Path, curve: list[float], nodes: int
) -> None:
    async with RealSwarm(tmp_path / "run", job_for(nodes)) as swarm:
        await start(swarm, nodes)
        last = await reach(swarm, ITERATIONS)
        assert {len(row) for row in last["holders"].values()} == {1}
        learned = commits(swarm.story)
    assert [commit["iteration"] for commit in learned] == list(range(1, ITERATIONS + 1))
    assert [commit["loss"] for commit in learned] == pytest.approx(curve, abs=1e-4)
    assert curve[-1] < curve[0] - 0.5
