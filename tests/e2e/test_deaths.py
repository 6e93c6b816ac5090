"""Real processes die, freeze and come back, under real sockets."""

from itertools import pairwise
from pathlib import Path

import pytest
from real_world import commits, is_commit, reach, small_job, start, statuses

from swarm.lab.processes import RealSwarm

pytestmark = pytest.mark.e2e
KNOWN_S = 2.0
"""A process that dies closes its connections: every other node knows it by then."""
FREEZE_S = 5.0


async def test_a_crash_is_known_everywhere_in_two_seconds_and_commits_follow(tmp_path: Path) -> None:
    async with RealSwarm(tmp_path / "run", small_job(nodes=4)) as swarm:
        names = await start(swarm, 4)
        last = await reach(swarm, 5)
        body = next(name for name in names if swarm.children[name].node in last["holders"]["1"])
        swarm.kill(body)
        killed = await swarm.until(lambda event: event.get("what") == "killed", timeout_s=5)
        others = {swarm.children[name].node for name in (*names, "coordinator") if name != body}
        await swarm.until_true(lambda: set(statuses(swarm, body, "dead")) == others, timeout_s=20)
        assert max(statuses(swarm, body, "dead").values()) - killed["time"] < KNOWN_S
        newest = max(commit["iteration"] for commit in commits(swarm.story))
        after = await swarm.until(lambda event: is_commit(event, at_least=newest + 2), timeout_s=30)
        assert swarm.children[body].node not in {node for row in after["holders"].values() for node in row}


@pytest.mark.slow
async def test_a_frozen_node_that_wakes_in_time_is_buried_by_nobody(tmp_path: Path) -> None:
    async with RealSwarm(tmp_path / "run", small_job(nodes=4)) as swarm:
        names = await start(swarm, 4)
        last = await reach(swarm, 5)
        body = next(name for name in names if swarm.children[name].node in last["holders"]["2"])
        swarm.pause(body)
        frozen = await swarm.until(lambda event: event.get("what") == "paused", timeout_s=5)
        # The others' own clocks say when it is over: they report every second.
        await swarm.until(lambda event: event["time"] > frozen["time"] + FREEZE_S, timeout_s=20)
        swarm.proceed(body)
        newest = max(commit["iteration"] for commit in commits(swarm.story))
        await swarm.until(lambda event: is_commit(event, at_least=newest + 5), timeout_s=60)
        assert [event for event in swarm.story if event.get("status") == "dead"] == []
        assert swarm.alive == ["coordinator", *names]


async def test_the_coordinators_death_leaves_no_gap(tmp_path: Path) -> None:
    async with RealSwarm(tmp_path / "run", small_job(nodes=2)) as swarm:
        await start(swarm, 2)
        await reach(swarm, 10)
        swarm.kill("coordinator")
        killed = await swarm.until(lambda event: event.get("what") == "killed", timeout_s=5)
        before = [commit["time"] for commit in commits(swarm.story)]
        await swarm.until(
            lambda event: is_commit(event) and event["time"] > killed["time"] + 2 * KNOWN_S, timeout_s=60
        )
        times = [commit["time"] for commit in commits(swarm.story)]
        assert longest(times[len(before) - 1 :]) < max(1.0, 3 * longest(before[1:]))
        assert {event["iteration"] for event in commits(swarm.story)} == set(range(1, len(times) + 1))


def longest(times: list[float]) -> float:
    """The longest interval between neighbours."""
    return max(later - earlier for earlier, later in pairwise(times))
