"""Slow and stalled nodes: nobody healthy is buried, no queue grows, newcomers are whole."""

import asyncio

import pytest
import torch
from small_worlds import Played, fault, play, script, small_job

from swarm.lab.checkers import SETTLE_S, views_tell_the_truth
from swarm.lab.sim_node import SimNode
from swarm.lab.soak import TINY
from swarm.lab.world import World
from swarm.pipeline.stage import Stage
from transport.sim_network import QueueLimits

LIMITS = QueueLimits(messages=400, control_bytes=4 << 20, bulk_bytes=32 << 20)


def buried(played: Played) -> list[str]:
    return [event.line() for event in played.of("member", status="dead")]


def stages(node: SimNode) -> dict[int, Stage]:
    """What a node held when its world ended."""
    trainer = node.training.trainer if node.training else None
    return trainer.computing.stages if trainer else {}


def test_a_node_that_stands_still_for_5_seconds_is_not_buried() -> None:
    played = play(small_job(iterations=30), fault("pause", "node:3", at_s=3, for_s=5), until_s=300)
    played.assert_well()
    assert played.of("fault", what="pause")
    assert buried(played) == []


def test_a_node_that_stands_still_for_40_seconds_is_given_up_and_returns_to_the_living() -> None:
    job, hold = small_job(iterations=24, every=12), fault("pause", "node:3", at_s=8, for_s=40)
    played = play(job, hold, until_s=600, flops_per_s=2e8)
    played.assert_well()
    assert buried(played)
    node = played.world.nodes[3].node
    live = [process for process in played.world.nodes if process.node != node]
    assert all(process.view.status(node) == "alive" for process in live)


@pytest.mark.parametrize(
    "what",
    [
        'kind = "pause"\nnode = "node:2"',
        'kind = "partition"\ngroups = [["node:2"], ["coordinator", "node:0", "node:1"]]',
        'kind = "cut"\nbetween = [["node:2"], ["coordinator", "node:0", "node:1"]]\none_way = true',
    ],
)
def test_who_cannot_be_heard_for_longer_than_views_take_to_settle_is_not_held_against_them(what: str) -> None:
    """It lasted 90 s, and after 60 s of it those who took the unheard for dead were told as broken."""
    job, long = (
        small_job(nodes=3, cells=1, stages=2, iterations=20),
        f"[[fault]]\nat_s = 2\nfor_s = 90\n{what}",
    )
    played = play(job, script(long), until_s=300, model=TINY, flops_per_s=1e7, settle_s=SETTLE_S + 5)
    played.assert_well()
    assert played.outcome.seconds > 92 + SETTLE_S, "the last fault is over, and views have settled"
    assert buried(played)
    assert played.outcome.looked[views_tell_the_truth.__name__]


def test_queues_stay_within_their_limits_while_a_peer_takes_nothing() -> None:
    kept: list[int] = []

    async def measure(world: World) -> None:
        while True:
            await asyncio.sleep(0.5)
            streams = [s for p in world.processes for link in p.links for s in link.streams.values()]
            kept.append(max((stream.kept_bytes for stream in streams), default=0))

    job, hold = small_job(iterations=16), fault("pause", "holder:2", at_s=6, for_s=30)
    played = play(job, hold, until_s=600, queues=LIMITS, meddle=measure, flops_per_s=2e8)
    played.assert_well()
    assert 0 < max(kept) <= LIMITS.bulk_bytes


def test_a_slow_computer_and_a_slow_link_slow_training_and_break_nothing() -> None:
    job = small_job(iterations=10)
    calm = play(job)
    slow = play(job, fault("slow_compute", "node:1", at_s=1.5, factor=200), until_s=600)
    slow.assert_well()
    assert slow.outcome.seconds > calm.outcome.seconds
    far = play(job, fault("slow_link", "node:1", at_s=1.5, factor=20), until_s=600)
    far.assert_well()
    assert far.outcome.seconds > calm.outcome.seconds


def test_a_newcomer_gets_the_anchor_and_the_momentum_with_the_weights() -> None:
    job = small_job(nodes=4, cells=1, stages=2, iterations=30)
    late = fault("restart", "node:4", at_s=0.5, after_s=6)
    played = play(job, late, nodes=5, until_s=300)
    played.assert_well()
    newcomer = played.world.nodes[4]
    assert [event for event in played.of("placed", how="holder") if event.node == newcomer.node]
    alike = 0
    for index, mine in stages(newcomer).items():
        for theirs in [held[index] for other in played.world.nodes[:4] if index in (held := stages(other))]:
            assert torch.equal(mine.parameters, theirs.parameters)
            assert torch.equal(mine.anchor, theirs.anchor)
            assert torch.equal(mine.outer_momentum, theirs.outer_momentum)
            assert mine.anchor_count == theirs.anchor_count > 0
            alike += 1
    assert alike


@pytest.mark.parametrize(("silent", "least_s", "most_s"), [("false", 0.0, 3.0), ("true", 8.0, 30.0)])
def test_a_machine_that_vanishes_is_found_out_by_its_silence_alone(
    silent: str, least_s: float, most_s: float
) -> None:
    job = small_job(nodes=4, cells=1, stages=2, iterations=400)
    faults = script(f'[[fault]]\nkind = "crash"\nnode = "node:3"\nat_s = 5\nsilent = {silent}\n')
    played = play(job, faults, model=TINY, until_s=40.0, flops_per_s=1e6)
    assert played.outcome.broken == ()
    gone = played.world.nodes[3].node[:12]
    found = [event.time - 5 for event in played.of("member", member=gone, status="dead")]
    assert len(found) >= 3
    assert all(least_s < after_s < most_s for after_s in found), found


def test_uplinks_of_homes_are_what_training_waits_for() -> None:
    """The paths carry twenty times as much: only what each node sends and receives in all is less."""
    job = small_job(nodes=4, cells=2, stages=2, iterations=8, every=4)
    wide, narrow = (
        play(job, until_s=900, flops_per_s=1e9, uplink_bytes_per_s=up) for up in (None, (1e5, 2e5))
    )
    wide.assert_well()
    narrow.assert_well()
    assert narrow.outcome.seconds > 2 * wide.outcome.seconds
