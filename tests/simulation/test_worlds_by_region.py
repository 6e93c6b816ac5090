"""A world whose nodes stand in measured regions, and whose bytes are all accounted for."""

import asyncio
from itertools import permutations
from math import log

import pytest
from small_worlds import play, script, small_job

from swarm.lab.playing import run_world
from swarm.lab.regions import load_regions
from swarm.lab.world import World, WorldOptions
from transport.wire import Lane

FAR = ("Australia", "Belgium", "Australia", "Japan")
TROUBLE = """
[[fault]]
at_s = 4
kind = "restart"
node = "node:1"
after_s = 4
[[fault]]
at_s = 6
kind = "partition"
groups = [["node:0", "node:2"], ["node:3", "coordinator"]]
for_s = 3
[[fault]]
at_s = 7
kind = "slow_link"
node = "node:0"
factor = 5
for_s = 3
[[fault]]
at_s = 8
kind = "corrupt"
node = "node:2"
messages = 3
"""


async def _look(world: World, wrong: list[str]) -> None:
    lanes: tuple[Lane, ...] = ("control", "bulk")
    for one, other in permutations(world.nodes, 2):
        measured = load_regions().shape(one.region, other.region)
        path = world.network.shape(one.node, other.node)
        if (path.latency_s, path.bandwidth_bytes_per_s) != (
            measured.latency_s,
            measured.bandwidth_bytes_per_s,
        ):
            wrong.append(f"{one.region} to {other.region} is {path}")
    while True:
        await asyncio.sleep(0.1)
        traffic = world.network.traffic
        wrong += traffic.imbalances()
        wrong += [lane for lane in lanes if traffic.count(lane).open != traffic.under_way_bytes(lane)]


def test_nodes_far_apart_learn_through_faults_and_no_byte_is_unaccounted_for() -> None:
    wrong: list[str] = []
    job = small_job(nodes=4, cells=1, stages=2, iterations=12)
    played = play(
        job, script(TROUBLE), regions=FAR, examine=True, meddle=lambda world: _look(world, wrong), until_s=400
    )
    played.assert_well()
    assert wrong == []
    world = played.world
    assert tuple(node.region for node in world.nodes) == FAR
    assert all(world.network.traffic.count(lane).dropped for lane in ("control", "bulk"))
    assert played.outcome.validation is not None
    assert played.outcome.validation < log(256)


@pytest.mark.parametrize("seed", [0, 1])
def test_cells_around_the_world_begin_together_and_meet_in_their_first_round(seed: int) -> None:
    """Where news of the founding takes a second, plans came before it; that cell stood for a minute."""
    options = WorldOptions(
        job=small_job(nodes=20, iterations=2, every=2),
        seed=seed,
        regions=load_regions().setting("geo-distributed"),
        tensors="none",
        until_s=60.0,
    )
    outcome = run_world(options)
    rounds = [event.fields for event in outcome.events if event.kind == "round"]
    both = {str(stage): ["c0", "c1"] for stage in range(4)}
    assert [each["members"] for each in rounds] == [both, both]
    assert outcome.finished
