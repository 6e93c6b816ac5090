"""Long and busy: what a short test cannot show. Run with `pytest -m slow tests/e2e`."""

from pathlib import Path

import pytest
from real_world import is_commit, reach, start

from swarm.lab.processes import RealSwarm
from swarm.lab.recipes import demo_job

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]
BUSY_S = 600.0


async def test_eight_busy_nodes_bury_nobody_in_ten_minutes(tmp_path: Path) -> None:
    async with RealSwarm(tmp_path / "run", demo_job(nodes=8, iterations=100_000)) as swarm:
        names = await start(swarm, 8)
        first = await reach(swarm, 1, timeout_s=120)
        end = first["time"] + BUSY_S
        await swarm.until(lambda event: is_commit(event) and event["time"] > end, timeout_s=BUSY_S + 120)
        doubts = [event for event in swarm.story if event["event"] == "member"]
        assert [event for event in doubts if event["status"] == "dead"] == []
        assert swarm.alive == ["coordinator", *names]
