"""Holders of a stage in a cell are the same, bit for bit, after every commit."""

from collections import defaultdict
from pathlib import Path

import pytest
from real_world import reach, small_job, start, status_of

from swarm.lab.processes import RealSwarm

pytestmark = pytest.mark.e2e

Hashes = dict[tuple[int, str], dict[str, str]]
"""(iteration, stage) -> node -> hash of its state, as GET /status shows it."""


def take(found: Hashes, status: dict[str, object]) -> None:
    members = status["members"]
    assert isinstance(members, list)
    for member in members:
        for stage, digest in member["hashes"].items():
            found[member["iteration"], stage][member["node"]] = digest


@pytest.mark.slow
async def test_holders_of_a_stage_advertise_one_hash(tmp_path: Path) -> None:
    found: Hashes = defaultdict(dict)
    async with RealSwarm(tmp_path / "run", small_job(nodes=6)) as swarm:
        names = await start(swarm, 6)
        last = await reach(swarm, 1)
        doubled = {stage for stage, row in last["holders"].items() if len(row) > 1}
        assert len(doubled) == 2, "six nodes double two of four stages"
        for iteration in range(5, 30, 5):
            await reach(swarm, iteration)
            for name in names:
                take(found, await status_of(swarm, name))
    shared = {key: hashes for key, hashes in found.items() if len(hashes) > 1}
    assert {stage for _, stage in shared} == doubled
    assert len({iteration for iteration, _ in shared}) >= 3
    assert {key for key, hashes in shared.items() if len(set(hashes.values())) > 1} == set()
