"""What a person does in several terminals: one node alone, others who join, one that leaves."""

from pathlib import Path

import pytest
from real_world import is_commit, of_kind, reach, small_job, start, status_of

from swarm.lab.processes import RealSwarm

pytestmark = pytest.mark.e2e
HAND_OVER_S = 12.0


async def test_a_node_alone_trains_and_others_join_and_leave_by_hand(tmp_path: Path) -> None:
    async with RealSwarm(tmp_path / "run", small_job(nodes=1)) as swarm:
        await start(swarm, 1)
        alone = await reach(swarm, 3)
        node = swarm.children["node-1"].node
        assert alone["holders"] == {str(stage): [node] for stage in range(4)}

        for name in ("node-2", "node-3"):
            await swarm.start_node(name)
        everybody = {"node-1", "node-2", "node-3"}
        await swarm.until(lambda event: holders(event) == ids(swarm, everybody), timeout_s=60)
        shown = await status_of(swarm, "coordinator")
        workers = [member for member in shown["members"] if member["role"] == "worker"]
        assert {member["node"][:12] for member in workers} == ids(swarm, everybody)
        assert {member["status"] for member in workers} == {"alive"}

        swarm.leave("node-1")
        assert await swarm.ended("node-1", timeout_s=HAND_OVER_S) == 0
        await swarm.until(lambda event: holders(event) == ids(swarm, {"node-2", "node-3"}), timeout_s=60)
        told = of_kind("left", node=node)
        assert any(told(event) for event in swarm.story)
        newest = max(event["iteration"] for event in swarm.story if is_commit(event))
        await reach(swarm, newest + 3)


def holders(event: dict[str, object]) -> set[str]:
    """Nodes that hold anything at a commit of which every stage is held; none for other events."""
    if not is_commit(event):
        return set()
    rows = event["holders"]
    assert isinstance(rows, dict)
    return {node for row in rows.values() for node in row} if all(rows.values()) else set()


def ids(swarm: RealSwarm, names: set[str]) -> set[str]:
    return {swarm.children[name].node for name in names}
