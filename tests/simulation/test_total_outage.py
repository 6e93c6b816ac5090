"""When all of a job's nodes are down at once, it goes on by itself once they are back."""

from functools import partial

import pytest
from small_worlds import Played, script, small_job
from small_worlds import play as play_world

from swarm.lab.soak import TINY

AT_S, BACK_S = 12.0, 5.0
play = partial(play_world, model=TINY, flops_per_s=1e7)


def restarts(*who: str) -> str:
    fault = '[[fault]]\nkind = "restart"\nnode = "{}"\nat_s = {}\nafter_s = {}\n'
    return "".join(fault.format(name, AT_S, BACK_S) for name in who)


def went_on(played: Played) -> list[str]:
    """The reasons of the foundings after the first."""
    return [event.fields["reason"] for event in played.of("cell", old="c0")]


def went_on_at(played: Played) -> float:
    """When the one founding after the first was."""
    (again,) = played.of("cell", old="c0")
    return again.time


def test_a_job_of_one_node_goes_on_from_its_last_checkpoint_after_a_restart() -> None:
    """It stood still for ever, with its checkpoints in the archive and on its own disk."""
    job = small_job(nodes=1, cells=1, iterations=14, checkpoint_every=2)
    played = play(job, script(restarts("node:0")))
    played.assert_well()
    assert went_on(played) == ["nobody trains this job: 1 of 1 nodes stand by, so it begins again"]
    (first, *_) = played.commits(after_s=AT_S)
    before = [event for event in played.commits() if event.time < AT_S]
    assert first.fields["iteration"] > len(before) - 2 > 0


def test_a_job_goes_on_after_a_power_cut_that_its_coordinator_shares() -> None:
    job = small_job(nodes=3, cells=1, iterations=14, checkpoint_every=2)
    played = play(job, script(restarts("coordinator", "node:0", "node:1", "node:2")))
    played.assert_well()
    assert len(went_on(played)) == 1
    (first, *_) = played.commits(after_s=AT_S)
    assert first.fields["iteration"] > 1


def test_what_is_on_the_disks_of_the_nodes_alone_is_gathered_before_a_job_begins_again() -> None:
    """Their coordinator was away while they wrote it down: the job would begin at its seed."""
    away = f"""
    [[fault]]
    kind = "restart"
    node = "coordinator"
    at_s = 3
    after_s = {AT_S + BACK_S}
    """
    job = small_job(nodes=3, cells=1, iterations=14, checkpoint_every=2)
    played = play(job, script(away + restarts("node:0", "node:1", "node:2")))
    played.assert_well()
    (archived, *_) = [event for event in played.of("checkpoint") if "cell" in event.fields]
    before = [event for event in played.commits() if event.time < AT_S]
    assert AT_S + BACK_S < archived.time < went_on_at(played)
    assert archived.fields["iteration"] > len(before) - 4 > 0, "of the newest not all stages may be there"
    (first, *_) = played.commits(after_s=AT_S)
    assert first.fields["iteration"] == archived.fields["iteration"] + 1


def test_a_job_that_had_no_checkpoint_begins_at_its_seed() -> None:
    job = small_job(nodes=2, cells=1, stages=2, iterations=14)
    played = play(job, script(restarts("node:0", "node:1")))
    played.assert_well()
    (first, *_) = played.commits(after_s=AT_S)
    assert first.fields["iteration"] == 1


def test_a_minority_that_is_cut_off_with_the_coordinator_begins_nothing_again() -> None:
    """The others train on: what a few founded without them would be a second job beside it."""
    job = small_job(nodes=5, cells=1, iterations=60, checkpoint_every=5)
    apart = f"""
    [[fault]]
    kind = "partition"
    groups = [["coordinator", "node:0", "node:1"], ["node:2", "node:3", "node:4"]]
    at_s = {AT_S}
    for_s = 56
    """
    played = play(job, script(restarts("node:0", "node:1") + apart), until_s=66.0)
    assert played.outcome.broken == ()
    coordinator = played.world.coordinator.node
    assert not [event for event in played.of("cell") if event.node == coordinator]
    assert played.commits(after_s=50.0), "the others train"


@pytest.mark.parametrize("seed", [9, 11])
def test_who_hears_of_a_new_founding_late_is_waited_for(seed: int) -> None:
    """It was asked by those who had, said that it was in no cell, and they went on without it."""
    job = small_job(nodes=6, cells=3, stages=2, iterations=40)
    everyone = restarts(*(f"node:{index}" for index in range(6)))
    played = play(job, script(everyone), seed=seed, latency_s=(0.05, 0.3), until_s=52.0)
    assert played.outcome.broken == ()
    again = played.of("cell", old="")
    assert len(again) == job.pipeline.cells
    assert played.of("cell") == again, "nobody founds a cell beside those"
    begun = {event.fields["cell"] for event in played.of("placed", reason="the job begins")}
    assert {event.fields["new"] for event in again} <= begun
