"""Everything dies, the newest checkpoint is damaged, and the job goes on from the one before."""

from pathlib import Path

import pytest
from real_world import commits, is_commit, of_kind, reach, small_job, start

from swarm.lab.processes import RealSwarm

pytestmark = pytest.mark.e2e
EVERY = 8


@pytest.mark.slow
async def test_a_resumed_job_starts_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    slower = {"pipeline": {"microbatches": 8}, "data": {"sequence": 128}}
    job = small_job(nodes=2, recovery={"checkpoint_every": EVERY}, **slower)
    async with RealSwarm(tmp_path / "run", job) as swarm:
        names = await start(swarm, 2)
        await reach(swarm, 1)
        written = of_kind("checkpoint", node=swarm.children["coordinator"].node, path="checkpoints")
        for _ in range(2):
            await swarm.until(written, timeout_s=60)
        for name in ("coordinator", *names):
            swarm.kill(name)
            await swarm.ended(name, timeout_s=10)
        swarm.events()
        before = {commit["iteration"]: commit["loss"] for commit in commits(swarm.story)}
        kept = iterations_kept(swarm.job_directory)
        assert len(kept) >= 2
        damage(newest_file(swarm.job_directory, kept[-1]))

        swarm.story.clear()
        await swarm.start_coordinator(resume=True)
        for name in ("fresh-1", "fresh-2"):
            await swarm.start_node(name)
        first = await swarm.until(is_commit, timeout_s=60)
        assert first["iteration"] == kept[-2] + 1
        await reach(swarm, kept[-2] + 4)
        after = {commit["iteration"]: commit["loss"] for commit in commits(swarm.story)}
    # The same states on the same windows: not merely about as good, but the same curve.
    again = sorted(after.keys() & before.keys())
    assert [after[i] for i in again] == pytest.approx([before[i] for i in again], abs=1e-4)
    assert after[first["iteration"]] < before[1] - 0.1


def iterations_kept(job_directory: Path) -> list[int]:
    """Iterations of which the coordinator has every stage, ascending."""
    stages = [
        {int(path.name.split("-")[1]) for path in stage.glob("iter-*")}
        for stage in (job_directory / "checkpoints").glob("stage-*")
    ]
    return sorted(set.intersection(*stages))


def newest_file(job_directory: Path, iteration: int) -> Path:
    """A tensor file of one stage."""
    found = (job_directory / "checkpoints" / "stage-1").glob(f"iter-{iteration:06}-*/*.safetensors")
    return next(iter(found))


def damage(file: Path) -> None:
    """Flip one bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
